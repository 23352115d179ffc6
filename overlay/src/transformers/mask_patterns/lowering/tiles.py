"""Which keys each tile of queries needs, from ranges: what tiled attention runs through.

A tile is some queries in a row. Its keys are a few segments: without a mask where every query of the tile sees all of
them, else with a small one, which tiles that look alike share. Built in O(length), never from the whole grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..pattern import Pattern
from ..positions import Layout
from ..ranges import Ranges
from .batches import Batch, batches
from .causal_runs import Runs, causal_runs, scores
from .dense import key_ranges
from .kernel import in_line, price
from .places import Place, Span, at_places, places_of


# What is fastest on a CPU, in scores of the kernel (one query and one key of one head), as `make bench` measures it.
SIZES = (64, 96, 128, 192, 256, 384, 512, 768)  # queries per tile
_MASKED = 0.1  # a mask makes a score dearer by this, its making included
_CAUSAL = 1.2  # what a score costs where the kernel is asked for causal attention
_SEGMENT = 32  # another segment costs each query as much as so many keys: what it finds is to be merged
_CALL = 40_000  # and as much as so many scores, whatever its size
_PLAN = 1_200_000  # to make a plan, for each of a few layers
_DENSE = 1.2  # a score in the dense form, whose mask is built, and read anew in every layer
_LEAST = 2**20  # scores per head; with no more, no plan was found to be faster
# A masked segment has a multiple of so many keys where there is room: an odd count costs more. Two segments do not
# meet by that, as they lie more than `_SEGMENT` apart.
_EVEN = 16


@dataclass(frozen=True, eq=False)
class PartialMask:
    """Which keys of a segment each query of a tile may see.

    Args:
        start, end: int32 `(intervals, queries)`, half-open intervals of the segment's keys; `(0, 0)` is empty.
        hidden: bool `(keys,)`, keys that nobody sees, such as padding; None if there are none.
        keys: how many the segment has.
        is_shared: whether several tiles have it, so that it is kept once it is made.
    """

    start: Tensor
    end: Tensor
    hidden: Tensor | None
    keys: int
    is_shared: bool
    _kept: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict, init=False)

    def additive(self, dtype: torch.dtype, times: int = 1) -> Tensor:
        """0 where visible, else -inf: `(times x queries, keys)`, float64 for queries of that dtype and else float32.

        Args:
            times: how often the queries follow each other.
        """
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if (dtype, times) in self._kept:
            return self._kept[dtype, times]
        mask = torch.zeros((), dtype=dtype).where(self.visible, -torch.inf).repeat(times, 1)
        if self.is_shared:
            self._kept[dtype, times] = mask
        return mask

    @property
    def visible(self) -> Tensor:
        """Bool `(queries, keys)`."""
        key = torch.arange(self.keys, dtype=torch.int32)
        seen = torch.zeros(self.start.shape[1], self.keys, dtype=torch.bool)
        for start, end in zip(self.start[..., None], self.end[..., None], strict=True):
            seen |= (start <= key) & (key < end)
        return seen if self.hidden is None else seen & ~self.hidden

    @property
    def blind(self) -> Tensor:
        """Queries that see none of these keys, bool `(queries,)`."""
        return (self.start >= self.end).all(0)


@dataclass(frozen=True, eq=False)
class Segment:
    """The keys `start .. end - 1`; without a mask every query of the tile sees all of them.

    Args:
        is_causal: whether the n-th query sees the first n of them instead; as many keys as queries, without a mask.
    """

    start: int
    end: int
    mask: PartialMask | None
    is_causal: bool = False


@dataclass(frozen=True, eq=False)
class Tile:
    """The queries `start .. end - 1`, the keys they need, and which see nothing, bool `(queries,)` or None."""

    start: int
    end: int
    segments: tuple[Segment, ...]
    empty: Tensor | None


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of the batch and query heads that share their tiles."""

    place: Place
    tiles: tuple[Tile, ...]

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The tiles, those together that look alike."""
        return batches(self.tiles)


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Every row, head and query of a forward, each in one tile of one part.

    Args:
        keys: how many the key/value tensors hold.
    """

    parts: tuple[Part, ...]
    keys: int


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
    """Tiles of one size, the one that costs least; `start`, `end` and `hidden` as in `_Tiling`."""
    step = gcd(*sizes)
    hulls = _hulls(start, end, step)
    spans = {t: _Spans.of(*_hulls(*hulls, t // step)) for t in sizes}
    costs = {t: _cost(spans[t], t, places) for t in sizes}
    best = min(sizes, key=lambda t: costs[t])
    return costs[best], lambda: _Tiling(start, end, best, keys, hidden).tiles(spans[best])


def _piece_by_piece(runs: Runs, places: Sequence[Place]) -> _Way:
    """A tile for each causal piece."""
    costs = (_runs_cost(own, place.copies) for own, place in zip(runs, places, strict=True))
    return sum(costs), lambda: [tuple(_causal_tile(*run) for run in own) for own in runs]


def _runs_cost(runs: Sequence[Span], copies: int) -> float:
    return sum(_CAUSAL * copies * price(end - start) * scores(end - start) + _CALL for start, end in runs)


def _causal_tile(start: int, end: int) -> Tile:
    """Queries that see each other so far."""
    return Tile(start, end, (Segment(start, end, None, is_causal=True),), None)


def slot_ranges(ranges: Ranges, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and ends of ranges, of key slots in place of positions; padding may lie inside.

    Args:
        keys: int64 `(batch or 1, keys)`, the position in each slot, ascending, -1 where that is no token.

    Returns:
        integers `(batch or 1, heads or 1, intervals, queries)` each; what is empty starts behind all keys, ends at 0.
    """
    count = keys.shape[1]
    if len(keys) == 1 and count and bool((keys.diff() == 1).all()):  # no padding
        start, end = ((side - keys[0, 0]).clamp(0, count) for side in (ranges.start, ranges.end))
    else:
        start, end = _looked_up_slots(ranges, keys)
    empty = start >= end
    return start.where(~empty, count), end.where(~empty, 0)


def _looked_up_slots(ranges: Ranges, keys: Tensor) -> tuple[Tensor, Tensor]:
    rows, count = keys.shape
    length = ranges.length
    slot = torch.arange(count).expand(rows, -1)
    place = keys.where(keys >= 0, length + 1)
    first = slot.new_full((rows, length + 2), count).scatter_(1, place, slot)[:, : length + 1]
    first = first.flip(1).cummin(1).values.flip(1)  # the first slot from each position on
    behind = slot.new_zeros(rows, length + 3).scatter_(1, place + 1, slot + 1)[:, : length + 1].cummax(1).values
    return _looked_up(first, ranges.start), _looked_up(behind, ranges.end)


def _looked_up(table: Tensor, at: Tensor) -> Tensor:
    """`table`, `(batch or 1, any)`, at places `(batch or 1, ...)`."""
    rows = max(len(table), len(at))
    at = at.expand(rows, -1, -1, -1).long()
    return table.expand(rows, -1).gather(1, at.flatten(1)).view(at.shape)


@dataclass(frozen=True, eq=False)
class _Spans:
    """The keys that each tile of each place needs, with small gaps closed: integers `(spans,)` each."""

    place: Tensor
    tile: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> _Spans:
        """Those of hulls, integers `(places, intervals, tiles)`."""
        low, order = low.sort(dim=1)
        high = high.gather(1, order).cummax(1).values
        apart = low[:, 1:] > high[:, :-1] + _SEGMENT
        edge = torch.ones_like(apart[:, :1]) if apart.shape[1] else torch.ones_like(low, dtype=torch.bool)
        begins = torch.cat([edge, apart], dim=1).movedim(1, 2)
        ends = torch.cat([apart, edge], dim=1).movedim(1, 2)
        place, tile, _ = begins.nonzero().unbind(1)
        low, high = low.movedim(1, 2)[begins], high.movedim(1, 2)[ends]
        used = low < high
        return cls(place[used], tile[used], low[used], high[used])


def _hulls(start: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each interval of the queries of a tile, or of the hulls of smaller tiles, and what lies between."""
    return _by_tile(start, size).amin(-1), _by_tile(end, size).amax(-1)


def _by_tile(side: Tensor, size: int) -> Tensor:
    """The last dimension as tiles, `(..., tiles, size)`; the last query fills the last tile."""
    lacking = -side.shape[-1] % size
    if lacking:
        side = torch.cat([side, side[..., -1:].expand(*side.shape[:-1], lacking)], dim=-1)
    tiles: Tensor = side.unflatten(-1, (-1, size))
    return tiles


def _cost(spans: _Spans, size: int, places: Sequence[Place]) -> float:
    copies = torch.tensor([place.copies for place in places])
    in_calls = (size * place.served if in_line(size, place.served) else size for place in places)
    prices = torch.tensor([price(queries) * (1 + _MASKED) for queries in in_calls])
    keys = prices[spans.place] * (spans.high - spans.low)
    return float((copies[spans.place] * size * (keys + _SEGMENT) + _CALL).sum())


@dataclass(frozen=True, eq=False)
class _Tiling:
    """The making of the tiles of all places.

    Args:
        start, end: integers `(places, intervals, queries)`, of key slots.
        size: queries per tile.
        keys: how many slots there are.
        hidden: bool `(places, keys)`, slots without a token; None if there are none.
    """

    start: Tensor
    end: Tensor
    size: int
    keys: int
    hidden: Tensor | None

    def tiles(self, spans: _Spans) -> list[tuple[Tile, ...]]:
        """The tiles of each place, which need these spans."""
        places, _, queries = self.start.shape
        count = -(-queries // self.size)
        segments: list[list[list[Segment]]] = [[[] for _ in range(count)] for _ in range(places)]
        for place, index, segment in self._segments(spans):
            segments[place][index].append(segment)
        empty = (self.start >= self.end).all(1)
        any_empty = _by_tile(empty, self.size).any(-1).tolist()

        def tile(place: int, index: int) -> Tile:
            at = self._queries(index)
            nothing = empty[place, at] if any_empty[place][index] else None
            return Tile(at.start, at.stop, tuple(segments[place][index]), nothing)

        return [tuple(tile(place, index) for index in range(count)) for place in range(places)]

    def _queries(self, tile: int) -> slice:
        return slice(tile * self.size, min((tile + 1) * self.size, self.start.shape[2]))

    def _segments(self, spans: _Spans) -> Iterator[tuple[int, int, Segment]]:
        """Place, tile, and a segment of it."""
        cores = self._cores()
        partial: list[tuple[int, int, int, int]] = []
        for place, tile, low, high in torch.stack([spans.place, spans.tile, spans.low, spans.high], 1).tolist():
            for start, end, is_whole in _split((low, high), cores.get((place, tile), [])):
                if is_whole:
                    yield place, tile, Segment(start, end, None)
                else:
                    partial.append((place, tile, *self._evened(start, end)))
        for (place, tile, start, end), mask in zip(partial, self._masks(partial), strict=True):
            yield place, tile, Segment(start, end, mask)

    def _evened(self, start: int, end: int) -> Span:
        """A masked piece, with keys beside it, which are in no other, so that their count comes out even."""
        lacking = (start - end) % _EVEN
        if start >= lacking:
            return start - lacking, end
        return (start, end + lacking) if end + lacking <= self.keys else (start, end)

    def _cores(self) -> dict[tuple[int, int], list[Span]]:
        """By place and tile: keys that every query of it sees."""
        low, high = _by_tile(self.start, self.size).amax(-1), _by_tile(self.end, self.size).amin(-1)
        known = (low < high) & (self._tokens(low, high) == high - low)
        place, interval, tile = known.nonzero().unbind(1)
        low, high = low[place, interval, tile], high[place, interval, tile]
        cores: dict[tuple[int, int], list[Span]] = {}
        for owner_place, owner_tile, *core in torch.stack([place, tile, low, high], 1).tolist():
            cores.setdefault((owner_place, owner_tile), []).append((core[0], core[1]))
        return cores

    def _tokens(self, low: Tensor, high: Tensor) -> Tensor:
        """How many of the slots `low .. high - 1`, `(places, intervals, tiles)` each, hold a token."""
        if self.hidden is None:
            return high - low
        so_far = torch.nn.functional.pad((~self.hidden).cumsum(1), (1, 0))
        until, before = (so_far.gather(1, side.flatten(1).long()).view(side.shape) for side in (high, low))
        return until - before

    def _masks(self, partial: Sequence[tuple[int, int, int, int]]) -> list[PartialMask]:
        """The masks of segments `(place, tile, start, end)`; the same one for those that look alike."""
        if not partial:
            return []
        place, tile, low, high = torch.tensor(partial).unbind(1)
        low, keys = low[:, None, None], (high - low)[:, None, None]
        start, end = (
            torch.minimum((_by_tile(side, self.size).movedim(2, 1)[place, tile] - low).clamp(min=0), keys).int()
            for side in (self.start, self.end)
        )
        empty = start >= end
        bounds = torch.stack([start.where(~empty, 0), end.where(~empty, 0)], 1)  # (segments, 2, intervals, queries)
        looks = list(map(self._look, bounds.numpy(), partial))
        times = Counter(looks)
        made: dict[_Look, PartialMask] = {}
        for number, look in enumerate(looks):
            if look not in made:
                start, end = bounds[number, ..., : look.queries]
                made[look] = PartialMask(start, end, self._hidden(partial[number]), look.keys, times[look] > 1)
        return [made[look] for look in looks]

    def _look(self, bounds: Any, given: tuple[int, int, int, int]) -> _Look:
        _, tile, start, end = given
        at, hidden = self._queries(tile), self._hidden(given)
        queries = at.stop - at.start
        padding = b"" if hidden is None else hidden.numpy().tobytes()
        return _Look(end - start, queries, bounds[..., :queries].tobytes(), padding)

    def _hidden(self, given: tuple[int, int, int, int]) -> Tensor | None:
        """Keys of a segment that are no tokens, if there are any."""
        place, _, start, end = given
        hidden = None if self.hidden is None else self.hidden[place, start:end]
        return None if hidden is None or not bool(hidden.any()) else hidden


class _Look(NamedTuple):
    """What tells the mask of a segment from others."""

    keys: int
    queries: int
    bounds: bytes
    padding: bytes


def _split(span: Span, cores: Sequence[Span]) -> Iterator[tuple[int, int, bool]]:
    """The segments of a span, and whether every query sees all of it; a core that is not worth it is no segment."""
    at, last = span
    for low, high in _joined(core for core in cores if span[0] <= core[0] < last):
        others = (low > at) + (high < last)
        low, high = low + (at - low) % _EVEN, high - (high - last) % _EVEN  # what is beside it comes out even
        if (high - low) * _MASKED < others * _SEGMENT:
            continue
        if low > at:
            yield at, low, False
        yield low, high, True
        at = high
    if at < last:
        yield at, last, False


def _joined(cores: Iterable[Span]) -> list[Span]:
    """In order, those that touch as one."""
    joined: list[Span] = []
    for low, high in sorted(cores):
        if joined and joined[-1][1] == low:
            low, _ = joined.pop()
        joined.append((low, high))
    return joined
