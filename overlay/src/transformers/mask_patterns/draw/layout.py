"""Where everything of a picture goes: small multiples of one size, axes, a legend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from textwrap import wrap

from .axes import printable, short_number, shortened, ticks, width
from .picture import Panel, Picture
from .shapes import CARD, FONT, FUTURE, LETTER, PAST, Anchor, Box, Cells, Drawing, Shape, Strokes, Text, Weight
from .tiles import Tiles


_LINE, _PAD, _GAP = 15, 16, 26
_PAGE = 860  # width that a page shows without scaling
_LEAST = 330  # width that a legend needs
_MOST_TOKEN = 14
_DIAGONAL = "#6b727a"


@dataclass(frozen=True)
class _Frame:
    """The sizes that all panels of a picture share."""

    cell: int
    tiles: int
    left: float
    top: float
    title_lines: int
    names: list[str]

    @classmethod
    def of(cls, picture: Picture) -> _Frame:
        """One panel is drawn larger than several."""
        several = len(picture.panels) > 1
        names = _names(picture)
        tiles = len(_drawn(picture, picture.panels[0]).shades)
        side = (220 if several else 360) if picture.by_pair else (192 if several else 384)
        least = 13 if names else 5 if picture.by_pair else 1
        cell = max(least, min(24, side // tiles))
        title_lines = max(len(_wrapped(panel.title, cell * tiles)) for panel in picture.panels)
        room = LETTER * (max(map(width, names)) if names else 4)
        top = (title_lines + 1) * _LINE + (room if names else FONT) + 8
        return cls(cell, tiles, room + _LINE + 10, top, title_lines, names)

    @property
    def side(self) -> int:
        return self.cell * self.tiles

    @property
    def width(self) -> float:
        return self.left + self.side

    @property
    def height(self) -> float:
        return self.top + self.side


def drawing(picture: Picture) -> Drawing:
    """A picture as shapes: its title, its panels in rows, queries down and keys to the right, and a legend."""
    frame, count = _Frame.of(picture), len(picture.panels)
    rows = ceil(count / max(1, int((_PAGE + _GAP) // (frame.width + _GAP))))
    across = ceil(count / rows)
    page = max(2 * _PAD + across * (frame.width + _GAP) - _GAP, _LEAST)
    title = _wrapped(picture.title, (page - 2 * _PAD) / 1.15)
    shapes: list[Shape] = [
        Text(_PAD, _PAD + 10 + i * (_LINE + 2), line, weight=Weight.TITLE) for i, line in enumerate(title)
    ]
    head = _PAD + len(title) * (_LINE + 2) + 6
    for i, panel in enumerate(picture.panels):
        x, y = _PAD + i % across * (frame.width + _GAP), head + i // across * (frame.height + _GAP)
        shapes += _panel(picture, panel, frame, x, y)
    foot = head + rows * (frame.height + _GAP)
    shapes += _legend(picture, foot)
    return Drawing(picture.title, page, foot + _LINE, shapes)


def _panel(picture: Picture, panel: Panel, frame: _Frame, x: float, y: float) -> Iterator[Shape]:
    left, top = x + frame.left, y + frame.top
    base = y + frame.title_lines * _LINE + 10
    for i, line in enumerate(reversed(_wrapped(panel.title, frame.side)), start=1):
        yield Text(left, base - i * _LINE, line, weight=Weight.HEADING)
    yield Text(left, base, "key →")
    yield Text(x + 10, top, "← query", Anchor.END, upright=True)
    yield from _tokens(frame, left, top) if frame.names else _positions(picture, frame, left, top)
    yield Cells(left, top, frame.cell, _drawn(picture, panel).shades)
    if picture.by_pair:
        yield from _squares(frame, left, top)
    else:
        yield Strokes([[(left, top), (left + frame.side, top + frame.side)]], _DIAGONAL, 1, dashed=True)


def _squares(frame: _Frame, left: float, top: float) -> Iterator[Strokes]:
    """What sets pairs apart, and the stairs between what is past and what is to come."""
    cell, side, n = frame.cell, frame.side, frame.tiles
    upright = [[(left + i * cell, top), (left + i * cell, top + side)] for i in range(1, n)]
    level = [[(left, top + i * cell), (left + side, top + i * cell)] for i in range(1, n)]
    yield Strokes(upright + level, CARD, 1.5 if cell > 10 else 0.75)
    stairs = [(left + (i + 1) // 2 * cell, top + i // 2 * cell) for i in range(2 * n + 1)]
    yield Strokes([stairs], _DIAGONAL, 1)


def _tokens(frame: _Frame, left: float, top: float) -> Iterator[Text]:
    for i, name in enumerate(frame.names):
        middle = (i + 0.5) * frame.cell + 4
        yield Text(left + middle, top - 5, name, upright=True)
        yield Text(left - 5, top + middle, name, Anchor.END)


def _positions(picture: Picture, frame: _Frame, left: float, top: float) -> Iterator[Text]:
    for mark in _marks(picture, frame):
        place = (mark + 0.5) * frame.cell if picture.by_pair else mark * frame.side / picture.length
        at_end = mark == picture.length
        yield Text(left + place, top - 5, short_number(mark), Anchor.END if at_end else Anchor.MIDDLE)
        yield Text(left - 5, top + place + 4, short_number(mark), Anchor.END)


def _marks(picture: Picture, frame: _Frame) -> list[int]:
    if not picture.by_pair:
        return ticks(picture.length, frame.side // 48)
    all_fit = frame.cell >= len(str(picture.length - 1)) * LETTER + 2
    return [mark for mark in ticks(picture.length, picture.length if all_fit else 8) if mark < picture.length]


def _names(picture: Picture) -> list[str]:
    if not picture.by_pair or picture.tokens is None:
        return []
    return [shortened(printable(token), _MOST_TOKEN) for token in picture.tokens]


def _drawn(picture: Picture, panel: Panel) -> Tiles:
    """Several panels get coarser tiles, as each is smaller."""
    if picture.by_pair or len(picture.panels) == 1:
        return panel.tiles
    return panel.tiles.coarser(64, 64)


def _legend(picture: Picture, y: float) -> Iterator[Shape]:
    items = [(PAST[-1], "visible")]
    if picture.looks_ahead:
        items.append((FUTURE[-1], "visible, later than the query"))
    if not picture.by_pair:
        items.append((PAST[0], "in part"))
    x = float(_PAD)
    for fill, label in items:
        yield Box(x, y - 9, 10, 10, fill)
        yield Text(x + 15, y, label)
        x += 15 + len(label) * LETTER + 16


def _wrapped(title: str, room: float) -> list[str]:
    return wrap(title, max(8, int(room / LETTER)), max_lines=3, placeholder=" …") if title else []
