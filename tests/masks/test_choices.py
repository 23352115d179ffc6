"""Patterns for layers and for heads: how their numbers are named, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    PatternSyntaxError,
    PerHead,
    PerLayer,
    Sink,
    SlidingWindow,
)
from transformers.mask_patterns.config import config_value
from transformers.mask_patterns.layers import NATIVE, for_model, parse_masks


C, B, S = Causal(), Bidirectional(), Sink(4)
KINDS = ("full_attention", "sliding_attention", "full_attention", "sliding_attention")


@pytest.mark.parametrize(
    ("said", "layers"),
    [
        ({0: C, 1: B, 2: S, 3: C}, (C, B, S, C)),
        ({"0": C, "1": B, "2": S, "3": C}, (C, B, S, C)),
        ({"3": C, 1: B, "2": S, 0: C}, (C, B, S, C)),
        ({"0-3": S}, (S, S, S, S)),
        ({"0 - 1": S, " 2-3 ": C}, (S, S, C, C)),
        ({"1-2": S, "default": C}, (C, S, S, C)),
        ({"01-02": S, "default": C}, (C, S, S, C)),
        ({"default": S}, (S, S, S, S)),
        ({"full_attention": S, "sliding_attention": "native"}, (S, NATIVE, S, NATIVE)),
        ({"sliding_attention": S, "default": NATIVE}, (NATIVE, S, NATIVE, S)),
        ({"sliding_attention": S, 2: C, 0: B}, (B, S, C, S)),
        ({"sliding_attention": S, 2: C, "default": B}, (B, S, C, S)),
        ({"0": "causal", "default": "sink(4) | causal"}, (C, S | C, S | C, S | C)),
    ],
)
def test_layers_are_named_by_number_range_type_and_default(said: dict[Any, Any], layers: tuple[Any, ...]) -> None:
    assert PerLayer(said).patterns(4, KINDS) == layers
    again = parse_masks(json.loads(json.dumps(config_value(said))))
    assert isinstance(again, PerLayer)
    assert again == PerLayer(said)
    assert again.patterns(4, KINDS) == layers
    assert PerLayer.parse(str(again)) == again


def test_a_meaning_has_one_form() -> None:
    assert PerLayer({0: C, 1: C, 2: S}) == PerLayer({"2": S, "0-1": "causal"})
    assert config_value({2: S, 0: C, 1: C}) == {"0-1": "causal", "2": "sink(4)"}
    assert PerHead({1: C, 0: C}) == PerHead({"0-1": C})


def test_without_types_every_layer_has_full_attention() -> None:
    assert PerLayer({"full_attention": S}).patterns(2) == (S, S)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({0: C, "0": S}, "`mask_pattern`: got 0 named twice; expected every number named once"),
        ({"0-2": C, "2-3": S}, "`mask_pattern`: got 2-3 named twice"),
        ({"0-3": C, 1: S}, "`mask_pattern`: got 1 named twice"),
        ({"0-3": C, "default": S, "3": C}, "`mask_pattern`: got 3 named twice"),
        ({}, "`mask_pattern`: got an empty mapping; expected at least one key"),
        ({"3-1": C}, "`mask_pattern`: got the key '3-1'; expected a number, a range"),
        ({"1-": C}, "got the key '1-'"),
        ({"-1": C}, "got the key '-1'"),
        ({"Full": C}, "got the key 'Full'"),
        ({"٣": C}, "got the key '٣'"),
        ({0: "casual"}, r"(?s)^mask_pattern\[0\]: this is not a mask pattern:\n  casual\n  \^\nexpected one of"),
        ({"1": {"per_head": {"0": "sink(4) causal"}}}, r"(?s)^mask_pattern\['1'\]: groups\['0'\]: .*\n          \^\n"),
        ({0: {"0": C}}, r"`mask_pattern\[0\]`: got a dict; expected a pattern, its text, .*Layers do not nest"),
        ({0: PerLayer({"default": C})}, r"`mask_pattern\[0\]`: got a PerLayer; .*Layers do not nest"),
        ({0: 3}, r"`mask_pattern\[0\]`: got a int"),
    ],
)
def test_a_malformed_mapping_is_refused_with_its_key(said: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerLayer(said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({0: C, "2-3": C}, "`mask_pattern`: got nothing for 1; expected every number covered. Add a 'default'"),
        ({"full_attention": C}, "got nothing for 1"),
        ({"0-4": C}, "`mask_pattern`: got 0-4; expected numbers from 0 to 3"),
        ({7: C, "default": C}, "`mask_pattern`: got 7; expected numbers from 0 to 3"),
        ({"chunked_attention": C, "default": C}, "got chunked_attention; expected one of full_attention, sliding_att"),
        ({"sliding_attention": C, 1: S, "default": C}, "got 1 named twice, by its number and as sliding_attention"),
        ({"default": PerHead({5: C, "default": S})}, "`groups`: got 5; expected numbers from 0 to 1"),
        ({"default": PerHead({0: C})}, "`groups`: got nothing for 1; expected every number covered"),
        ({"0-2": C, 3: ~(B & PerHead({2: C, "default": S}))}, "`groups`: got 2; expected numbers from 0 to 1"),
    ],
)
def test_a_mapping_that_does_not_fit_a_model_is_refused(said: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        for_model(PerLayer(said), 4, KINDS, 2)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({0: "causal", "full_attention": "causal"}, "`groups`: got the key 'full_attention'; expected a number, a ra"),
        ({0: "native"}, r"groups\[0\]: this is not a mask pattern"),
        ({0: NATIVE}, r"`groups\[0\]`: got .*native.*; expected a pattern or its text. Heads cannot be 'native'"),
        ({0: C, "0": C}, "`groups`: got 0 named twice"),
        ({}, "`groups`: got an empty mapping"),
        ([C], "`groups`: got .*; expected a mapping"),
    ],
)
def test_malformed_heads_are_refused(said: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerHead(said)


def test_heads_in_a_configuration() -> None:
    both = {"0": PerHead({0: C, "default": S}), "default": "native"}
    saved = {"0": {"per_head": {"0": "causal", "default": "sink(4)"}}, "default": "native"}
    assert config_value(both) == saved
    assert parse_masks(saved) == PerLayer(both)
    heads = {"per_head": {"0-1": "causal", "2": "sink(4) | sliding_window(8)"}}
    assert parse_masks(heads) == PerHead({0: C, 1: C, 2: S | SlidingWindow(8)})
    assert config_value(heads) == heads
    under = C & ~PerHead({0: S, "default": B})
    assert config_value(under) == "causal & ~per_head(0: sink(4), default: bidirectional)"
    with pytest.raises(PatternSyntaxError, match="at most 10,000"):
        config_value(PerHead({2 * n: Sink(10**8 + n) for n in range(400)}))


spans = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3, unique=True)


@given(spans, st.booleans(), st.integers(1, 9))
def test_ranges_give_each_number_what_names_it(given_spans: list[tuple[int, int]], default: bool, count: int) -> None:
    """Against a table, filled number by number."""
    said: dict[str, Any] = {f"{a}-{b}": Sink(i) for i, (a, b) in enumerate(given_spans)}
    table: dict[int, list[Any]] = {n: [] for n in range(10)}
    for i, (a, b) in enumerate(given_spans):
        for n in range(a, b + 1):
            table[n].append(Sink(i))
    bad = any(a > b for a, b in given_spans) or any(len(found) > 1 for found in table.values())
    bad = bad or any(table[n] for n in range(count, 10))
    said |= {"default": C} if default else {}
    bad = bad or not said or (not default and any(not table[n] for n in range(count)))
    if bad:
        with pytest.raises(ValueError, match="`mask_pattern`: got "):
            PerLayer(said).patterns(count)
    else:
        assert PerLayer(said).patterns(count) == tuple((table[n] or [C])[0] for n in range(count))
