"""Per-sample data: its three ways say the same, new tokens go on as stated, and unfit data is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from transformers.mask_patterns import (
    BlockDiffusion,
    Causal,
    Document,
    Gist,
    GlobalTokens,
    ParallelContext,
    Pattern,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sink,
    Tree,
)
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import key_ranges, visible_grid
from transformers.mask_patterns.positions import Layout


REAL = torch.tensor([[False, False, True, True, True, True, True], [True, True, True, True, True, False, False]])
TOKENS = torch.tensor([[9, 9, 5, 9, 6, 9, 7], [5, 6, 9, 7, 8, 9, 9]])  # 9 also where there is no token
PIECES = torch.tensor([[8, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 4, 2]])  # each but the last ends with a 9
MARKS = TOKENS == 9
RESTARTS = torch.tensor([[1, 1, 0, 1, 0, 1, 0], [0, 1, 2, 0, 1, 0, 0]])  # of the pieces
FIRST = torch.tensor([2, 3])  # tokens up to the first 9


def seen(pattern: Pattern, real: Tensor = REAL, **data: Tensor) -> Tensor:
    layout = Layout.of(*real.shape, real=real, heads=2, groups=2)
    rows = Rows(layout, data)
    bound = pattern.bind(rows)
    rows.require_all_read(pattern)
    return visible_grid(bound, layout)


@pytest.mark.parametrize(
    ("bound", "passed", "derived"),
    [
        (Document(PIECES), (Document(), {"document_ids": PIECES}), Document(separator=9)),
        (Document(PIECES), (Document(), {"position_ids": RESTARTS}), Document(separator=9)),
        (SharedPrefix(PIECES), (SharedPrefix(), {"segment_ids": PIECES}), SharedPrefix(separator=9)),
        (ParallelContext(PIECES), (ParallelContext(), {"segment_ids": PIECES}), ParallelContext(separator=9)),
        (Gist(MARKS), (Gist(), {"gist_mask": MARKS}), Gist(token=9)),
        (Gist(MARKS.long()), (Gist(), {"gist_mask": MARKS.int()}), Gist(token=9)),
        (GlobalTokens(MARKS), (GlobalTokens(), {"global_attention_mask": MARKS}), GlobalTokens(token=9)),
        (PrefixLM(FIRST), (PrefixLM(), {"prefix_lengths": FIRST}), PrefixLM(until=9)),
        (
            Document(Sink(1), PIECES),
            (Document(Sink(1)), {"position_ids": RESTARTS}),
            Document(Sink(1), separator=9),
        ),
        (Document(Gist(MARKS), PIECES), (Document(Gist()), {"document_ids": PIECES, "gist_mask": MARKS}), None),
        (
            Tree(torch.tensor([2, 2]), torch.tensor([[-1, 0, 0]] * 2)),
            (Tree(), {"tree_prefix": torch.tensor([2, 2]), "tree_parents": torch.tensor([[-1, 0, 0]])}),
            Tree(2, [-1, 0, 0]),
        ),
    ],
    ids=str,
)
def test_three_ways_of_data_give_one_mask(
    bound: Pattern, passed: tuple[Pattern, dict[str, Tensor]], derived: Pattern | None
) -> None:
    pattern, data = passed
    assert torch.equal(seen(bound), seen(pattern, **data))
    if derived is not None:
        assert torch.equal(seen(bound), seen(derived, input_ids=TOKENS))
    assert not torch.equal(seen(bound), seen(Causal()))


PROMPT = torch.tensor([[True, True, True, False], [False, True, True, True]])  # padded right, and left
LATER = torch.cat([PROMPT, torch.ones(2, 2, dtype=torch.bool)], dim=1)


@pytest.mark.parametrize(
    ("pattern", "name", "prompt", "whole"),
    [
        (Document(), "document_ids", [[0, 0, 1, 9], [9, 2, 1, 2]], [[0, 0, 1, 9, 1, 1], [9, 2, 1, 2, 2, 2]]),
        (SharedPrefix(), "segment_ids", [[0, 1, 2, 9], [9, 0, 1, 0]], [[0, 1, 2, 9, 2, 2], [9, 0, 1, 0, 0, 0]]),
        (ParallelContext(), "segment_ids", [[0, 1, 2, 9], [9, 0, 1, 1]], [[0, 1, 2, 9, 2, 2], [9, 0, 1, 1, 1, 1]]),
        (Gist(), "gist_mask", [[0, 1, 0, 1], [1, 0, 0, 1]], [[0, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0]]),
        (GlobalTokens(), "global_attention_mask", [[0, 0, 1, 1], [1, 0, 0, 1]],
            [[0, 0, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0]]),
    ],
)  # fmt: skip
def test_new_tokens_go_on(pattern: Pattern, name: str, prompt: list[list[int]], whole: list[list[int]]) -> None:
    """Documents and segments with the last token's; gist and global tokens there are no more."""
    before: dict[str, list[Tensor]] = {}
    pattern.bind(Rows(Layout.of(2, 4, real=PROMPT), {name: torch.tensor(prompt)}, before))
    layout = Layout.of(2, 1, real=LATER, q_offset=5)
    gone_on = pattern.bind(Rows(layout, {name: torch.tensor(prompt)}, before))
    known = pattern.bind(Rows(layout, {name: torch.tensor(whole)}))
    assert torch.equal(visible_grid(gone_on, layout), visible_grid(known, layout))
    with pytest.raises(ValueError, match=rf"`{name}`: got shape \(2, 4\); expected shape \(2, 6\)"):
        pattern.bind(Rows(layout, {name: torch.tensor(prompt)}))  # not seen at prefill


