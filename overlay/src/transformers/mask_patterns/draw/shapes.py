"""The few shapes that pictures are made of, in pixels from the upper left corner, and their colours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


# Blue and orange, which no common colour blindness confuses; the palest still stands out from a hidden tile.
PAST = ("#a9cdec", "#6ea8db", "#3f82c4", "#1c5c9c")
FUTURE = ("#fad3a0", "#f3a953", "#e07f1e", "#b85c00")
HIDDEN = "#eaecf0"
CARD, EDGE, INK, MUTED = "#ffffff", "#d5d9de", "#24292f", "#57606a"
FONT, LETTER = 11, 6.7  # of texts, pixels: their size, and the width of a monospaced letter


def colour(shade: int) -> str:
    """The colour of a tile of `Tiles.shades`."""
    return HIDDEN if shade == 0 else PAST[shade - 1] if shade > 0 else FUTURE[-shade - 1]


class Anchor(Enum):
    """Which part of a text stands at its place, in SVG's words."""

    START = "start"
    MIDDLE = "middle"
    END = "end"


class Weight(Enum):
    """How much a text asks to be read."""

    TITLE = "title"
    HEADING = "heading"
    LABEL = "label"


@dataclass(frozen=True)
class Text:
    """A line of text on the baseline at `(x, y)`; an upright one reads upwards from there."""

    x: float
    y: float
    text: str
    anchor: Anchor = Anchor.START
    weight: Weight = Weight.LABEL
    upright: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True)
class Cells:
    """A square of tiles, each `cell` pixels wide, coloured by `Tiles.shades`."""

    x: float
    y: float
    cell: int
    shades: list[list[int]]


@dataclass(frozen=True)
class Strokes:
    """Lines through the given points."""

    lines: list[list[tuple[float, float]]]
    colour: str
    width: float
    dashed: bool = False


Shape: TypeAlias = "Text | Box | Cells | Strokes"


@dataclass(frozen=True)
class Drawing:
    """Shapes, one on top of the other, on a white card."""

    title: str
    width: float
    height: float
    shapes: list[Shape]
