"""A mask cut into tiles, each with how many of its pairs are visible: exact, at any length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import bad_argument
from ..lowering.dense import grid, key_ranges
from ..pattern import Pattern
from ..positions import Layout
from ..ranges import Ranges


MOST_DENSE = 16_384  # positions of a mask without ranges, each pair of which is looked at
_AT_ONCE = 1 << 20  # pairs looked at together
LEVELS = 4


@dataclass(frozen=True, eq=False)
class Tiles:
    """One mask, cut into tiles.

    Args:
        rows: the query at which each row of tiles begins, and the end of the last, int64 `(rows + 1,)`.
        columns: the same for keys, int64 `(columns + 1,)`.
        seen: visible pairs in each tile, int64 `(rows, columns)`.
        ahead: those of them whose key is later than the query.
    """

    rows: Tensor
    columns: Tensor
    seen: Tensor
    ahead: Tensor

    @property
    def length(self) -> int:
        """Queries, and keys, of the whole mask."""
        return int(self.rows[-1])

    @cached_property
    def fraction(self) -> Tensor:
        """The visible part of each tile, float64 `(rows, columns)`."""
        return self.seen / (self.rows.diff()[:, None] * self.columns.diff()).clamp(min=1)

    @cached_property
    def levels(self) -> Tensor:
        """The visible part of each tile in steps, int64: 0 only where nothing is, `LEVELS` only where all is."""
        partly = (self.fraction * (LEVELS - 1)).ceil().clamp(max=LEVELS - 1)
        return partly.masked_fill(self.fraction == 1, LEVELS).long()

    @cached_property
    def shades(self) -> list[list[int]]:
        """`levels` as numbers, negative where a tile has a visible key later than its query."""
        return torch.where(self.ahead > 0, -self.levels, self.levels).tolist()

    def coarser(self, rows: int, columns: int) -> Tiles:
        """The same mask in at most so many rows and columns of tiles."""
        row_cuts, column_cuts = (
            cuts(n - 1, most) for n, most in ((len(self.rows), rows), (len(self.columns), columns))
        )

        def summed(counts: Tensor) -> Tensor:
            below = torch.nn.functional.pad(counts.cumsum(0).cumsum(1), (1, 0, 1, 0))
            return below[row_cuts][:, column_cuts].diff(dim=0).diff(dim=1)

        return Tiles(self.rows[row_cuts], self.columns[column_cuts], summed(self.seen), summed(self.ahead))

    def looks_like(self, other: Tiles) -> bool:
        """Whether both have the same tiles with the same counts."""
        pairs = zip(self._tensors, other._tensors, strict=True)
        return all(torch.equal(mine, its) for mine, its in pairs)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.rows, self.columns, self.seen, self.ahead


def cuts(length: int, most: int) -> Tensor:
    """`length` places cut into at most `most` parts as even as can be: where each begins, and the end."""
    parts = max(1, min(length, most))
    return torch.arange(parts + 1) * length // parts


def tiles_of(bound: Pattern, layout: Layout, most: int) -> list[list[Tiles]]:
    """The tiles of each row of the batch and each head, one list of heads per row.

    A dimension in which the mask is the same throughout has size 1. Costs O(length x intervals + tiles) where the
    pattern has ranges, and O(length x length) time but not memory elsewhere.

    Args:
        bound: a pattern with its data.
        layout: rows without padding or cache.
        most: rows of tiles, and columns.

    Raises:
        ValueError: a mask of more than `MOST_DENSE` positions has no ranges.
    """
    edges = cuts(layout.length, most)
    q = layout.queries
    ranges = key_ranges(bound, q, layout)
    if ranges is not None:
        later = Ranges(ranges.start.maximum(q[:, None, None].int() + 1), ranges.end, ranges.length)
        seen, ahead = _from_ranges(ranges, edges), _from_ranges(later, edges)
    else:
        _require_drawable(bound, layout)
        seen, ahead = _from_grid(bound, layout, edges)
    return [[Tiles(edges, edges, *pair) for pair in zip(*row, strict=True)] for row in zip(seen, ahead, strict=True)]


def _require_drawable(bound: Pattern, layout: Layout) -> None:
    if layout.length > MOST_DENSE:
        expected = f"at most {MOST_DENSE:,} for {bound}, which has no form as key ranges: every pair must be looked at"
        raise bad_argument("length", f"{layout.length:,}", expected, "Draw a shorter row.")


def _from_ranges(ranges: Ranges, edges: Tensor) -> Tensor:
    """Visible pairs per tile, `(batch or 1, heads or 1, tiles, tiles)`.

    An interval holds the keys below its end that are not below its start. The keys below `x` fill all tiles before
    the one where `x` lies, and a part of that: so per row of tiles it is enough to know how many ends lie in each
    column, starts counted off, and how far inside it they lie.
    """
    batch, heads, _, length = ranges.start.shape
    parts = len(edges) - 1
    row = torch.bucketize(torch.arange(length), edges[1:], right=True) * (parts + 1)
    ends, inside = (torch.zeros(batch, heads, parts * (parts + 1), dtype=torch.long) for _ in range(2))
    for start, end in zip(ranges.start.unbind(2), ranges.end.unbind(2), strict=True):
        for place, sign in ((start.long(), -1), (torch.maximum(start, end).long(), 1)):
            column = torch.bucketize(place.contiguous(), edges[1:], right=True)
            ends.scatter_add_(2, row + column, torch.full_like(place, sign))
            inside.scatter_add_(2, row + column, sign * (place - edges[column]))
    ends, inside = (counts.view(batch, heads, parts, parts + 1) for counts in (ends, inside))
    further = ends.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return inside[..., :-1] + further * edges.diff()


def _from_grid(bound: Pattern, layout: Layout, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Visible pairs per tile, and those with a later key, a band of queries at a time."""
    q, k = layout.queries, layout.keys
    seen, ahead = [], []
    for low, high in zip(edges.tolist(), edges.tolist()[1:], strict=False):
        counts = [_counts(bound, part, k, layout) for part in q[:, low:high].split(_AT_ONCE // layout.length, dim=1)]
        seen.append(torch.stack([visible for visible, _ in counts]).sum(0))
        ahead.append(torch.stack([later for _, later in counts]).sum(0))
    return _by_column(torch.stack(seen, dim=2), edges), _by_column(torch.stack(ahead, dim=2), edges)


def _counts(bound: Pattern, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Per key how many of the queries see it, and how many that come before it do."""
    visible = grid(bound, q, k, layout)
    return visible.sum(2), (visible & (k[:, None, None, :] > q[:, None, :, None])).sum(2)


def _by_column(counts: Tensor, edges: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(-1), (1, 0))[..., edges].diff(dim=-1)