def test_data_derived_from_tokens_is_not_made_longer() -> None:
    before: dict[str, list[Tensor]] = {}
    tokens = torch.tensor([[5, 9, 5, 5], [5, 5, 9, 5]])
    Gist(token=9).bind(Rows(Layout.of(2, 4), {"input_ids": tokens}, before))
    with pytest.raises(ValueError, match=r"`input_ids`: got shape \(2, 4\); expected shape \(2, 6\)"):
        Gist(token=9).bind(Rows(Layout.of(2, 2, q_offset=4), {"input_ids": tokens}, before))


IDS = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
UNFIT: list[tuple[Pattern, dict[str, Any], str]] = [
    (SharedPrefix(), {}, r"`segment_ids`: got nothing; .*shared_prefix\(separator=TOKEN\)"),
    (ParallelContext(), {}, r"`segment_ids`: got nothing; .*parallel_context\(separator=TOKEN\)"),
    (SharedPrefix(separator=3), {}, "`input_ids`: got nothing"),
    (Gist(), {}, r"`gist_mask`: got nothing; .*gist\(token=TOKEN\)"),
    (Gist(token=3), {}, "`input_ids`: got nothing"),
    (GlobalTokens(), {}, r"`global_attention_mask`: got nothing; .*\(N\) or global_tokens\(token=TOKEN\)"),
    (Tree(), {}, r"`tree_prefix`: got nothing; .*tree\(PREFIX, \[PARENTS\]\)"),
    (Tree(1), {}, "`tree_parents`: got nothing"),
    (SharedPrefix(), {"segment_ids": IDS[:, :3]}, r"`segment_ids`: got shape \(2, 3\); expected shape \(2, 4\)"),
    (SharedPrefix(), {"segment_ids": IDS[0]}, r"`segment_ids`: got shape \(4,\); expected two dim.*ids\[None\]"),
    (SharedPrefix(), {"segment_ids": IDS.float()}, "`segment_ids`: got torch.float32; expected a tensor of integers"),
    (SharedPrefix(), {"segment_ids": IDS.bool()}, "`segment_ids`: got torch.bool; expected a tensor of integers"),
    (SharedPrefix(), {"segment_ids": IDS.tolist()}, "`segment_ids`: got list; expected a tensor of integers"),
    (Gist(), {"gist_mask": IDS.float()}, "`gist_mask`: got torch.float32"),
    (Gist(), {"gist_mask": IDS[:, :3].bool()}, r"`gist_mask`: got shape \(2, 3\)"),
    (GlobalTokens(IDS.float()), {}, "`global_attention_mask`: got torch.float32"),
    (BlockDiffusion(1) & Document(IDS[:, 1:]), {}, r"`document_ids`: got shape \(2, 3\); expected shape \(2, 4\)"),
    (Tree(torch.tensor([1, 1, 1]), torch.tensor([[-1, 0, 0]])), {}, r"`tree_prefix`: got shape \(3,\)"),
    (Tree(1), {"tree_parents": torch.tensor([-1, 0, 0])}, r"`tree_parents`: got shape \(3,\); expected two dim"),
    (Tree(1, torch.tensor([[-1, 0, 0]] * 3)), {}, r"`tree_parents`: got shape \(3, 3\); expected shape \(2, any\)"),
    (Tree(1, [-1, 0]), {}, r"`tree_prefix, tree_parents`: got \[1, 1\] and 2 nodes for rows of \[4, 4\] tokens"),
    (Tree(5, [-1]), {}, "`tree_prefix, tree_parents`: got .*expected a prefix within each row"),
    (Tree(torch.tensor([-1, 1]), [-1, 0, 0]), {}, "`tree_prefix, tree_parents`: got"),
    (Tree(1, [-1, 0, 0, 0]), {}, r"`tree_parents`: got .*expected -1 behind the last token of a row"),
    (Tree(1, torch.tensor([[-1, 1, 0]])), {}, "`tree_parents`: got .*expected parents before their children"),
    (Tree(1, torch.tensor([[-1, -2, 0]])), {}, "`tree_parents`: got .*expected parents before their children"),
    (Document(Causal(), torch.tensor([[0, 1, 0, 1]])), {}, "`document_ids`: got an id that comes back after another"),
    (Document(PrefixLM(), IDS), {}, "`prefix_lengths`: got data per row; expected a pattern inside document"),
    (Document(~PrefixLM(torch.tensor([1])), IDS), {}, "`prefix_lengths`: got data per row"),
    (Document(Tree(), IDS), {}, "`tree_prefix`: got data per row; expected a pattern inside document"),
    (Document(Tree(1), IDS), {}, "`tree_parents`: got data per row"),
    (Document(BlockDiffusion(1), torch.tensor([[0, 1, 1, 1]])), {}, "`input_ids`: got 1 tokens in row 0; expected"),
    (PerHead({0: Causal(), 1: Gist()}), {}, "`gist_mask`: got nothing"),
    (Document(IDS), {"document_ids": IDS}, r"`mask_inputs`: got \['document_ids'\]; expected data that"),
    (Gist(token=3), {"input_ids": IDS, "gist_mask": IDS}, r"`mask_inputs`: got \['gist_mask'\]"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "data", "message"), UNFIT)
