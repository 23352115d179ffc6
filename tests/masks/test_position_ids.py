"""The rotary positions that a mask implies, by literal examples and by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transformers.mask_patterns import (
    BlockDiffusion,
    Causal,
    Document,
    ParallelContext,
    Pattern,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    Tree,
)


IDS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
HALVES = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
CHAIN = Tree(2, [-1, 0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (Causal(), "01234567"),
        (Sink(1) | SlidingWindow(2), "01234567"),
        (SharedPrefix(IDS), "01234345"),
        (SharedPrefix(IDS + 1), "01201012"),  # no question
        (SharedPrefix(IDS * 0), "01234567"),  # nothing else
        (ParallelContext(IDS), "01201345"),  # the task goes on behind the longest context
        (ParallelContext(IDS * 0), "01234567"),
        (CHAIN, "01233444"),
        (Tree(0, [-1, -1, 0, 1, 3, 3, -1, 6]), "00112201"),
        (Tree(8, []), "01234567"),
        (BlockDiffusion(3), "01230123"),
        (Document(IDS), "01201012"),
        (Document(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])), "00112233"),  # in pieces
        (Document(Causal(), IDS), "01201012"),
        (Document(BlockDiffusion(1), HALVES), "01010000"),
        (Document(SharedPrefix(torch.tensor([0, 1, 1, 2, 0, 1, 0, 1])), HALVES), "01210101"),
        (Document(Document(IDS), HALVES), "01200001"),
        (Causal() & Document(IDS), "01201012"),
        (Document(IDS) | Document(Causal(), IDS), "01201012"),
        (~SharedPrefix(IDS), "01234567"),  # what is not so implies nothing
        (Causal() & ~SharedPrefix(IDS), "01234567"),
        (PerHead({0: SharedPrefix(IDS), "default": Causal()}), "01234345"),
    ],
    ids=str,
)
def test_worked_positions(pattern: Pattern, expected: str) -> None:
    assert pattern.position_ids(8).tolist() == [[int(digit) for digit in expected]]


@pytest.mark.parametrize(
    "parts",
    [
        SharedPrefix(IDS) & ParallelContext(IDS),
        SharedPrefix(IDS) | Document(IDS),
        PerHead({0: SharedPrefix(IDS), 1: Document(IDS)}),
        Document(IDS) & BlockDiffusion(2),
    ],
    ids=str,
)
def test_parts_that_imply_different_positions_are_refused(parts: Pattern) -> None:
    with pytest.raises(ValueError, match="`position_ids`: got parts that imply different ones; expected one that all"):
        parts.position_ids(8)


def test_padding_takes_no_position() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 0]])
    ids = torch.tensor([[9, 9, 0, 0, 1, 1, 2, 2], [0, 0, 1, 9, 1, 2, 2, 9]])
    assert SharedPrefix(ids).position_ids(8, attention_mask=mask).tolist() == [
        [0, 0, 0, 1, 2, 3, 2, 3],
        [0, 1, 2, 0, 3, 2, 3, 0],
    ]
    assert Causal().position_ids(8, attention_mask=mask).tolist() == [
        [0, 0, 0, 1, 2, 3, 4, 5],
        [0, 1, 2, 0, 3, 4, 5, 0],
    ]
    assert BlockDiffusion(1).position_ids(8, attention_mask=mask).tolist() == [
        [0, 0, 0, 1, 2, 0, 1, 2],
        [0, 1, 2, 0, 0, 1, 2, 0],
    ]


def test_data_may_be_passed_and_rows_differ() -> None:
    ids = torch.stack([IDS, IDS.flip(0)])
    assert SharedPrefix().position_ids(8, segment_ids=ids).tolist() == [
        [0, 1, 2, 3, 4, 3, 4, 5],
        [3, 4, 5, 3, 4, 0, 1, 2],  # the question may stand last: its positions come first all the same
    ]
    prefixes = torch.tensor([6, 7])
    tree = Tree().position_ids(8, tree_prefix=prefixes, tree_parents=torch.tensor([[-1, -1], [-1, -1]]))
    assert tree.tolist() == [[0, 1, 2, 3, 4, 5, 6, 6], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert PrefixLM().position_ids(3, prefix_lengths=torch.tensor([1, 2])).tolist() == [[0, 1, 2]] * 2


def counted(ids: list[int], start: int, of: int) -> int:
    """How many tokens before `start` have this id."""
    return sum(one == of for one in ids[:start])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10).map(sorted))
def test_positions_by_counting(ids: list[int]) -> None:
    data: Tensor = torch.tensor(ids)
    own = [counted(ids, i, one) for i, one in enumerate(ids)]
    question = ids.count(0)
    contexts = max([0, *(ids.count(one) for one in set(ids) - {ids[-1]})])
    assert Document(data).position_ids(len(ids)).tolist() == [own]
    assert SharedPrefix(data).position_ids(len(ids)).tolist() == [
        [n if one == 0 else n + question for n, one in zip(own, ids, strict=True)]
    ]
    assert ParallelContext(data).position_ids(len(ids)).tolist() == [
        [n + contexts if one == ids[-1] else n for n, one in zip(own, ids, strict=True)]
    ]


@given(st.data())
def test_a_node_stands_as_deep_as_its_ancestors(data: st.DataObject) -> None:
    nodes, prefix = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 3))
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(nodes)]
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    expected = [*range(prefix), *(prefix + depth for depth in depths)]
    if expected:
        assert Tree(prefix, parents).position_ids(len(expected)).tolist() == [expected]


@pytest.mark.parametrize("kind", [Document, SharedPrefix, ParallelContext])
def test_a_row_does_not_depend_on_its_neighbours(kind: type[Document | SharedPrefix | ParallelContext]) -> None:
    rows = torch.tensor([[0, 1, 0, 2, 2], [0, 1, 1, 2, 2]])  # in pieces, and not
    together = kind(rows).position_ids(5)
    assert torch.equal(together, torch.cat([kind(row[None]).position_ids(5) for row in rows]))


def test_rows_of_padding_alone_have_positions_too() -> None:
    pattern, nothing = Document(Causal(), torch.zeros(2, 3, dtype=torch.long)), torch.zeros(2, 3)
    assert pattern.position_ids(3, attention_mask=nothing).tolist() == [[0] * 3] * 2
