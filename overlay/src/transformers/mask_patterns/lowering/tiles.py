"""The plan of tiles: which keys each tile of queries needs, what tiled attention runs through.

A tile is some queries in a row. Its keys are a few segments: without a mask where every query of the tile sees all of
them, else with a small one, which tiles that look alike share. Built in O(length), never from the whole grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .batches import Batch, batches
from .places import Place


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
