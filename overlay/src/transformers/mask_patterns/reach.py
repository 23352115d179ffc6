"""Which tokens can influence which outputs, through all layers of a network.

In one layer the output at a position depends on the position itself, by the residual stream, and on every key that it
sees. Through several layers, token j can influence output i exactly if a path leads from i to j that in every layer,
from the last to the first, stays or goes to a key visible there. So the relation of a network is the product of those
of its layers, in their order.

Products are taken on intervals, in O(length x intervals) memory. Where the intervals become many, they are products of
boolean matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from .errors import bad_argument
from .ranges import Ranges


MOST_INTERVALS = 64  # per query: beyond, a boolean matrix costs less
MOST_DENSE = 8192  # tokens: a product of boolean matrices of this size takes seconds

R = TypeVar("R", "_Intervals", "_Grid")


class TooManyIntervals(Exception):
    """A relation is no longer, per query, a union of few intervals."""


@dataclass(frozen=True, eq=False)
class Network:
    """The masks of a stack of layers.

    Args:
        masks: the keys that each token sees, all heads and rows; one for each different layer, all of one length.
        layers: per layer, first to last, which of the masks is its own.
        endless: whether the stack is repeated until more layers change nothing.
    """

    masks: Sequence[Ranges]
    layers: tuple[int, ...]
    endless: bool = False

    @cached_property
    def reads_next(self) -> Tensor:
        """Whether the output at each position can depend on the next token: bool `(batch or 1, length)`.

        Raises:
            ValueError: the masks are neither few intervals per query nor short enough for boolean products.
        """
        if not any(bool(mask.beyond().counts().any()) for mask in self.masks):
            return self.masks[0].start.new_zeros(1, self.masks[0].length, dtype=torch.bool)
        batch = max(len(mask.start) for mask in self.masks)
        joined = [_any_head(mask) for mask in self.masks]
        try:
            return self._through([_Intervals.of(mask, batch) for mask in joined]).reads_next(batch)
        except TooManyIntervals:
            require_dense(self.masks[0].length)
        return self._through([_Grid.of(mask, batch) for mask in joined]).reads_next(batch)

    def _through(self, relations: Sequence[R]) -> R:
        relation = _product(self.layers, {(i,): relation for i, relation in enumerate(relations)})
        while self.endless and not (twice := relation.after(relation)).same_as(relation):
            relation = twice
        return relation


def _product(layers: tuple[int, ...], known: dict[tuple[int, ...], R]) -> R:
    """The relation of layers in their order, halves first: runs and patterns that repeat are multiplied once."""
    if layers not in known:
        half = len(layers) // 2
        known[layers] = _product(layers[half:], known).after(_product(layers[:half], known))
    return known[layers]


def require_dense(length: int) -> None:
    """Refuse what only boolean matrices could answer, where they would be too large."""
    if length > MOST_DENSE:
        got = f"{length:,} tokens, for a mask of more than {MOST_INTERVALS} key intervals per query"
        expected = f"at most {MOST_DENSE:,} tokens for such a mask"
        raise bad_argument("length", got, expected, "Check the same pattern on fewer tokens.")


def _any_head(shown: Ranges) -> Ranges:
    """What any of the heads shows, and the position itself: `(batch or 1, 1, intervals, length)`."""
    own = torch.arange(shown.length, device=shown.start.device)[None, None].expand(len(shown.start), 1, -1)
    start = torch.cat([shown.start.flatten(1, 2), own], dim=1)
    end = torch.cat([shown.end.flatten(1, 2), own + 1], dim=1)
    return Ranges.covering(start[:, None], end[:, None], shown.length)


@dataclass(frozen=True, eq=False)
class _Intervals:
    """A relation on the positions of all rows, one row behind the other: `ranges` has one batch row and one head."""

    ranges: Ranges

    @classmethod
    def of(cls, shown: Ranges, batch: int) -> _Intervals:
        offset = torch.arange(batch, device=shown.start.device)[:, None, None] * shown.length
        start, end = ((side[:, 0] + offset).transpose(0, 1).flatten(1) for side in (shown.start, shown.end))
        return cls(_few(Ranges.covering(start[None, None], end[None, None], batch * shown.length)))

    def after(self, earlier: _Intervals) -> _Intervals:
        """Per query, the union of what its keys reach in `earlier`.

        The union over an interval of keys is that over two windows of a power of two, which overlap. `table` holds
        the union over the window that begins at each key, and windows double in size.
        """
        step, table = self.ranges, earlier.ranges
        width = step.end - step.start
        found: list[list[tuple[Tensor, Ranges]]] = [[] for _ in range(step.start.shape[2])]
        for level in range(int(width.max()).bit_length()):
            if level:
                table = _doubled(table, 1 << (level - 1))
            for i, pieces in enumerate(found):
                queries = (width[0, 0, i] >> level == 1).nonzero()[:, 0]
                if len(queries):
                    first, last = step.start[0, 0, i, queries], step.end[0, 0, i, queries] - (1 << level)
                    pieces.append((queries, _union([_at(table, first), _at(table, last)])))
        return _Intervals(_union([_spread(pieces, step.length) for pieces in found]))

    def same_as(self, other: _Intervals) -> bool:
        return self.ranges == other.ranges

    def reads_next(self, batch: int) -> Tensor:
        following = torch.arange(1, self.ranges.length + 1, device=self.ranges.start.device)
        inside = (self.ranges.start <= following) & (following < self.ranges.end)
        return inside.any(2).reshape(batch, -1)


@dataclass(frozen=True, eq=False)
class _Grid:
    """A relation as boolean matrices `(batch, length, length)`."""

    visible: Tensor

    @classmethod
    def of(cls, shown: Ranges, batch: int) -> _Grid:
        keys = torch.arange(shown.length, device=shown.start.device)[None]
        return cls(shown.contains(keys)[:, 0].expand(batch, -1, -1))

    def after(self, earlier: _Grid) -> _Grid:
        rows = zip(self.visible, earlier.visible, strict=True)
        return _Grid(torch.stack([later.float() @ first.float() > 0 for later, first in rows]))

    def same_as(self, other: _Grid) -> bool:
        return torch.equal(self.visible, other.visible)

    def reads_next(self, batch: int) -> Tensor:
        return torch.nn.functional.pad(self.visible.diagonal(1, 1, 2), (0, 1))


def _few(ranges: Ranges) -> Ranges:
    if ranges.start.shape[2] > MOST_INTERVALS:
        raise TooManyIntervals
    return ranges


def _union(parts: Sequence[Ranges]) -> Ranges:
    start, end = torch.cat([p.start for p in parts], dim=2), torch.cat([p.end for p in parts], dim=2)
    return _few(Ranges.covering(start, end, parts[0].length))


def _at(ranges: Ranges, queries: Tensor) -> Ranges:
    return Ranges(ranges.start[..., queries], ranges.end[..., queries], ranges.length)


def _doubled(table: Ranges, size: int) -> Ranges:
    """From unions over windows of `size` to those over twice as many; windows that do not fit are dropped."""
    left = Ranges(table.start[..., :-size], table.end[..., :-size], table.length)
    right = Ranges(table.start[..., size:], table.end[..., size:], table.length)
    return _union([left, right])


def _spread(pieces: Sequence[tuple[Tensor, Ranges]], length: int) -> Ranges:
    """Ranges of some queries each, put together; nothing for a query in none of them."""
    most = max(ranges.start.shape[2] for _, ranges in pieces)
    start = pieces[0][1].start.new_full((1, 1, most, length), length)
    end = start.clone()
    for queries, ranges in pieces:
        intervals = ranges.start.shape[2]
        start[:, :, :intervals, queries], end[:, :, :intervals, queries] = ranges.start, ranges.end
    return Ranges(start, end, length)