def test_unfit_data_is_refused_by_name(pattern: Pattern, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seen(pattern, torch.ones(2, 4, dtype=torch.bool), **data)


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        (Document(IDS[0]), Document(IDS[:1])),
        (SharedPrefix(IDS[0]), SharedPrefix(IDS[:1])),
        (Tree(1, torch.tensor([-1, 0, 0])), Tree(1, [-1, 0, 0])),
        (Tree(3, torch.tensor([-1])), Tree(3, [-1])),
    ],
)
def test_one_line_bound_to_a_pattern_is_for_all_rows(line: Pattern, lines: Pattern) -> None:
    real = torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(seen(line, real), seen(lines, real))


@pytest.mark.parametrize(
    ("real", "row", "count"), [([[1, 1, 1]], 0, 3), ([[1, 1, 1, 1], [0, 1, 1, 1]], 1, 3), ([[1, 0, 0, 0]], 0, 1)]
)
def test_block_diffusion_counts_tokens_not_slots(real: list[list[int]], row: int, count: int) -> None:
    layout = Layout.of(len(real), len(real[0]), real=torch.tensor(real).bool())
    with pytest.raises(ValueError, match=f"`input_ids`: got {count} tokens in row {row}; expected an even number"):
        BlockDiffusion(2).bind(Rows(layout))


