"""FlashAttention's arguments show exactly what the pattern shows, or there are none and the reason is said."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Said, brute_force, inputs, padded, said_patterns
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    BlockCausal,
    Causal,
    Chunked,
    Dilated,
    Document,
    Pattern,
    PerHead,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import visible_grid
from transformers.mask_patterns.lowering.flash import FlashArguments, Obstacle, Packed, flash_arguments
from transformers.mask_patterns.positions import Held, Layout


def window(arguments: FlashArguments) -> tuple[int, int]:
    """As flash-attn takes it: how far back and ahead, -1 for any."""
    side = -1 if arguments.window is None else arguments.window - 1
    return side, 0 if arguments.is_causal else side


def one_sequence(queries: int, keys: int, left: int, right: int) -> Tensor:
    """What flash-attn shows of a sequence: bool `(queries, keys)`, its last query at its last key."""
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        place = i + keys - queries
        for j in range(keys):
            seen[i, j] = (left < 0 or j >= place - left) and (right < 0 or j <= place + right)
    return seen


def shown(arguments: FlashArguments, layout: Layout) -> Tensor:
    """What the arguments show of a forward: bool `(batch, queries, keys)`."""
    left, right = window(arguments)
    packed = arguments.packed
    if packed is None:
        return one_sequence(layout.q_length, layout.kv_length, left, right).expand(layout.batch, -1, -1)
    seen = torch.zeros(layout.batch * layout.q_length, layout.batch * layout.kv_length, dtype=torch.bool)
    ends = list(zip(packed.query_ends.tolist(), packed.key_ends.tolist(), strict=True))
    assert ends[0] == (0, 0)
    assert ends[-1] == (len(packed.queries), len(packed.keys))
    for (q0, k0), (q1, k1) in zip(ends, ends[1:], strict=False):
        places = packed.queries[q0:q1, None], packed.keys[None, k0:k1]
        seen[places] = one_sequence(q1 - q0, k1 - k0, left, right)
        assert q1 - q0 <= packed.most_queries
        assert k1 - k0 <= packed.most_keys
    grid = seen.view(layout.batch, layout.q_length, layout.batch, layout.kv_length)
    for row in range(layout.batch):
        assert not grid[row, :, [other for other in range(layout.batch) if other != row]].any()
    return torch.stack([grid[row, :, row] for row in range(layout.batch)])


def arguments_of(pattern: Pattern, layout: Layout) -> FlashArguments:
    found = flash_arguments(pattern.bind(Rows(layout)), layout)
    assert isinstance(found, FlashArguments), found
    return found


def check(pattern: Pattern, layout: Layout) -> FlashArguments:
    arguments = arguments_of(pattern, layout)
    bound = pattern.bind(Rows(layout))
    want = visible_grid(bound, layout)[:, 0].expand(layout.batch, -1, -1)
    assert torch.equal(shown(arguments, layout), want)
    return arguments


IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 2]])
WHOLE: dict[str, tuple[Pattern, tuple[int, int]]] = {  # and what flash-attn calls it
    "causal": (Causal(), (-1, 0)),
    "bidirectional": (Bidirectional(), (-1, -1)),
    "window": (SlidingWindow(4), (3, 0)),
    "symmetric window": (SlidingWindow(4, symmetric=True), (3, 3)),
    "itself alone": (SlidingWindow(1), (0, 0)),
    "a window wider than the row": (SlidingWindow(9), (-1, 0)),
    "the narrower of two windows": (SlidingWindow(6) & SlidingWindow(2, symmetric=True), (1, 0)),
    "the wider of two windows": (SlidingWindow(2) | SlidingWindow(5), (4, 0)),
    "a prefix of everything": (PrefixLM(9), (-1, -1)),
    "dilated by nothing": (Dilated(3, 1), (2, 0)),
    "one chunk": (Chunked(9), (-1, 0)),
    "one document": (Causal() & Document(torch.zeros(2, 9, dtype=torch.long)), (-1, 0)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_rows(name: str) -> None:
    pattern, expected = WHOLE[name]
    arguments = check(pattern, Layout.of(2, 9, heads=HEADS, groups=GROUPS))
    assert arguments.packed is None or name == "itself alone"
    assert window(arguments) == expected


DOCUMENTS: dict[str, tuple[Pattern, tuple[int, int]]] = {
    "causal": (Causal() & Document(IDS), (-1, 0)),
    "bidirectional": (Document(IDS), (-1, -1)),
    "window": (Document(IDS) & SlidingWindow(3), (2, 0)),
    "symmetric window": (Document(SlidingWindow(3, symmetric=True), IDS), (2, 2)),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str) -> None:
    pattern, expected = DOCUMENTS[name]
    arguments = check(pattern, Layout.of(2, 9))
    assert arguments.packed is not None
    assert arguments.packed.query_ends.tolist() == [0, 3, 5, 9, 10, 17, 18]
    assert arguments.packed.key_ends.tolist() == [0, 3, 5, 9, 10, 17, 18]
    assert (arguments.packed.most_queries, arguments.packed.most_keys) == (7, 7)
    assert window(arguments) == expected


def test_chunks_are_documents() -> None:
    packed = check(Chunked(4), Layout.of(1, 9)).packed
    assert packed is not None
    assert packed.query_ends.tolist() == [0, 4, 8, 9]


def test_a_token_behind_a_cache() -> None:
    layout = Layout.of(2, 1, q_offset=8)
    for pattern in (Causal(), SlidingWindow(3), PrefixLM(4), PrefixLM(torch.tensor([3, 5])), Bidirectional()):
        assert check(pattern, layout).packed is None
    packed = check(Causal() & Document(IDS), layout).packed
    assert packed is not None
    assert packed.query_ends.tolist() == [0, 1, 2]
    assert packed.key_ends.tolist() == [0, 4, 5]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Forwards over caches of all kinds, with padding anywhere and some token."""
    real = torch.tensor(draw(padded().filter(lambda rows: any(row[-1] for row in rows))))
    slots = real.shape[1]
    q_offset = draw(st.integers(0, slots - 1))
    held, kv_length = None, slots + draw(st.sampled_from([0, 0, 3]))
    if q_offset and draw(st.booleans()):
        held, kv_length = Held(torch.arange(q_offset), q_offset), slots
    known = None if bool(real.all()) else real
    return Layout.of(len(real), slots - q_offset, real=known, q_offset=q_offset, kv_length=kv_length, held=held)


