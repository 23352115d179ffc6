"""Ranges of key slots in place of key positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranges import Ranges


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
