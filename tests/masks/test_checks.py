"""The report on a mask: each answer against a search, or against what it says of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_masks import GROUPS, Said, brute_force, inputs, padded, said_patterns

from transformers.mask_patterns import (
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    Gist,
    ParallelContext,
    Pattern,
    PerHead,
    PerLayer,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    checks,
    from_function,
)
from transformers.mask_patterns.checks import first_future_key, shown
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.positions import Layout


STRICT = from_function(lambda b, h, q, k: k < q)


@st.composite
def reports(draw: st.DrawFn) -> tuple[torch.Tensor, Said]:
    real = draw(padded(most_rows=2, most_slots=7))
    return torch.tensor(real), draw(said_patterns(real, depth=3))


@given(reports(), st.data())
def test_a_report_says_what_a_search_finds(drawn: tuple[torch.Tensor, Said], data: st.DataObject) -> None:
    real, said = drawn
    slots = real.shape[1]
    split = data.draw(st.integers(0, slots))
    passed: Any = inputs(real.tolist(), said.reads)
    report = said.pattern.check(slots, layers=1, heads=GROUPS, attention_mask=real, split=split, **passed)
    by_head = brute_force(said, real.tolist(), range(slots), range(slots), GROUPS)
    by_slot = by_head.any(1)
    seen = [(row, q, k) for row, q, k in by_slot.nonzero().tolist()]
    place = (real.cumsum(1) - 1).tolist()

    def first(pairs: list[tuple[int, int, int]]) -> tuple[int, int] | None:
        return min(((place[row][q], place[row][k]) for row, q, k in pairs), default=None)

    assert report.future == first([(row, q, k) for row, q, k in seen if k > q])
    assert report.stale_pair == first([(row, q, k) for row, q, k in seen if q < split <= k])
    assert report.stale.tolist() == [any(q < s <= k for _, q, k in seen) for s in range(slots + 1)]
    assert torch.equal(report.empty, real & (~by_head.any(-1)).any(1))


@given(reports())
def test_tiles_of_queries_make_the_whole(drawn: tuple[torch.Tensor, Said]) -> None:
    real, said = drawn
    layout = Layout.of(len(real), real.shape[1], real=real, heads=GROUPS, groups=GROUPS)
    pattern = said.pattern.bind(Rows(layout, inputs(real.tolist())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "_CELLS", 2 * layout.length)
        tiled = shown(pattern, layout)
    assert tiled == shown(pattern, layout)


def test_labels_come_back_without_what_leaks() -> None:
    labels = torch.arange(1, 9).repeat(2, 1)
    labels[1, :3] = -100
    report = PrefixLM(torch.tensor([4, 5])).check(8, labels=labels)
    ignored = -100
    assert report.labels is not None
    assert report.labels.tolist() == [
        [1, ignored, ignored, ignored, 5, 6, 7, 8],  # the first label is nobody's target
        [ignored, ignored, ignored, ignored, ignored, 6, 7, 8],
    ]
    assert (int(report.leaks.sum()), int(report.targets.sum())) == (3 + 2, 7 + 5)
    assert labels[0, 1] == 2  # what came is left as it was
    assert PrefixLM(4).check(8).labels is None


def test_a_label_behind_padding_does_not_leak() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 1, 1]])
    report = Bidirectional().check(5, attention_mask=mask)
    assert report.leaks.tolist() == [[False, False, False, True, True], [False, True, False, False, True]]
    assert torch.equal(report.leaks, report.targets)
    labels = torch.arange(5).repeat(2, 1)  # upstream's loss scores padding that has a label: from there nothing leaks
    scored = Bidirectional().check(5, attention_mask=mask, labels=labels)
    assert int(scored.targets.sum()) == 8
    assert torch.equal(scored.leaks, report.leaks)


def test_more_layers_leak_more() -> None:
    """Queries see 3 ahead, or 2 back, so that 1 ahead takes two layers."""
    pattern = from_function(lambda b, h, q, k: (k == q + 3) | (k == q - 2))
    assert [int(pattern.check(20, layers=n).leaks.sum()) for n in (1, 2)] == [0, 19]
    assert int(pattern.check(20).leaks.sum()) == 19


@pytest.mark.parametrize("pattern", [Causal(), Sink(2) | SlidingWindow(3), STRICT, ~Bidirectional()], ids=str)
def test_an_autoregressive_pattern_leaks_nothing_and_trusts_every_cache(pattern: Pattern) -> None:
    report = pattern.check(300)
    assert report.future is None
    assert not report.stale.any()
    assert not report.leaks.any()
    assert "remedy" not in str(report)


def test_a_report_reads_as_a_few_lines() -> None:
    report = (Sink(1) | SlidingWindow(8, symmetric=True)).check(1512, layers=4, split=700)
    assert str(report).splitlines() == [
        "sink(1) | sliding_window(8, symmetric=true): 1,512 tokens, 4 layers",
        "autoregressive  no, token 0 sees token 1",
        "cache-safe      at 700: no, token 693 sees token 700",
        "sees nothing    none of 1,512 tokens",
        "label leaks     1,511 of 1,511 targets, first: token 1",
        "remedy          set the leaking labels to -100 (the report's `labels`), or train with `& Causal()`",
    ]


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (BlockCausal(4), "cache-safe      at 9 of 39 splits: 4, 8, 12, 16, 20, 24, ..."),
        (Bidirectional(), "cache-safe      at 0 of 39 splits"),
        (Causal(), "cache-safe      yes, at every split"),
        (STRICT, "sees nothing    1 of 40 tokens, first: token 0"),
        (PrefixLM(torch.tensor([0, 3])), "label leaks     2 of 78 targets, first: row 1, token 1"),
    ],
    ids=str,
)
def test_a_report_says_where(pattern: Pattern, line: str) -> None:
    assert line in str(pattern.check(40)).splitlines()


@given(st.lists(st.lists(st.integers(0, 2), min_size=8, max_size=8), min_size=1, max_size=2), st.integers(0, 4))
def test_what_later_data_would_change_is_found(rows: list[list[int]], half: int) -> None:
    """By taking the data away: what the first tokens show each other with it, and without it."""
    data, split = torch.tensor(rows), 2 * half
    named: list[tuple[Pattern, str]] = [
        (Gist(token=2), "input_ids"),
        (ParallelContext(), "segment_ids"),
        (SharedPrefix(), "segment_ids"),
        (Causal() & ~Gist(), "gist_mask"),
        (BlockDiffusion(1), "input_ids"),
    ]
    for pattern, name in named:
        later: Any = {name: data}
        early: Any = {name: data[:, :split]}
        whole, known = pattern.dense(8, **later)[..., :split, :split], pattern.dense(split, **early)
        changed = (whole != known).flatten(0, 1).any(0).nonzero().tolist()
        report = pattern.check(8, split=split, **later)
        assert report.revised_pair == (tuple(changed[0]) if changed else None), pattern


def test_a_report_says_what_later_tokens_change() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, 2]])
    lines = str(ParallelContext().check(6, split=4, segment_ids=segments)).splitlines()
    assert lines[2] == "cache-safe      at 4: no, later tokens change whether token 2 sees token 0"
    lines = str(ParallelContext().check(6, split=5, segment_ids=segments)).splitlines()
    assert lines[2] == "cache-safe      at 5: yes"
    lines = str(ParallelContext().check(6, segment_ids=segments)).splitlines()
    assert lines[2].endswith("at 5 of 5 splits: 1, 2, 3, 4, 5, if later tokens change nothing: ask with split=")


def test_a_split_that_a_pattern_has_no_meaning_for_is_not_cache_safe() -> None:
    assert "cache-safe      at 1: no, it cannot be said of these alone: `input_ids`: got 1 tokens" in str(
        BlockDiffusion(1).check(8, split=1)
    )


def test_layers_are_checked_in_their_order() -> None:
    """Token 0 sees token 2. Where that comes last, 2 already knew 1; where it comes first, 1 learns of 2 from 0."""
    ahead, back = from_function(lambda b, h, q, k: (q == 0) & (k == 2)), SlidingWindow(2)
    first_back = PerLayer({0: back, 1: ahead}).check(6, layers=2)
    assert first_back.leaks.nonzero().tolist() == [[0, 1]]
    assert first_back.future == (0, 2)
    assert PerLayer({0: ahead, 1: back}).check(6, layers=2).leaks.nonzero().tolist() == [[0, 2]]


def test_native_layers_are_upstreams_own() -> None:
    """A far look ahead comes back as far as the model's own layers go: all the way, or a window at a time."""
    ahead = from_function(lambda b, h, q, k: (q == 0) & (k == 30))
    masks = PerLayer({"0-2": "native", 3: ahead})
    kinds = ["sliding_attention"] * 4
    assert masks.check(32, layers=4).leaks.sum() == 1
    assert not masks.check(32, layers=4, layer_types=kinds, sliding_window=10).leaks.any()
    assert masks.check(32, layers=4, layer_types=kinds, sliding_window=11).leaks.sum() == 1
    assert str(masks.check(32, layers=4)).splitlines()[0].endswith(": 32 tokens, 4 layers")


