"""The O(L) form of a mask: per query, the union of a few key intervals.

`&`, `|` and `~` are exact and every result is canonical (sorted, disjoint, never touching), so two masks are equal
exactly if their `Ranges` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor


_FEW = 8  # intervals: with more, torch's sort is faster than comparing neighbours


@dataclass(frozen=True, eq=False)
class Ranges:
    """For each query the keys it may see, as half-open intervals `[start, end)` of key positions.

    Args:
        start, end: int32, half as large as positions, of shape `(batch or 1, heads or 1, intervals, queries)`. Per
            query sorted, disjoint and not touching; what a query does not need is the empty interval
            `[length, length)`, at the end.
        length: keys are the positions `0 .. length - 1`.
    """

    start: Tensor
    end: Tensor
    length: int

    @classmethod
    def single(cls, start: Tensor, end: Tensor, length: int) -> Ranges:
        """One interval per query, `start` and `end` of shape `(batch or 1, queries)`, cut to the keys there are."""
        start, end = torch.broadcast_tensors(start.clamp(0, length).int(), end.clamp(0, length).int())
        return _canonical(start[:, None, None], end[:, None, None], length)

    @classmethod
    def of(cls, start: Tensor, end: Tensor, length: int) -> Ranges:
        """Intervals that neither overlap nor touch, of the shape of `start`, cut to the keys there are."""
        return _canonical(start.clamp(0, length).int(), end.clamp(0, length).int(), length)

    @classmethod
    def per_head(cls, heads: Sequence[Ranges]) -> Ranges:
        """One mask per head, each said for one head."""
        width, batch = max(h.start.shape[2] for h in heads), max(len(h.start) for h in heads)

        def stacked(sides: list[Tensor]) -> Tensor:
            return torch.cat([_widened(side, width, heads[0].length).expand(batch, -1, -1, -1) for side in sides], 1)

        return cls(stacked([h.start for h in heads]), stacked([h.end for h in heads]), heads[0].length)

    def of_head(self, head: int) -> Ranges:
        """What one head sees; a mask of one head stands for all."""
        if self.start.shape[1] == 1:
            return self
        return _used(self.start[:, head : head + 1], self.end[:, head : head + 1], self.length)

    def moved(self, by: Tensor, length: int) -> Ranges:
        """The same keys, further on in longer rows by as much as `by`, int64 `(batch or 1, queries)`, says."""
        by = by[:, None, None].int()
        empty = self.start >= self.end
        start, end = (side.where(~empty, length) for side in (self.start + by, self.end + by))
        return Ranges.of(start, end, length)

    @classmethod
    def covering(cls, start: Tensor, end: Tensor, length: int) -> Ranges:
        """The union of any intervals, `(batch, heads, intervals, queries)`: overlapping, empty, in any order."""
        start, end = start.int(), end.int()
        used = start < end
        start, end = _in_order(start.where(used, length)), _in_order(end.where(used, length))
        joins = start[:, :, 1:] <= end[:, :, :-1]  # as many have ended as begun: no gap before it
        start[:, :, 1:] = start[:, :, 1:].where(~joins, length)
        end[:, :, :-1] = end[:, :, :-1].where(~joins, length)
        return _used(_in_order(start), _in_order(end), length)

    @classmethod
    def of_grid(cls, visible: Tensor) -> Ranges:
        """The runs of a whole mask, bool `(batch, heads, queries, keys)`."""
        rows, length = visible.shape[:3], visible.shape[3]
        edges = torch.nn.functional.pad(visible.flatten(0, 2).to(torch.int8), (1, 1)).diff(dim=-1)
        owner, start = (edges > 0).nonzero().unbind(1)
        end = (edges < 0).nonzero()[:, 1]
        counts = owner.bincount(minlength=len(edges))
        rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        start, end = start.int(), end.int()
        bounds = start.new_full((2, len(edges), max(1, int(counts.max()) if len(counts) else 0)), length)
        bounds[0, owner, rank], bounds[1, owner, rank] = start, end
        starts, ends = bounds.unflatten(1, rows).transpose(-1, -2)
        return cls(starts, ends, length)

    @classmethod
    def behind_each_other(cls, parts: Sequence[Ranges]) -> Ranges:
        """One after the other, the queries of parts that agree in all else."""
        most = max(part.start.shape[2] for part in parts)
        start = torch.cat([_widened(part.start, most, part.length) for part in parts], dim=3)
        end = torch.cat([_widened(part.end, most, part.length) for part in parts], dim=3)
        return cls(start, end, parts[0].length)

    @classmethod
    def either(cls, keep: Tensor, one: Ranges, other: Ranges) -> Ranges:
        """Those of `one` for queries where `keep`, bool `(batch or 1, queries)`, holds; `other` for the rest."""
        keep = keep[:, None, None]
        start, end = (first.where(keep, second) for first, second in _padded_alike(one, other))
        return _used(start, end, one.length)

    def __and__(self, other: Ranges) -> Ranges:
        start = torch.maximum(self.start.unsqueeze(3), other.start.unsqueeze(2))
        end = torch.minimum(self.end.unsqueeze(3), other.end.unsqueeze(2))
        return _canonical(start.flatten(2, 3), end.flatten(2, 3), self.length)

    def __invert__(self) -> Ranges:
        edge = self.start.new_zeros(()).expand_as(self.start[:, :, :1])
        start = torch.cat([edge, self.end], dim=2)
        end = torch.cat([self.start, edge + self.length], dim=2)
        return _canonical(start, end, self.length)

    def __or__(self, other: Ranges) -> Ranges:
        rows, heads = torch.broadcast_shapes(self.start.shape[:2], other.start.shape[:2])
        start = torch.cat([side.expand(rows, heads, -1, -1) for side in (self.start, other.start)], dim=2)
        end = torch.cat([side.expand(rows, heads, -1, -1) for side in (self.end, other.end)], dim=2)
        return Ranges.covering(start, end, self.length)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges) or self.length != other.length:
            return NotImplemented if not isinstance(other, Ranges) else False
        return all(torch.equal(*torch.broadcast_tensors(*pair)) for pair in _padded_alike(self, other))

    __hash__ = None  # type: ignore[assignment]

    def where(self, keep: Tensor) -> Ranges:
        """The same ranges for queries where `keep`, bool `(batch or 1, queries)`, holds; no key for the others."""
        keep = keep[:, None, None]
        return _used(self.start.where(keep, self.length), self.end.where(keep, self.length), self.length)

    def beyond(self, split: Tensor | None = None) -> Ranges:
        """The part of the keys behind each query's own position; or, with `split`, the part from there on.

        Only for ranges whose queries are the positions `0 .. length - 1`.

        Args:
            split: int64 `(batch or 1, 1)`, a position per row.
        """
        own = torch.arange(self.length, device=self.start.device)[None]
        first = own + 1 if split is None else split.expand(-1, self.length)
        return self & Ranges.single(first, torch.full_like(own, self.length), self.length)

    def contains(self, k: Tensor) -> Tensor:
        """Whether each query may see each key: bool `(batch or 1, heads or 1, queries, keys)`.

        Args:
            k: int64 `(batch or 1, keys)`, key positions; any position outside `0 .. length - 1` is never contained.
        """
        k = k[:, None, None, :].int()
        parts = zip(self.start[..., None].unbind(2), self.end[..., None].unbind(2), strict=True)
        return reduce(or_, ((start <= k) & (k < end) for start, end in parts))

    def counts(self) -> Tensor:
        """How many keys each query may see: int64 `(batch or 1, heads or 1, queries)`."""
        return (self.end - self.start).sum(2)


def _canonical(start: Tensor, end: Tensor, length: int) -> Ranges:
    """Sort, and drop empty intervals. Those given neither overlap nor touch: `&` and `~` of canonical ones do not."""
    empty = start >= end
    start, end = start.where(~empty, length), end.where(~empty, length)
    if bool((start[:, :, 1:] < start[:, :, :-1]).any()):
        start, end = _in_order(start), _in_order(end)
    return _used(start, end, length)


def _in_order(side: Tensor) -> Tensor:
    """Starts or ends, sorted per query. Of few intervals all queries are compared at once, neighbour by neighbour."""
    places = list(side.unbind(2))
    if len(places) > _FEW:
        return side.sort(dim=2).values
    for turn in range(len(places)):
        for i in range(turn % 2, len(places) - 1, 2):
            low, high = places[i : i + 2]
            places[i : i + 2] = torch.minimum(low, high), torch.maximum(low, high)
    return torch.stack(places, 2)


def _used(start: Tensor, end: Tensor, length: int) -> Ranges:
    """Without the places that no query needs."""
    used = max(1, int((start < end).any(3).any(0).any(0).sum()))
    return Ranges(start[:, :, :used], end[:, :, :used], length)


def _padded_alike(a: Ranges, b: Ranges) -> list[tuple[Tensor, Tensor]]:
    width = max(a.start.shape[2], b.start.shape[2])

    def pad(x: Tensor) -> Tensor:
        return _widened(x, width, a.length)

    return [(pad(a.start), pad(b.start)), (pad(a.end), pad(b.end))]


def _widened(bound: Tensor, intervals: int, length: int) -> Tensor:
    """Starts or ends with room for more intervals, empty ones."""
    return torch.nn.functional.pad(bound, (0, 0, 0, intervals - bound.shape[2]), value=length)
