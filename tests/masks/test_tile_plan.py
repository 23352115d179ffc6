"""The plan of tiles: every query once, exactly the keys it may see, and masks that do not grow with the length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Said, brute_force, inputs, padded, said_patterns, unpadded
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    BlockDiffusion,
    Causal,
    Chunked,
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
from transformers.mask_patterns.lowering.tile_plan import tile_plan
from transformers.mask_patterns.lowering.tiles import PartialMask, Segment, TilePlan
from transformers.mask_patterns.positions import Held, Layout


def plan_of(pattern: Pattern, layout: Layout, size: int = 0) -> TilePlan:
    plan = tile_plan(pattern.bind(Rows(layout)), layout, always=True, size=size)
    assert plan is not None
    return plan


def grid(plan: TilePlan, layout: Layout) -> Tensor:
    """What a plan shows, bool `(batch, heads, queries, keys)`: every query in one tile, every key in one segment."""
    seen = torch.full((layout.batch, layout.heads, layout.q_length, layout.kv_length), -1)
    served = layout.heads // layout.groups
    for part in plan.parts:
        assert {head // served for head in range(layout.heads)[part.place.heads]} == set(
            range(layout.groups)[part.place.groups]
        )
        for tile in part.tiles:
            mine = seen[part.place.rows, part.place.heads, tile.start : tile.end]
            assert (mine == -1).all()
            mine.fill_(0)
            for segment in tile.segments:
                keys = mine[..., segment.start : segment.end]
                assert (keys == 0).all()
                keys.copy_(shown(segment, tile.end - tile.start).expand(keys.shape))
            nothing = ~mine.bool().any(-1)
            told = torch.zeros(tile.end - tile.start).bool() if tile.empty is None else tile.empty
            assert torch.equal(nothing, told.expand(nothing.shape))
    assert (seen >= 0).all()
    return seen.bool()


def shown(segment: Segment, queries: int) -> Tensor:
    if segment.is_causal:
        assert (segment.mask, segment.end - segment.start) == (None, queries)
        return torch.ones(queries, queries).tril().bool()
    if segment.mask is None:
        return torch.ones(queries, segment.end - segment.start).bool()
    mask = segment.mask.additive(torch.bfloat16)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, -torch.inf}
    assert torch.equal(segment.mask.blind, (mask == -torch.inf).all(1))
    return mask == 0


def masks(plan: TilePlan) -> list[PartialMask]:
    segments = [segment for part in plan.parts for tile in part.tiles for segment in tile.segments]
    return list({id(segment.mask): segment.mask for segment in segments if segment.mask is not None}.values())


@settings(max_examples=150)
@given(st.data())
def test_a_plan_shows_what_the_pattern_means(data: st.DataObject) -> None:
    real = data.draw(padded())
    said = data.draw(said_patterns(real, depth=3, functions=False))
    slots = len(real[0])
    q_offset = data.draw(st.integers(0, slots - 1))
    kv_length = slots + data.draw(st.integers(0, 2))
    size = data.draw(st.sampled_from([1, 2, 3, 16]))
    layout = Layout.of(
        len(real),
        slots - q_offset,
        real=torch.tensor(real),
        q_offset=q_offset,
        kv_length=kv_length,
        heads=HEADS,
        groups=GROUPS,
    )
    plan = tile_plan(said.pattern.bind(Rows(layout, inputs(real))), layout, always=True, size=size)
    if plan is None:  # what has no ranges
        return
    assert torch.equal(grid(plan, layout), brute_force(said, real, range(q_offset, slots), range(kv_length)))


def test_rows_with_the_same_ranges_and_other_padding_within_them() -> None:
    real = torch.tensor([[True, False, False, True, True], [True] * 5])
    layout = Layout.of(2, 1, real=real, q_offset=4, heads=HEADS, groups=GROUPS)
    plan = tile_plan(Causal(), layout, always=True, size=2)
    assert plan is not None
    assert torch.equal(grid(plan, layout), real[:, None, None].expand(2, HEADS, 1, 5))


@settings(max_examples=15)
@given(said_patterns(unpadded(2, 300), depth=2, functions=False), st.sampled_from([0, 64, 100]))
def test_so_does_one_of_long_rows(said: Said, size: int) -> None:
    layout = Layout.of(2, 300, heads=HEADS, groups=GROUPS)
    plan = tile_plan(said.pattern.bind(Rows(layout, inputs(unpadded(2, 300)))), layout, always=True, size=size)
    if plan is not None:
        bound = said.pattern.bind(Rows(layout, inputs(unpadded(2, 300))))
        assert torch.equal(grid(plan, layout), visible_grid(bound, layout).expand(2, HEADS, -1, -1))


def test_a_cache_that_has_dropped_keys_is_indexed_by_what_it_holds() -> None:
    kept = torch.tensor([0, 1, 5, 40, 41])
    layout = Layout.of(2, 30, q_offset=60, kv_length=45, heads=2, held=Held(kept, 50))
    q, k = torch.arange(60, 90)[:, None], torch.cat([kept, torch.arange(50, 90)])[None]
    seen = (k < 2) & (k <= q) | (k <= q) & (q - k < 22)
    got = grid(plan_of(Sink(2) | SlidingWindow(22), layout, size=16), layout)
    assert torch.equal(got, seen.expand_as(got))


def test_keys_that_start_late_are_indexed_by_what_there_is() -> None:
    layout = Layout.of(1, 30, q_offset=60, kv_offset=40, kv_length=50)
    q, k = torch.arange(60, 90)[:, None], torch.arange(40, 90)[None]
    assert torch.equal(grid(plan_of(SlidingWindow(20), layout, size=16), layout)[0, 0], (k <= q) & (q - k < 20))


@pytest.mark.parametrize(
    "pattern",
    [
        SlidingWindow(200),
        Sink(4) | SlidingWindow(100),
        PrefixLM(700),
        Chunked(128),
        Causal() & Document(torch.arange(4096) // 512),
        BlockDiffusion(64),
        PerHead({0: Causal(), "default": SlidingWindow(64)}),
    ],
    ids=str,
)
def test_tiles_that_look_alike_share_their_mask(pattern: Pattern) -> None:
    """So a plan takes no memory for masks that grows with the length."""
    layout = Layout.of(1, 4096, heads=HEADS, groups=GROUPS)
    kept = masks(plan_of(pattern, layout, size=128))
    assert len(kept) <= 12
    assert sum(mask.start.shape[1] * mask.keys for mask in kept) <= 2**19


def test_only_the_edges_are_masked() -> None:
    layout = Layout.of(1, 4096)
    assert masks(plan_of(Bidirectional(), layout)) == []
    assert masks(plan_of(Chunked(512) | ~Chunked(512), layout)) == []
    tiles = plan_of(Causal(), layout, size=256).parts[0].tiles
    widths = [segment.end - segment.start for tile in tiles for segment in tile.segments if segment.mask is not None]
    assert max(widths) < 1024
    assert sum(s.end - s.start for s in tiles[-1].segments) == 4096
    first = tiles[15].segments[0]
    assert (first.start, first.end, first.mask) == (0, 3840, None)  # of 3,841, as the masked rest is to come out even


LENGTHS = [[1000, 1048], [700, 600, 748]]  # of documents, row by row


@pytest.mark.parametrize(
    ("pattern", "runs"),
    [
        (Causal(), [[2048], [2048]]),
        (Causal() & Chunked(1024), [[1024, 1024]] * 2),
        (Causal() & Document(torch.stack([torch.repeat_interleave(torch.tensor(n)) for n in LENGTHS])), LENGTHS),
    ],
    ids=str,
)
def test_causal_pieces_are_one_tile_each_without_a_mask(pattern: Pattern, runs: list[list[int]]) -> None:
    layout = Layout.of(2, 2048, heads=HEADS, groups=GROUPS)
    bound = pattern.bind(Rows(layout))
    plan = plan_of(bound, layout)
    for part in plan.parts:
        for row in range(part.place.rows.start, part.place.rows.stop):
            assert [tile.end - tile.start for tile in part.tiles] == runs[row]
        assert all(tile.segments[0].is_causal for tile in part.tiles)
    assert torch.equal(grid(plan, layout), visible_grid(bound, layout).expand(2, HEADS, -1, -1))


def test_what_is_not_causal_pieces_is_cut_evenly() -> None:
    padded = Layout.of(1, 2048, real=torch.arange(2048)[None] >= 5)
    behind = Layout.of(1, 1024, q_offset=1024)
    for pattern, layout in ((Causal(), padded), (Causal(), behind), (SlidingWindow(700), Layout.of(1, 2048))):
        segments = [s for part in plan_of(pattern, layout).parts for tile in part.tiles for s in tile.segments]
        assert not any(segment.is_causal for segment in segments)
    many = Causal() & Document(torch.arange(2048) // 16)  # short documents: a call for each would cost more
    assert len(plan_of(many.bind(Rows(Layout.of(1, 2048))), Layout.of(1, 2048)).parts[0].tiles) <= 32


def test_tiles_leave_out_what_nobody_sees() -> None:
    """The keys of a tile: no more than tile + window + sinks, what has a mask rounded up to a multiple of 16."""
    for pattern, most in ((SlidingWindow(512), 640), (Sink(4) | SlidingWindow(512), 656), (Chunked(512), 512)):
        tiles = plan_of(pattern, Layout.of(1, 8192), size=128).parts[0].tiles
        assert max(sum(s.end - s.start for s in tile.segments) for tile in tiles) <= most


def test_rows_and_heads_that_agree_are_one_part() -> None:
    layout = Layout.of(3, 300, heads=8, groups=4)
    assert len(plan_of(SlidingWindow(9), layout).parts) == 1
    lengths = torch.tensor([5, 5, 9])
    assert [part.place.rows for part in plan_of(PrefixLM(lengths), layout).parts] == [slice(0, 2), slice(2, 3)]
    heads = PerHead({0: Causal(), "1-2": SlidingWindow(9), 3: Causal()})
    parts = plan_of(heads, layout).parts
    assert [(part.place.heads, part.place.groups) for part in parts] == [
        (slice(0, 2), slice(0, 1)),
        (slice(2, 6), slice(1, 3)),
        (slice(6, 8), slice(3, 4)),
    ]


def test_what_has_no_ranges_or_is_small_or_shows_all_stays_dense() -> None:
    small, large = Layout.of(1, 64), Layout.of(1, 4096)
    assert tile_plan(SlidingWindow(4), small) is None
    assert tile_plan(SlidingWindow(4), large) is not None
    assert tile_plan(from_function(lambda b, h, q, k: k <= q), large, always=True) is None
    assert tile_plan(~Document(torch.arange(600) // 7).bind(Rows(Layout.of(1, 600))), Layout.of(1, 600)) is None


def test_rows_without_tokens_have_tiles_without_keys() -> None:
    layout = Layout.of(2, 5, real=torch.zeros(2, 5, dtype=torch.bool))
    tiles = plan_of(Causal(), layout).parts[0].tiles
    assert [tile.segments for tile in tiles] == [()]
    assert not grid(plan_of(Causal(), layout), layout).any()
