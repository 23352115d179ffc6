"""Queries that read the same keys go into the kernel's call as one head, and come back to where they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transformers.mask_patterns import Bidirectional, Causal, Document, Pattern, Sink, SlidingWindow
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.kernel import Arrangement
from transformers.mask_patterns.lowering.tile_plan import tile_plan
from transformers.mask_patterns.lowering.tiles import TilePlan
from transformers.mask_patterns.positions import Layout


TILES, GROUPS, SERVED, QUERIES = 3, 2, 4, 5
STATES = torch.arange(TILES * GROUPS * SERVED * QUERIES * 6).view(TILES, GROUPS, SERVED, QUERIES, 6)


def line(states: Tensor, arrangement: Arrangement, tile: int, group: int, head: int, query: int) -> Tensor:
    """Where a query lies in a call."""
    if arrangement is Arrangement.HEADS:
        return states[tile, group, head * QUERIES + query]
    if arrangement is Arrangement.TILES:
        return states[0, group * SERVED + head, tile * QUERIES + query]
    return states[tile, group * SERVED + head, query]


@pytest.mark.parametrize("arrangement", Arrangement)
def test_each_query_lies_in_its_place_and_comes_back(arrangement: Arrangement) -> None:
    called = arrangement.call(STATES)
    for place in torch.cartesian_prod(*map(torch.arange, STATES.shape[:4])).tolist():
        assert torch.equal(line(called, arrangement, *place), STATES[tuple(place)])
    assert torch.equal(arrangement.back(called, STATES), STATES)
    contiguous = called.contiguous()
    assert arrangement.back(contiguous, STATES).untyped_storage().data_ptr() == contiguous.untyped_storage().data_ptr()


def arrangements(plan: TilePlan) -> set[Arrangement]:
    return {
        Arrangement.of(segment, step, batch, part.place.served)
        for part in plan.parts
        for batch in part.batches
        for segment, step in zip(batch.tile.segments, batch.steps, strict=True)
    }


@pytest.mark.parametrize(
    ("pattern", "heads", "size", "expected"),
    [
        (SlidingWindow(100), 8, 64, [Arrangement.HEADS]),  # 256 queries of a head in place of 64
        (SlidingWindow(100), 2, 64, [Arrangement.APART]),  # each key/value head serves one query head
        (SlidingWindow(100), 4, 64, [Arrangement.APART]),  # 128 are no larger a block than 64
        (SlidingWindow(100), 8, 768, [Arrangement.APART]),  # a block is never larger than those of 768
        (Sink(4) | SlidingWindow(100), 8, 64, [Arrangement.HEADS, Arrangement.TILES]),
        (Sink(4) | SlidingWindow(100), 2, 64, [Arrangement.APART, Arrangement.TILES]),
        (Bidirectional(), 8, 64, [Arrangement.TILES]),
        (Causal() & Document(torch.arange(1536) // 768), 2, 0, [Arrangement.APART]),  # causal pieces, see tile plans
    ],
    ids=str,
)
def test_queries_go_together_where_that_makes_blocks_larger(
    pattern: Pattern, heads: int, size: int, expected: list[Arrangement]
) -> None:
    layout = Layout.of(1, 1536, heads=heads, groups=2)
    plan = tile_plan(pattern.bind(Rows(layout)), layout, always=True, size=size)
    assert plan is not None
    assert arrangements(plan) == set(expected)
