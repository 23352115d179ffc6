"""Chooses the tiles of a forward: what is fastest by count of scores, or none where the whole mask is as fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import TypeAlias

import torch
from torch import Tensor

from ..pattern import Pattern
from ..positions import Layout
from .causal_runs import Runs, causal_runs, scores
from .dense import key_ranges
from .kernel import CALL, CAUSAL, MASKED, SEGMENT, in_line, price
from .places import Place, Span, at_places, places_of
from .slots import slot_ranges
from .tiles import Part, Segment, Tile, TilePlan
from .tiling import Spans, Tiling, hulls


SIZES = (64, 96, 128, 192, 256, 384, 512, 768)  # queries per tile
_PLAN = 1_200_000  # to make a plan costs as much as so many scores, for each of a few layers
_DENSE = 1.2  # a score in the dense form, whose mask is built, and read anew in every layer
_LEAST = 2**20  # scores per head; with no more, no plan was found to be faster

_Way: TypeAlias = "tuple[float, Callable[[], Sequence[tuple[Tile, ...]]]]"  # its cost, and the tiles of each place


def tile_plan(pattern: Pattern, layout: Layout, *, always: bool = False, size: int = 0) -> TilePlan | None:
    """The tiles of a bound pattern; None where it has no ranges, or its dense form is as fast.

    Args:
        layout: on the CPU.
        always: tiles whether they are faster or not.
        size: queries per tile; 0: what is fastest.
    """
    if not always and layout.q_length * layout.kv_length <= _LEAST:
        return None
    ranges = key_ranges(pattern, layout.queries, layout)
    if ranges is None:
        return None
    start, end = slot_ranges(ranges, layout.keys)
    places = places_of(start, end, layout)
    start, end = (at_places(side, places) for side in (start, end))
    hidden = layout.keys < 0
    own_hidden = at_places(hidden[:, None], places) if bool(hidden.any()) else None
    ways = [_evenly(start, end, layout.kv_length, own_hidden, places, [size] if size else SIZES)]
    is_whole = layout.held is None and layout.q_offset == 0 and layout.kv_length == layout.q_length
    if is_whole and own_hidden is None and not size and (runs := causal_runs(start, end)) is not None:
        ways.append(_piece_by_piece(runs, places))
    cost, tiles = min(ways, key=lambda way: way[0])
    if not always and cost + _PLAN > _DENSE * layout.batch * layout.heads * layout.q_length * layout.kv_length:
        return None
    return TilePlan(tuple(Part(place, own) for place, own in zip(places, tiles(), strict=True)), layout.kv_length)


def _evenly(
    start: Tensor, end: Tensor, keys: int, hidden: Tensor | None, places: Sequence[Place], sizes: Sequence[int]
) -> _Way:
    """Tiles of one size, the one that costs least; `start`, `end` and `hidden` as in `Tiling`."""
    step = gcd(*sizes)
    fine = hulls(start, end, step)
    spans = {t: Spans.of(*hulls(*fine, t // step)) for t in sizes}
    costs = {t: _cost(spans[t], t, places) for t in sizes}
    best = min(sizes, key=lambda t: costs[t])
    return costs[best], lambda: Tiling(start, end, best, keys, hidden).tiles(spans[best])


def _piece_by_piece(runs: Runs, places: Sequence[Place]) -> _Way:
    """A tile for each causal piece."""
    costs = (_runs_cost(own, place.copies) for own, place in zip(runs, places, strict=True))
    return sum(costs), lambda: [tuple(_causal_tile(*run) for run in own) for own in runs]


def _runs_cost(runs: Sequence[Span], copies: int) -> float:
    return sum(CAUSAL * copies * price(end - start) * scores(end - start) + CALL for start, end in runs)


def _causal_tile(start: int, end: int) -> Tile:
    """Queries that see each other so far."""
    return Tile(start, end, (Segment(start, end, None, is_causal=True),), None)


def _cost(spans: Spans, size: int, places: Sequence[Place]) -> float:
    copies = torch.tensor([place.copies for place in places])
    in_calls = (size * place.served if in_line(size, place.served) else size for place in places)
    prices = torch.tensor([price(queries) * (1 + MASKED) for queries in in_calls])
    keys = prices[spans.place] * (spans.high - spans.low)
    return float((copies[spans.place] * size * (keys + SEGMENT) + CALL).sum())