def test_a_leak_may_go_through_several_heads_and_layers() -> None:
    heads = PerHead({0: from_function(lambda b, h, q, k: k == q + 2), 1: SlidingWindow(2)})
    assert not heads.check(6, layers=1).leaks.any()
    assert heads.check(6, layers=2).leaks.sum() == 5  # two ahead and one back, or the other way round
    assert heads.check(6, layers=2).empty.tolist() == [[False] * 4 + [True] * 2]  # in head 0


def test_data_that_only_one_layer_reads_is_read() -> None:
    ids = torch.tensor([[0, 0, 1, 1]])
    masks = PerLayer({0: "document", "default": "causal"})
    assert masks.check(4, layers=2, document_ids=ids).leaks.tolist() == [[False, True, False, True]]
    with pytest.raises(ValueError, match=r"`mask_inputs`: got \['segment_ids'\]"):
        masks.check(4, layers=2, document_ids=ids, segment_ids=ids)


def test_the_future_is_found_without_the_whole_mask() -> None:
    assert first_future_key(PrefixLM(1000), 100_000) == (0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"layers": 0}, "`layers`: got 0; expected at least 1"),
        ({"split": 9}, "`split`: got 9; expected 0 to 8"),
        ({"labels": torch.zeros(1, 7, dtype=torch.long)}, r"`labels`: got shape \(1, 7\); expected \(1, 8\)"),
        ({"attention_mask": torch.ones(1, 7)}, r"`attention_mask`: got shape \(1, 7\)"),
        ({"document_ids": torch.zeros(1, 8, dtype=torch.long)}, r"`mask_inputs`: got \['document_ids'\]"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_malformed_arguments_are_named(call: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Causal().check(8, **call)  # type: ignore[arg-type]


@pytest.mark.parametrize("inside", [lambda p: p, lambda p: Causal() | p, lambda p: PerHead({0: p, "default": p})])
def test_a_function_that_asks_for_its_head_needs_to_know_how_many_there_are(inside: Any) -> None:
    pattern = inside(from_function(lambda b, h, q, k: (k <= q) | (h == 3)))
    with pytest.raises(ValueError, match="`heads`: got 1; expected the model's number of query heads"):
        pattern.check(4)
    assert pattern.check(4, heads=4).future == (0, 1)