@pytest.mark.parametrize(
    ("make", "arguments", "argument"),
    [
        (Document, {"ids": IDS, "separator": 3}, "separator"),
        (SharedPrefix, {"ids": IDS, "separator": 3}, "separator"),
        (ParallelContext, {"ids": IDS, "separator": 3}, "separator"),
        (Gist, {"mask": IDS, "token": 3}, "token"),
        (GlobalTokens, {"count": 2, "token": 3}, "token"),
        (GlobalTokens, {"count": IDS, "token": 3}, "token"),
        (PrefixLM, {"length": torch.tensor([1]), "until": 3}, "until"),
    ],
)
def test_two_sources_at_once_are_refused(make: Any, arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=f"^`{argument}`: got 3; expected .* or .*, not both"):
        make(**arguments)


MANY = torch.arange(80) % 2  # 40 runs each
CHAIN = list(range(-1, 39))  # 40 nodes deep


@pytest.mark.parametrize(
    ("pattern", "visible"),
    [
        (Document(MANY), lambda q, k: q % 2 == k % 2),
        (SharedPrefix(MANY), lambda q, k: k <= q and (k % 2 == 0 or k % 2 == q % 2)),
        (ParallelContext(MANY), lambda q, k: k <= q and (k % 2 == q % 2 or q % 2 == 1)),
        (GlobalTokens(MANY[None]), lambda q, k: q % 2 == 1 or k % 2 == 1),
        (Tree(40, CHAIN), lambda q, k: k <= q),
        (Document(Tree(0, CHAIN), torch.arange(80) // 40), lambda q, k: q // 40 == k // 40 and k <= q),
        (Gist(MANY[None]) & PerHead({"default": GlobalTokens(MANY[None])}), lambda q, k: k <= q and (q % 2 or k % 2)),
    ],
    ids=lambda value: str(value) if isinstance(value, Pattern) else "",
)
def test_beyond_many_intervals_there_are_no_ranges_and_the_meaning_stays(pattern: Pattern, visible: Any) -> None:
    bound, layout = pattern.placed(80)
    assert key_ranges(bound, layout.queries, layout) is None
    expected = torch.tensor([[bool(visible(q, k)) for k in range(80)] for q in range(80)])
    assert torch.equal(visible_grid(bound, layout)[0, 0], expected)


@pytest.mark.parametrize("inner", [Causal(), PrefixLM(1), Tree(0, [-1, 0])], ids=str)
def test_documents_of_rows_without_a_token_show_nothing(inner: Pattern) -> None:
    grid = seen(Document(inner, separator=9), torch.zeros_like(REAL), input_ids=TOKENS)
    assert not grid.any()


@pytest.mark.parametrize(("pattern", "name"), [(Document(), "document_ids"), (SharedPrefix(), "segment_ids")])
def test_data_of_cached_tokens_stays_what_it_was(pattern: Pattern, name: str) -> None:
    before: dict[str, list[Tensor]] = {}
    layout, prompt = Layout.of(2, 1, real=LATER, q_offset=5), torch.cat([IDS, IDS[:, -1:]], dim=1)

    def bind(ids: Tensor, new: int) -> None:
        pattern.bind(Rows(layout, {name: torch.cat([ids, torch.full((2, new), 1)], dim=1)}, before))

    pattern.bind(Rows(Layout.of(2, 4, real=PROMPT), {name: IDS}, before))
    for wrong in (1 - prompt, torch.cat([IDS, torch.full((2, 1), 7)], dim=1)):  # the token since went on as the last
        with pytest.raises(ValueError, match=f"`{name}`: got other data for tokens in the cache"):
            bind(wrong, 1)
    bind(prompt, 1)
    bind(prompt.where(LATER[:, :5], 7), 1)  # at padding it means nothing
    layout = Layout.of(2, 1, real=torch.cat([LATER, LATER[:, -1:]], dim=1), q_offset=6)
    with pytest.raises(ValueError, match=f"`{name}`: got other data for tokens in the cache"):
        bind(torch.cat([prompt, torch.full((2, 1), 7)], dim=1), 1)
    bind(prompt, 2)
