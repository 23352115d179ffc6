"""Simpler patterns mean the same, in no more words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from random_masks import GROUPS, HEADS, Said, brute_force, inputs, said_patterns, unpadded

from transformers.mask_patterns import Pattern, SlidingWindow
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import key_ranges, visible_grid
from transformers.mask_patterns.positions import Layout


REAL = unpadded(2, 6)
LAYOUT = Layout.of(2, 6, heads=HEADS, groups=GROUPS)


def words(pattern: Pattern) -> int:
    """Patterns and operators."""
    return 1 + sum(map(words, pattern.parts))


@given(said_patterns(REAL))
def test_a_simpler_pattern_means_the_same_whether_simplified_before_or_after_its_data_is_bound(said: Said) -> None:
    rows = Rows(LAYOUT, inputs(REAL))
    expected = brute_force(said, REAL, range(6), range(6))
    for simple in (said.pattern.simplified().bind(rows), said.pattern.bind(rows).simplified()):
        assert torch.equal(visible_grid(simple, LAYOUT).expand(2, HEADS, -1, -1), expected)


@given(said_patterns(REAL, functions=False))
def test_ranges_stay_the_same(said: Said) -> None:
    bound = said.pattern.bind(Rows(LAYOUT, inputs(REAL)))
    assert key_ranges(bound.simplified(), LAYOUT.queries, LAYOUT) == key_ranges(bound, LAYOUT.queries, LAYOUT)


@given(said_patterns(REAL))
def test_simplifying_never_says_more_claims_no_less_and_is_done_at_once(said: Said) -> None:
    simple = said.pattern.simplified()
    assert words(simple) <= words(said.pattern)
    assert simple.causal >= said.pattern.causal
    assert simple.simplified() == simple


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("~~causal", "causal"),
        ("~~~sink(1)", "~sink(1)"),
        ("causal & causal", "causal"),
        ("document | sink(1) | document", "document | sink(1)"),
        ("bidirectional & document", "document"),
        ("bidirectional | document", "bidirectional"),
        ("~bidirectional | document", "document"),
        ("~bidirectional & document", "sink(0)"),  # nothing
        ("~bidirectional", "sink(0)"),
        ("~sink(0)", "bidirectional"),
        ("document & ~document", "sink(0)"),
        ("document | ~document", "bidirectional"),
        ("(document | sink(1)) & document", "document"),
        ("document & sink(1) | document", "document"),
        ("causal & sliding_window(3)", "sliding_window(3)"),
        ("causal | sliding_window(3)", "causal"),
        ("causal & sliding_window(3, symmetric=true)", None),
        ("sliding_window(3) & sliding_window(5)", "sliding_window(3)"),
        ("sliding_window(3) | document | sliding_window(5)", "sliding_window(5) | document"),
        ("sink(1) | causal | sliding_window(5, symmetric=true)", "causal | sliding_window(5, symmetric=true)"),
        ("sink(3) & sink(5)", "sink(3)"),
        ("prefix_lm(3) & prefix_lm(5)", "prefix_lm(3)"),
        ("prefix_lm(3) | prefix_lm(5)", "prefix_lm(5)"),
        ("prefix_lm | prefix_lm(5)", None),
        ("global_tokens(3) | global_tokens(5)", "global_tokens(5)"),
        ("sink(0)", None),
        ("global_tokens(0)", "sink(0)"),
        ("sink(0) | sliding_window(3)", "sliding_window(3)"),
        ("prefix_lm(0)", "causal"),
        ("prefix_lm(0) & document", "causal & document"),
        ("global_tokens(0) | document", "document"),
        ("document(bidirectional)", "document"),
        ("document(causal & sink(2))", "document(sink(2))"),
        ("per_head(0: causal, default: ~~causal)", "causal"),
        ("per_head(0: ~~causal, 1: causal)", "per_head(0-1: causal)"),
        ("chunked(2) & chunked(3)", None),
        ("document & (sink(1) & document)", "document & sink(1)"),
        ("~(document & bidirectional)", "~document"),
    ],
)  # fmt: skip
def test_the_rules(text: str, simple: str | None) -> None:
    """Where no simpler text stands, there is none."""
    assert str(Pattern.parse(text).simplified()) == (simple or text)


class Wider(SlidingWindow):
    """A user's class, which may see otherwise than the one that it inherits from."""


@pytest.mark.parametrize("own", [Wider(5) & SlidingWindow(2), Wider(2) | SlidingWindow(5)])
def test_a_class_of_the_user_is_not_taken_for_the_librarys(own: Pattern) -> None:
    assert own.simplified() == own
