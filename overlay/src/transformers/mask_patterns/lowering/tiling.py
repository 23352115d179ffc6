"""Tiles of one size, from the ranges of all queries: which segments of keys each needs, and their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernel import MASKED, SEGMENT
from .places import Span
from .tiles import PartialMask, Segment, Tile


# A masked segment has a multiple of so many keys where there is room: an odd count costs more. Two segments do not
# meet by that, as they lie more than `SEGMENT` apart.
_EVEN = 16


@dataclass(frozen=True, eq=False)
class Spans:
    """The keys that each tile of each place needs, with small gaps closed: integers `(spans,)` each."""

    place: Tensor
    tile: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> Spans:
        """Those of hulls, integers `(places, intervals, tiles)`."""
        low, order = low.sort(dim=1)
        high = high.gather(1, order).cummax(1).values
        apart = low[:, 1:] > high[:, :-1] + SEGMENT
        edge = torch.ones_like(apart[:, :1]) if apart.shape[1] else torch.ones_like(low, dtype=torch.bool)
        begins = torch.cat([edge, apart], dim=1).movedim(1, 2)
        ends = torch.cat([apart, edge], dim=1).movedim(1, 2)
        place, tile, _ = begins.nonzero().unbind(1)
        low, high = low.movedim(1, 2)[begins], high.movedim(1, 2)[ends]
        used = low < high
        return cls(place[used], tile[used], low[used], high[used])


def hulls(start: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each interval of the queries of a tile, or of the hulls of smaller tiles, and what lies between."""
    return _by_tile(start, size).amin(-1), _by_tile(end, size).amax(-1)


def _by_tile(side: Tensor, size: int) -> Tensor:
    """The last dimension as tiles, `(..., tiles, size)`; the last query fills the last tile."""
    lacking = -side.shape[-1] % size
    if lacking:
        side = torch.cat([side, side[..., -1:].expand(*side.shape[:-1], lacking)], dim=-1)
    tiles: Tensor = side.unflatten(-1, (-1, size))
    return tiles


@dataclass(frozen=True, eq=False)
class Tiling:
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

    def tiles(self, spans: Spans) -> list[tuple[Tile, ...]]:
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

    def _segments(self, spans: Spans) -> Iterator[tuple[int, int, Segment]]:
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
        if (high - low) * MASKED < others * SEGMENT:
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
