"""Random composed patterns: every form of a mask says the same, and the laws of sets hold exactly."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from operator import and_, or_
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Said, brute_force, inputs, said_patterns, unpadded
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)
from transformers.mask_patterns.checks import first_future_key, first_stale_pair, is_autoregressive
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import key_ranges, visible_grid
from transformers.mask_patterns.positions import Layout
from transformers.mask_patterns.ranges import Ranges


BATCH, LENGTH = 2, 6
REAL = unpadded(BATCH, LENGTH)
SLOTS = range(LENGTH)
LAYOUT = Layout.of(BATCH, LENGTH, heads=HEADS, groups=GROUPS)
patterns = said_patterns(REAL)
interval_patterns = said_patterns(REAL, functions=False)
batch_free = Said(from_function(lambda b, h, q, k: (2 * q + k) % 3 > 0), lambda r, g, q, k: (2 * q + k) % 3 > 0)
three = st.tuples(interval_patterns, interval_patterns, interval_patterns)


def bound(said: Said) -> Pattern:
    return said.pattern.bind(Rows(LAYOUT, inputs(REAL)))


def whole(pattern: Pattern) -> Tensor:
    return visible_grid(pattern, LAYOUT).expand(BATCH, HEADS, -1, -1)


def ranges_of(said: Said) -> Ranges:
    ranges = key_ranges(bound(said), LAYOUT.queries, LAYOUT)
    assert ranges is not None
    return ranges


@given(patterns)
def test_the_whole_mask_is_what_the_pattern_means(said: Said) -> None:
    assert torch.equal(whole(bound(said)), brute_force(said, REAL, SLOTS, SLOTS))


@given(interval_patterns)
def test_dense_is_what_the_pattern_means(said: Said) -> None:
    dense = said.pattern.dense(LENGTH, **inputs(REAL, said.reads))
    assert len(dense) in (1, BATCH)
    assert torch.equal(dense.expand(BATCH, GROUPS, -1, -1), brute_force(said, REAL, SLOTS, SLOTS, GROUPS))


@given(patterns)
def test_visible_on_python_integers_is_what_the_pattern_means(said: Said) -> None:
    pattern = bound(said)
    for row, head, q, k in product(range(BATCH), range(HEADS), SLOTS, SLOTS):
        assert bool(pattern.visible(q, k, row, head)) == said.means(row, head // (HEADS // GROUPS), q, k)


@given(interval_patterns)
def test_ranges_contain_what_the_pattern_means(said: Said) -> None:
    contained = ranges_of(said).contains(torch.arange(-1, LENGTH + 2)[None]).expand(BATCH, HEADS, -1, -1)
    assert torch.equal(contained[..., 1:-2], brute_force(said, REAL, SLOTS, SLOTS))
    assert not contained[..., [0, -2, -1]].any()  # no such positions


@given(interval_patterns)
def test_ranges_count_their_keys(said: Said) -> None:
    counts = ranges_of(said).counts().expand(BATCH, HEADS, -1)
    assert torch.equal(counts, brute_force(said, REAL, SLOTS, SLOTS).sum(-1))


@given(interval_patterns)
def test_ranges_are_sorted_disjoint_and_never_touch_with_padding_behind(said: Said) -> None:
    ranges = ranges_of(said)
    assert ranges.start.dtype == ranges.end.dtype == torch.int32
    for start, end in zip(ranges.start.unbind(2), ranges.end.unbind(2), strict=True):
        assert ((start < end) | ((start == LENGTH) & (end == LENGTH))).all()
    gaps = ranges.start[:, :, 1:] - ranges.end[:, :, :-1]
    assert ((gaps > 0) | (ranges.start[:, :, 1:] == LENGTH)).all()
    assert ranges.start.shape[2] == 1 or (ranges.start[:, :, -1] < LENGTH).any()  # none that nobody uses


def test_a_head_says_no_intervals_that_only_another_needs() -> None:
    grids = (torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 1, 0]]))
    both = Ranges.per_head([Ranges.of_grid(grid.bool()[None, None]) for grid in grids])
    assert [both.of_head(head).start.shape[2] for head in range(2)] == [1, 2]


@given(three)
def test_laws_of_sets_hold_exactly_on_ranges(said: tuple[Said, Said, Said]) -> None:
    a, b, c = map(ranges_of, said)
    everything = a | ~a
    nothing = a & ~a
    assert ~(a & b) == ~a | ~b
    assert ~(a | b) == ~a & ~b
    assert a & (b | c) == (a & b) | (a & c)
    assert a | (b & c) == (a | b) & (a | c)
    assert (a & b) & c == a & (b & c)
    assert (a | b) | c == a | (b | c)
    assert ~~a == a
    assert a & a == a
    assert a | a == a
    assert a & everything == a
    assert a | nothing == a
    assert a & (a | b) == a
    assert a | (a & b) == a
    assert not nothing.counts().any()
    assert bool((everything.counts() == LENGTH).all())


@given(three)
def test_ranges_are_equal_exactly_if_their_masks_are(said: tuple[Said, Said, Said]) -> None:
    a, b, _ = said
    same = torch.equal(brute_force(a, REAL, SLOTS, SLOTS), brute_force(b, REAL, SLOTS, SLOTS))
    assert (ranges_of(a) == ranges_of(b)) == same


@given(patterns, patterns)
def test_operators_are_those_of_the_masks(a: Said, b: Said) -> None:
    masks = whole(bound(a)), whole(bound(b))
    assert torch.equal(whole(bound(a) & bound(b)), masks[0] & masks[1])
    assert torch.equal(whole(bound(a) | bound(b)), masks[0] | masks[1])
    assert torch.equal(whole(~bound(a)), ~masks[0])


@given(patterns)
def test_causal_is_never_claimed_wrongly(said: Said) -> None:
    future = brute_force(said, REAL, SLOTS, SLOTS).triu(1).any()
    assert not (said.pattern.causal and future)
    assert not (bound(said).causal and future)


@pytest.mark.parametrize(
    ("pattern", "causal"),
    [
        (PrefixLM(3) & SlidingWindow(2), True),  # one part is enough for a meet
        (PrefixLM(3) | SlidingWindow(2), False),  # a join needs all
        (Sink(4) | SlidingWindow(2), True),
        (SlidingWindow(2, symmetric=True), False),
        (Causal() & (Bidirectional() | Document()), True),
        (PrefixLM(0), True),
        (PrefixLM(), False),
        (~Causal(), False),
    ],
    ids=str,
)
def test_causal_is_claimed_where_the_pattern_shows_it(pattern: Pattern, causal: bool) -> None:
    assert pattern.causal == causal


@given(interval_patterns | interval_patterns.map(lambda said: said & batch_free))
def test_autoregressive_agrees_with_a_search(said: Said) -> None:
    seen, data = brute_force(said, REAL, SLOTS, SLOTS).any(0).any(0), inputs(REAL, said.reads)
    future = [(q, k) for q in SLOTS for k in SLOTS if k > q and seen[q, k]]
    assert first_future_key(said.pattern, LENGTH, **data) == (future[0] if future else None)
    assert is_autoregressive(said.pattern, LENGTH, **data) == (not future)


@given(patterns, st.integers(0, LENGTH - 1))
def test_stale_pairs_agree_with_a_search(said: Said, split: int) -> None:
    seen = brute_force(said, REAL, SLOTS, SLOTS).any(1)
    stale = [(q, k) for row in range(BATCH) for q in range(split) for k in range(split, LENGTH) if seen[row, q, k]]
    layout = replace(LAYOUT, q_offset=split)
    assert first_stale_pair(bound(said), layout) == (stale[0] if stale else None)


@pytest.mark.parametrize("operator", [and_, or_])
@pytest.mark.parametrize("other", [3, None, "causal", torch.ones(2, 2)], ids=str)
def test_an_operator_on_something_else_is_a_type_error(operator: Any, other: object) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        operator(Causal(), other)
