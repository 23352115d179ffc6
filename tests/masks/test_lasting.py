"""`lasting`: what it lets a cache drop, no later query may see; and for many patterns nothing else stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Real, Said, brute_force, inputs, padded, said_patterns
from torch import Tensor

from transformers.mask_patterns import (
    Causal,
    Chunked,
    Dilated,
    Document,
    Gist,
    GlobalTokens,
    Pattern,
    PerHead,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)
from transformers.mask_patterns.caches import lasting_slots
from transformers.mask_patterns.checks import first_revised_pair
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.positions import Held, Layout


def layout(real: Real, past: int, now: int) -> Layout:
    """Of a forward of `now - past` slots behind `past` cached ones."""
    known = torch.tensor(real)[:, :now]
    return Layout.of(len(real), now - past, real=known, q_offset=past, heads=HEADS, groups=GROUPS)


def bound(said: Said, real: Real, past: int, now: int) -> tuple[Pattern, Rows]:
    """The pattern as a forward binds it that knows the tokens before slot `now` only."""
    data = {name: tensor[:, :now] for name, tensor in inputs(real, said.reads).items()}
    rows = Rows(layout(real, past, now), data, later=len(real[0]) - now)
    return said.pattern.bind(rows).simplified(), rows


@settings(max_examples=150)
@given(st.data())
def test_what_is_dropped_is_never_seen_again(data: st.DataObject) -> None:
    real = data.draw(padded())
    total = len(real[0])
    said = data.draw(said_patterns(real, depth=2))
    past = data.draw(st.integers(0, total - 1))
    now = data.draw(st.integers(past + 1, total))
    try:
        known, rows = bound(said, real, past, now)
        revised = first_revised_pair(said.pattern, *bound(said, real, past, total))
    except ValueError:  # trees and halves of a row fit no shorter rows
        reject()
    assume(revised is None)  # else a cache refuses it
    kept = lasting_slots(known, rows.layout, torch.arange(past))
    seen = brute_force(said, real, range(past, total), range(past))
    assert not (seen.any(0).any(0).any(0) & ~kept).any()


MARKED = torch.tensor([[0, 0, 1, 1] + [0] * 56])
IDS = torch.arange(60)[None] // 13
EXACT: dict[str, Pattern] = {
    "window": SlidingWindow(7),
    "symmetric window": SlidingWindow(7, symmetric=True),
    "sinks": Sink(4),
    "no sinks": Sink(0),
    "sinks and a window": Sink(4) | SlidingWindow(7),
    "chunks": Chunked(9),
    "chunks and sinks": Chunked(9) | Sink(2),
    "dilated": Dilated(3, 4),
    "many dilated": Dilated(40, 1),
    "first tokens": Causal() & (GlobalTokens(3) | SlidingWindow(5, symmetric=True)),
    "gist tokens": Gist(MARKED),
    "gist tokens in a window": Gist(MARKED) & (Sink(4) | SlidingWindow(11)),
    "a window per document": Document(Sink(1) | SlidingWindow(4), IDS),
    "documents in one piece": Document(Causal(), IDS),
    "documents from tokens": Causal() & Document(separator=1),
    "heads": PerHead({0: Sink(2), 1: SlidingWindow(5)}),
    "causal": Causal(),
    "prefix": PrefixLM(9),
    "a function in a window": SlidingWindow(7) & from_function(lambda b, h, q, k: q == q),
}


def later_queries_see(pattern: Pattern, past: int, tokens: Tensor) -> Tensor:
    """Which of the first `past` keys a query from there on sees, in one mask of the whole row."""
    reads = {"input_ids": tokens} if "separator" in str(pattern) else {}
    return pattern.dense(tokens.shape[1], heads=HEADS, **reads)[0, :, past:, :past].any(0).any(0)


@pytest.mark.parametrize("past", [1, 5, 13, 20, 26, 33])
@pytest.mark.parametrize("name", EXACT)
def test_nothing_stays_that_is_not_seen_again(name: str, past: int) -> None:
    tokens = (torch.arange(60)[None] % 13 == 12).long()
    pattern, real = EXACT[name], [[True] * 60]
    rows = Rows(layout(real, past, past + 1), {"input_ids": tokens[:, : past + 1]}, later=59 - past)
    kept = lasting_slots(pattern.bind(rows).simplified(), rows.layout, torch.arange(past))
    assert kept.tolist() == later_queries_see(pattern, past, tokens).tolist()


def test_ids_that_may_come_back_keep_their_documents() -> None:
    rows = Rows(layout([[True] * 5], 4, 5), {})
    pattern = (Causal() & Document(torch.tensor([[0, 0, 1, 1, 1]]))).bind(rows)
    assert lasting_slots(pattern, rows.layout, torch.arange(4)).all()


def test_a_slot_stays_as_long_as_some_row_needs_it() -> None:
    """Behind 3 padding slots the second row's sinks and window lie elsewhere; the third has no new token."""
    real = [[True] * 12, [False] * 3 + [True] * 9, [True] * 8 + [False] * 4]
    at = layout(real, 10, 12)
    pattern = Sink(1) | SlidingWindow(3)
    assert lasting_slots(pattern, at, torch.arange(10)).nonzero()[:, 0].tolist() == [0, 3, 5, 6, 7, 8, 9]


def test_held_slots_are_what_the_keys_are() -> None:
    held = Held(torch.tensor([0, 1, 5]), 7)
    assert held.slots(9).tolist() == [0, 1, 5, 7, 8]
    assert held.dropped.tolist() == [2, 3, 4, 6]
    assert not held.is_all
    assert Held(torch.arange(7), 7).is_all
    real = torch.tensor([[True] * 9, [False] * 2 + [True] * 7])
    at = Layout.of(2, 1, real=real, q_offset=8, kv_length=5, held=held)
    assert at.keys.tolist() == [[0, 1, 5, 7, 8], [-1, -1, 3, 5, 6]]
    assert at.dropped.tolist() == [[2, 3, 4, 6], [0, 1, 2, 4]]
