"""Rows and heads that see the same keys: they share their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..positions import Layout


Span: TypeAlias = "tuple[int, int]"


class Place(NamedTuple):
    """Rows of the batch and query heads; `groups` are the key/value heads that serve these, and only these."""

    rows: slice
    heads: slice
    groups: slice

    @property
    def copies(self) -> int:
        """How many heads of rows there are."""
        return _width(self.rows) * _width(self.heads)

    @property
    def served(self) -> int:
        """How many of the query heads each key/value head serves."""
        return _width(self.heads) // _width(self.groups)


def _width(part: slice) -> int:
    return int(part.stop - part.start)


def places_of(start: Tensor, end: Tensor, layout: Layout) -> list[Place]:
    """Neighbours among rows, and among heads, that have the same ranges; rows the same padding too.

    Args:
        start, end: integers `(batch or 1, heads or 1, intervals, queries)`.
    """
    served = layout.heads // layout.groups
    heads = [
        (slice(a, b), slice(a // served, -(-b // served))) for a, b in _head_runs(start, end, layout.heads, served)
    ]
    rows = [slice(a, b) for a, b in _runs(0, layout.batch, start, end, layout.keys < 0)]
    return [Place(row, *head) for row in rows for head in heads]


def at_places(side: Tensor, places: Sequence[Place]) -> Tensor:
    """`(batch or 1, heads or 1, ...)` at the first row and head of each place: `(places, ...)`."""
    rows = torch.tensor([place.rows.start for place in places]).clamp(max=len(side) - 1)
    heads = torch.tensor([place.heads.start for place in places]).clamp(max=side.shape[1] - 1)
    return side[rows, heads]


def _head_runs(start: Tensor, end: Tensor, heads: int, served: int) -> list[Span]:
    """Runs of heads whose key/value heads serve no others; else heads one by one."""
    runs = _runs(1, heads, start, end)
    if any(a % served or b % served for a, b in runs):
        return [(head, head + 1) for head in range(heads)]
    return runs


def _runs(dim: int, size: int, *sides: Tensor) -> list[Span]:
    """Neighbours along `dim` that are the same on all sides; one stands for all `size`."""
    lines = [side.movedim(dim, 0).flatten(1) for side in sides if side.shape[dim] > 1]
    if not lines:
        return [(0, size)]
    differs = torch.stack([(side[1:] != side[:-1]).any(1) for side in lines]).any(0)
    cuts = [0, *(differs.nonzero()[:, 0] + 1).tolist(), size]
    return list(zip(cuts, cuts[1:], strict=False))
