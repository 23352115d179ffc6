"""The worked grids of every pattern, literally: one word per query, `1` where the key is visible."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    Chunked,
    Dilated,
    Document,
    Gist,
    GlobalTokens,
    ParallelContext,
    Pattern,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    Tree,
)
from transformers.mask_patterns.lowering.dense import key_ranges


LENGTH = 8


@dataclass(frozen=True)
class Worked:
    """A pattern as Python and as text, its grid, and what the text form needs beside it."""

    pattern: Pattern
    text: str
    grid: str
    inputs: dict[str, list[int] | list[list[int]]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    @property
    def tensors(self) -> dict[str, Any]:
        return {name: torch.tensor(data) for name, data in self.inputs.items()}


WORKED = [
    Worked(
        Causal(),
        "causal",
        "1....... 11...... 111..... 1111.... 11111... 111111.. 1111111. 11111111",
    ),
    Worked(
        Bidirectional(),
        "bidirectional",
        "11111111 11111111 11111111 11111111 11111111 11111111 11111111 11111111",
    ),
    Worked(
        SlidingWindow(3),
        "sliding_window(3)",
        "1....... 11...... 111..... .111.... ..111... ...111.. ....111. .....111",
    ),
    Worked(
        SlidingWindow(2, symmetric=True),
        "sliding_window(2, symmetric=true)",
        "11...... 111..... .111.... ..111... ...111.. ....111. .....111 ......11",
    ),
    Worked(
        PrefixLM(3),
        "prefix_lm(3)",
        "111..... 111..... 111..... 1111.... 11111... 111111.. 1111111. 11111111",
    ),
    Worked(
        PrefixLM(torch.tensor([3])),
        "prefix_lm",
        "111..... 111..... 111..... 1111.... 11111... 111111.. 1111111. 11111111",
        {"prefix_lengths": [3]},
    ),
    Worked(
        Sink(2),
        "sink(2)",
        "1....... 11...... 11...... 11...... 11...... 11...... 11...... 11......",
    ),
    Worked(
        Sink(1) | SlidingWindow(2),
        "sink(1) | sliding_window(2)",
        "1....... 11...... 111..... 1.11.... 1..11... 1...11.. 1....11. 1.....11",
    ),
    Worked(
        Causal() & Document(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])),
        "causal & document",
        "1....... 11...... 111..... ...1.... ...11... .....1.. .....11. .....111",
        {"document_ids": [[0, 0, 0, 1, 1, 2, 2, 2]]},
    ),
    Worked(
        Document(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])),
        "document",
        "111..... 111..... 111..... ...11... ...11... .....111 .....111 .....111",
        {"document_ids": [[0, 0, 0, 1, 1, 2, 2, 2]]},
    ),
    Worked(
        Chunked(3),
        "chunked(3)",
        "1....... 11...... 111..... ...1.... ...11... ...111.. ......1. ......11",
    ),
    Worked(
        BlockCausal(3),
        "block_causal(3)",
        "111..... 111..... 111..... 111111.. 111111.. 111111.. 11111111 11111111",
    ),
    Worked(
        Document(PrefixLM(2), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])),
        "document(prefix_lm(2))",
        "11...... 11...... 111..... ...11... ...11... .....11. .....11. .....111",
        {"document_ids": [[0, 0, 0, 1, 1, 2, 2, 2]]},
    ),
    Worked(
        SharedPrefix(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])),
        "shared_prefix",
        "1....... 11...... 111..... 1111.... 11111... 111..1.. 111..11. 111..111",
        {"segment_ids": [[0, 0, 0, 1, 1, 2, 2, 2]]},
    ),
    Worked(
        ParallelContext(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])),
        "parallel_context",
        "1....... 11...... 111..... ...1.... ...11... 111111.. 1111111. 11111111",
        {"segment_ids": [[0, 0, 0, 1, 1, 2, 2, 2]]},
    ),
    Worked(
        Gist(torch.tensor([[0, 0, 0, 1, 1, 0, 0, 0]])),
        "gist(token=9)",
        "1....... 11...... 111..... 1111.... 11111... ...111.. ...1111. ...11111",
        {"input_ids": [[5, 6, 7, 9, 9, 5, 5, 7]]},
    ),
    Worked(
        Dilated(3, 2),
        "dilated(3, 2)",
        "1....... .1...... 1.1..... .1.1.... 1.1.1... .1.1.1.. ..1.1.1. ...1.1.1",
    ),
    Worked(
        Causal() & (GlobalTokens(1) | SlidingWindow(2, symmetric=True)),
        "causal & (global_tokens(1) | sliding_window(2, symmetric=true))",
        "1....... 11...... 111..... 1.11.... 1..11... 1...11.. 1....11. 1.....11",
    ),
    Worked(
        Causal() & (GlobalTokens(torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0]])) | SlidingWindow(2)),
        "causal & (global_tokens(token=9) | sliding_window(2))",
        "1....... 11...... 111..... 1.11.... 1..11... 1...11.. 1....11. 1.....11",
        {"input_ids": [[9, 1, 1, 1, 1, 1, 1, 1]]},
    ),
    Worked(
        Tree(2, [-1, 0, 0, 1, 1, 2]),
        "tree",
        "1....... 11...... 111..... 1111.... 111.1... 1111.1.. 1111..1. 111.1..1",
        {"tree_prefix": [2], "tree_parents": [[-1, 0, 0, 1, 1, 2]]},
    ),
    Worked(
        Tree(torch.tensor([2]), torch.tensor([[-1, 0, 0, 1, 1, 2]])),
        "tree(2, [-1, 0, 0, 1, 1, 2])",
        "1....... 11...... 111..... 1111.... 111.1... 1111.1.. 1111..1. 111.1..1",
    ),
    Worked(
        BlockDiffusion(2),
        "block_diffusion(2)",
        "11...... 11...... ..1111.. ..1111.. ....11.. ....11.. ....1111 ....1111",
    ),
    Worked(
        Document(BlockDiffusion(1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])),
        "document(block_diffusion(1))",
        "1....... .11..... ..1..... ..11.... ....1... .....11. ......1. ......11",
        {"document_ids": [[0, 0, 0, 0, 1, 1, 1, 1]]},
    ),
]
worked = pytest.mark.parametrize("case", WORKED, ids=str)


def drawn(visible: Tensor) -> str:
    return " ".join("".join(".1"[int(seen)] for seen in row) for row in visible)


@worked
def test_whole_mask_from_python(case: Worked) -> None:
    assert drawn(case.pattern.dense(LENGTH)[0, 0]) == case.grid


@worked
def test_whole_mask_from_text(case: Worked) -> None:
    assert drawn(Pattern.parse(case.text).dense(LENGTH, **case.tensors)[0, 0]) == case.grid


@worked
def test_visible_on_plain_integers(case: Worked) -> None:
    bound, _ = case.pattern.placed(LENGTH)
    seen = [[bool(bound.visible(q, k)) for k in range(LENGTH)] for q in range(LENGTH)]
    assert drawn(torch.tensor(seen)) == case.grid


@worked
def test_ranges_are_the_runs_of_ones(case: Worked) -> None:
    bound, layout = case.pattern.placed(LENGTH)
    ranges = key_ranges(bound, layout.queries, layout)
    assert ranges is not None
    pairs = zip(ranges.start[0, 0].T.tolist(), ranges.end[0, 0].T.tolist(), strict=True)
    intervals = [[(start, end) for start, end in zip(*bounds, strict=True) if start < LENGTH] for bounds in pairs]
    assert intervals == [runs(row) for row in case.grid.split()]


def runs(row: str) -> list[tuple[int, int]]:
    """Half-open intervals of ones."""
    edges = [i for i in range(len(row) + 1) if (row + ".")[i] != ("." + row)[i]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_every_row_has_its_own_data() -> None:
    seen = PrefixLM(torch.tensor([0, 2])).dense(4)
    assert drawn(seen[0, 0]) == "1... 11.. 111. 1111"
    assert drawn(seen[1, 0]) == "11.. 11.. 111. 1111"


def test_prefix_until_a_token_includes_it() -> None:
    tokens = torch.tensor([[5, 9, 5, 9], [5, 5, 5, 5]])
    seen = Pattern.parse("prefix_lm(until=9)").dense(4, input_ids=tokens)
    assert drawn(seen[0, 0]) == "11.. 11.. 111. 1111"  # up to the first 9
    assert drawn(seen[1, 0]) == "1... 11.. 111. 1111"  # no 9: causal


def test_a_separator_belongs_to_the_document_that_it_ends() -> None:
    seen = Document(separator=9).dense(6, input_ids=torch.tensor([[5, 9, 9, 5, 5, 9]]))
    assert drawn(seen[0, 0]) == "11.... 11.... ..1... ...111 ...111 ...111"


def test_documents_from_position_ids_that_start_again() -> None:
    seen = Document().dense(6, position_ids=torch.tensor([[0, 1, 0, 1, 2, 0]]))
    assert drawn(seen[0, 0]) == "11.... 11.... ..111. ..111. ..111. .....1"


def test_document_ids_need_not_be_contiguous() -> None:
    assert drawn(Document(torch.tensor([7, -2, 7, -2])).dense(4)[0, 0]) == "1.1. .1.1 1.1. .1.1"


def test_a_split_document_of_many_runs_has_no_ranges_and_means_the_same() -> None:
    ids = torch.arange(80) % 2  # 40 runs each
    bound, layout = Document(ids).placed(80)
    assert key_ranges(bound, layout.queries, layout) is None
    assert drawn(Document(ids).dense(80)[0, 0]) == " ".join(["1." * 40, ".1" * 40] * 40)
