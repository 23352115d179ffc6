"""A picture as SVG: on a white card, so that light and dark pages show it alike."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from xml.sax.saxutils import escape

from .layout import drawing
from .picture import Picture
from .shapes import CARD, EDGE, FONT, INK, MUTED, Anchor, Box, Cells, Drawing, Shape, Strokes, Text, Weight, colour


_STYLE = (
    f"text{{font:{FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:{MUTED}}}"
    f".title{{font-size:{FONT + 1.5}px;font-weight:bold}}.title,.heading{{fill:{INK}}}"
)


def svg(picture: Picture) -> str:
    """A picture as an SVG document."""
    card = drawing(picture)
    return "\n".join([*_head(card), *map(_element, card.shapes), "</svg>\n"])


def merged(shades: list[list[int]]) -> Iterator[tuple[int, int, int, int, int]]:
    """Rectangles `(shade, x, y, width, height)` that cover what is not 0: runs of a row, for as long as they last."""
    open_runs: dict[tuple[int, int, int], int] = {}
    for y, row in enumerate([*shades, []]):
        runs = dict.fromkeys(_runs(row))
        for shade, start, end in [run for run in open_runs if run not in runs]:
            top = open_runs.pop((shade, start, end))
            yield shade, start, top, end - start, y - top
        for run in runs:
            open_runs.setdefault(run, y)


def _runs(row: list[int]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for x in range(1, len(row) + 1):
        if x == len(row) or row[x] != row[start]:
            if row[start]:
                yield row[start], start, x
            start = x


def _head(card: Drawing) -> Iterator[str]:
    size = f'width="{card.width:g}" height="{card.height:g}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {card.width:g} {card.height:g}" role="img">'
    yield f"<title>{_safe(card.title)}</title><style>{_STYLE}</style>"
    inside = f'width="{card.width - 1:g}" height="{card.height - 1:g}"'
    yield f'<rect x=".5" y=".5" {inside} rx="6" fill="{CARD}" stroke="{EDGE}"/>'


@singledispatch
def _element(shape: Shape) -> str:
    raise TypeError(shape)


@_element.register
def _(shape: Text) -> str:
    at = f'x="{shape.x:g}" y="{shape.y:g}"'
    if shape.upright:
        at = f'transform="translate({shape.x:g} {shape.y:g}) rotate(-90)"'
    kind = "" if shape.weight is Weight.LABEL else f' class="{shape.weight.value}"'
    anchor = "" if shape.anchor is Anchor.START else f' text-anchor="{shape.anchor.value}"'
    return f"<text {at}{kind}{anchor}>{_safe(shape.text)}</text>"


@_element.register
def _(shape: Box) -> str:
    at = f'x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}"'
    return f'<rect {at} fill="{shape.fill}"/>'


@_element.register
def _(shape: Cells) -> str:
    """A path per colour, in a grid whose unit is a tile."""
    n, paths = len(shape.shades), dict[int, list[str]]()
    for shade, x, y, width, height in merged(shape.shades):
        paths.setdefault(shade, []).append(f"M{x} {y}h{width}v{height}h-{width}z")
    parts = {"hidden": (colour(0), f"M0 0h{n}v{n}h-{n}z")}
    parts |= {_name(shade): (colour(shade), "".join(path)) for shade, path in sorted(paths.items())}
    drawn = "".join(f'<path class="{name}" fill="{fill}" d="{d}"/>' for name, (fill, d) in parts.items())
    at = f"translate({shape.x:g} {shape.y:g}) scale({shape.cell})"
    return f'<g class="mask" transform="{at}" shape-rendering="crispEdges">{drawn}</g>'


@_element.register
def _(shape: Strokes) -> str:
    path = "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) for line in shape.lines)
    dashes = ' stroke-dasharray="3 4"' if shape.dashed else ""
    return f'<path fill="none" stroke="{shape.colour}" stroke-width="{shape.width}"{dashes} d="{path}"/>'


def _name(shade: int) -> str:
    return f"past-{shade}" if shade > 0 else f"future-{-shade}"


def _safe(text: str) -> str:
    """Text that any XML reader takes: markup escaped, what XML forbids replaced."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
