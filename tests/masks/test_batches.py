"""Tiles go through the kernel together where they look alike: each once, with its own queries and keys."""

from __future__ import annotations

import pytest
import torch

from transformers.mask_patterns import (
    BlockDiffusion,
    Causal,
    Chunked,
    Document,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
)
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.batches import Batch, add_to, taken
from transformers.mask_patterns.lowering.tile_plan import tile_plan
from transformers.mask_patterns.lowering.tiles import Part, Tile
from transformers.mask_patterns.positions import Layout


PATTERNS: tuple[tuple[Pattern, int], ...] = (
    (SlidingWindow(200), 12),
    (Sink(4) | SlidingWindow(100), 12),
    (Causal() & Document(torch.arange(4096) // 512), 20),
    (Document(torch.arange(4096) // 300), 64),
    (Chunked(128), 12),
    (PrefixLM(700), 64),
    (BlockDiffusion(64), 64),
)


def part_of(pattern: Pattern) -> Part:
    layout = Layout.of(1, 4096)
    plan = tile_plan(pattern.bind(Rows(layout)), layout, always=True, size=64)
    assert plan is not None
    return plan.parts[0]


def places(tile: Tile, step: int = 0, steps: tuple[int, ...] = (), number: int = 0) -> tuple[object, ...]:
    steps = steps or (0,) * len(tile.segments)
    keys = [
        (segment.start + number * by, segment.end + number * by, id(segment.mask))
        for segment, by in zip(tile.segments, steps, strict=True)
    ]
    return tile.start + number * step, tile.end + number * step, *keys


def unfolded(batch: Batch) -> list[tuple[object, ...]]:
    return [places(batch.tile, batch.step, batch.steps, number) for number in range(batch.times)]


@pytest.mark.parametrize(("pattern", "most"), PATTERNS, ids=[str(pattern) for pattern, _ in PATTERNS])
def test_every_tile_is_in_one_batch(pattern: Pattern, most: int) -> None:
    part = part_of(pattern)
    together = [tile for batch in part.batches for tile in unfolded(batch)]
    assert sorted(together, key=repr) == sorted(map(places, part.tiles), key=repr)
    assert len(part.batches) <= most


@pytest.mark.parametrize(("start", "end", "times", "step"), [(2, 5, 1, 0), (1, 4, 3, 3), (0, 4, 4, 2), (3, 5, 4, 0)])
def test_places_are_taken_and_added_to_again(start: int, end: int, times: int, step: int) -> None:
    states = torch.randn(1, 2, 12, 5, generator=torch.Generator().manual_seed(0))
    got = taken(states, start, end, times, step)
    slices = [slice(start + number * step, end + number * step) for number in range(times)]
    assert torch.equal(got, torch.cat([states[:, :, own] for own in slices]))
    total, want = torch.zeros_like(states), torch.zeros_like(states)
    add_to(total, got, start, times, step)
    for own in slices:
        want[:, :, own] += states[:, :, own]
    assert torch.equal(total, want)