@st.composite
def sayable(draw: st.DrawFn) -> tuple[Pattern, Layout]:
    """What FlashAttention can do: a window or none, in documents or none; causal where tokens are cached."""
    layout = draw(layouts())
    width = st.integers(1, 9)
    causal = st.sampled_from([Causal()]) | width.map(SlidingWindow)
    both = st.sampled_from([Bidirectional()]) | width.map(lambda w: SlidingWindow(w, symmetric=True))
    inside = draw(causal | both if layout.q_offset == 0 else causal)
    lengths = st.lists(st.booleans(), min_size=layout.slots, max_size=layout.slots)
    ids = torch.tensor(draw(st.lists(lengths, min_size=layout.batch, max_size=layout.batch))).long().cumsum(-1)
    return draw(st.sampled_from([inside, inside & Document(ids), Document(inside, ids)])), layout


@given(sayable())
@settings(max_examples=150)
def test_windows_in_documents_have_arguments_that_show_the_same(example: tuple[Pattern, Layout]) -> None:
    check(*example)


@given(st.data())
@settings(max_examples=100)
def test_any_pattern_has_arguments_that_show_the_same_or_none(data: st.DataObject) -> None:
    real = data.draw(padded())
    said: Said = data.draw(said_patterns(real, depth=3))
    layout = Layout.of(len(real), len(real[0]), real=torch.tensor(real), heads=HEADS, groups=GROUPS)
    bound = said.pattern.bind(Rows(layout, inputs(real, said.reads)))
    arguments = flash_arguments(bound.simplified(), layout)
    if isinstance(arguments, FlashArguments):
        slots = range(len(real[0]))
        want = brute_force(said, real, slots, slots)
        assert torch.equal(shown(arguments, layout)[:, None].expand(want.shape), want)


NOTHING_BUT_PADDING = Layout.of(1, 2, real=torch.tensor([[True, False, False]]), q_offset=1)
OBSTACLES: list[tuple[Obstacle, Pattern, Layout]] = [
    (Obstacle.HEADS, PerHead({0: Causal(), 1: SlidingWindow(2)}), Layout.of(1, 5, heads=HEADS, groups=GROUPS)),
    (Obstacle.RUNS, Sink(1) | SlidingWindow(2), Layout.of(1, 5)),
    (Obstacle.RUNS, from_function(lambda b, h, q, k: k <= q), Layout.of(1, 5)),
    (Obstacle.RUNS, Causal() & Document(torch.tensor([[0, 1, 0]])), Layout.of(1, 3)),
    (Obstacle.ITSELF, Sink(2), Layout.of(1, 5)),
    (Obstacle.ITSELF, Causal() & ~SlidingWindow(1), Layout.of(1, 5)),
    (Obstacle.SHAPE, PrefixLM(2), Layout.of(1, 5)),
    (Obstacle.SHAPE, PrefixLM(torch.tensor([0, 5])), Layout.of(2, 5)),
    (Obstacle.SHAPE, BlockCausal(2), Layout.of(1, 5)),
    (Obstacle.SHAPE, Causal() | SlidingWindow(2, symmetric=True), Layout.of(1, 5)),
    (Obstacle.SHAPE, SlidingWindow(3) | SlidingWindow(2, symmetric=True), Layout.of(1, 5)),
    (Obstacle.DROPPED, Causal(), Layout.of(1, 1, q_offset=4, kv_offset=2, kv_length=3)),
    (Obstacle.NO_TOKEN, Causal(), NOTHING_BUT_PADDING),
]


@pytest.mark.parametrize(("obstacle", "pattern", "layout"), OBSTACLES, ids=[f"{o.name}-{p}" for o, p, _ in OBSTACLES])
def test_what_flash_attention_cannot_say(obstacle: Obstacle, pattern: Pattern, layout: Layout) -> None:
    assert flash_arguments(pattern.bind(Rows(layout)), layout) is obstacle


def test_queries_come_back_to_their_places() -> None:
    layout = Layout.of(2, 3, real=torch.tensor([[False, True, True], [True, False, True]]))
    packed = check(Causal(), layout).packed
    assert isinstance(packed, Packed)
    output = packed.unpacked(torch.arange(1.0, 5).view(1, 4, 1, 1), 2, 3)
    assert output[..., 0, 0].tolist() == [[0, 1, 2], [3, 0, 4]]
