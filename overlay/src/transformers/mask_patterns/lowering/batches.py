"""Tiles that look alike and lie evenly apart go through the kernel together, as rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor


if TYPE_CHECKING:
    from .tiles import Tile


_QUERIES = 2048  # of a call: as good as all of them, and what it returns stays small

Look: TypeAlias = "tuple[int, tuple[tuple[int, int, bool], ...]]"


@dataclass(frozen=True, eq=False)
class Batch:
    """A tile, and others that look like it.

    Args:
        times: how many there are.
        step: from the queries of one to those of the next.
        steps: the same of the keys of each segment; 0: they are the same keys.
    """

    tile: Tile
    times: int
    step: int
    steps: tuple[int, ...]


def batches(tiles: Sequence[Tile]) -> tuple[Batch, ...]:
    """All of these, in as few batches as lie evenly apart."""
    alike: dict[Look | int, list[Tile]] = {}
    for tile in tiles:
        alike.setdefault(_look(tile), []).append(tile)
    return tuple(batch for group in alike.values() for batch in _even(group))


def _look(tile: Tile) -> Look | int:
    """What tiles must have in common: their sizes, and the masks themselves."""
    if tile.empty is not None or not tile.segments:
        return tile.start
    return tile.end - tile.start, tuple((s.end - s.start, id(s.mask), s.is_causal) for s in tile.segments)


def _even(group: Sequence[Tile]) -> Iterator[Batch]:
    """Tiles that look alike, cut where they do not lie evenly apart."""
    most = max(1, _QUERIES // (group[0].end - group[0].start))
    first, apart, times = group[0], (0,) * (1 + len(group[0].segments)), 1
    for last, tile in zip(group, group[1:], strict=False):
        found = _apart(last, tile)
        if times < most and min(found) >= 0 and (times == 1 or found == apart):
            apart, times = found, times + 1
            continue
        yield Batch(first, times, apart[0], apart[1:])
        first, apart, times = tile, (0,) * len(apart), 1
    yield Batch(first, times, apart[0], apart[1:])


def _apart(a: Tile, b: Tile) -> tuple[int, ...]:
    return b.start - a.start, *(to.start - of.start for of, to in zip(a.segments, b.segments, strict=True))


def taken(states: Tensor, start: int, end: int, times: int, step: int) -> Tensor:
    """The places `start .. end - 1`, and as many again each `step` further on, as rows of a batch.

    Args:
        states: `(rows, heads, places, any)`; one row where there are several `times`.

    Returns:
        A view, `(rows or times, heads, end - start, any)`.
    """
    if times == 1:
        return states[:, :, start:end]
    if step == 0:
        return states[:, :, start:end].expand(times, -1, -1, -1)
    lines = states[0, :, start : end + (times - 1) * step].unfold(1, end - start, step)
    return lines.permute(1, 0, 3, 2)


def add_to(total: Tensor, found: Tensor, start: int, times: int, step: int) -> None:
    """Add what was found for places that were `taken` to those places of `total`.

    Args:
        total: `(rows, any, places, any)`, and `found` alike, with as many dimensions in the place of the first `any`.
    """
    size = found.shape[-2]
    if times == 1:
        total[..., start : start + size, :] += found
        return
    for number in range(times):
        total[0, ..., start + number * step : start + number * step + size, :] += found[number]
