"""A picture as PNG, by matplotlib: the same shapes as the SVG's."""

from __future__ import annotations

from functools import singledispatch
from io import BytesIO
from typing import Any

from .layout import drawing
from .picture import Picture
from .shapes import CARD, FONT, INK, MUTED, Box, Cells, Shape, Strokes, Text, Weight, colour


_INCH = 96  # pixels of the drawing
_POINT = 72 / _INCH
_SCALE = 2  # pixels of the image for each of the drawing


def png(picture: Picture) -> bytes:
    """A picture as a PNG image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a .png is drawn by matplotlib: pip install matplotlib, or save a .svg") from error
    card, out = drawing(picture), BytesIO()
    figure = Figure((card.width / _INCH, card.height / _INCH), _INCH * _SCALE, facecolor=CARD)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for layer, shape in enumerate(card.shapes):
        _add(shape, axes, layer)
    axes.set(xlim=(0, card.width), ylim=(card.height, 0), aspect="auto")
    figure.savefig(out, format="png", dpi="figure")
    return out.getvalue()


@singledispatch
def _add(shape: Shape, axes: Any, layer: int) -> None:
    raise TypeError(shape)


@_add.register
def _(shape: Text, axes: Any, layer: int) -> None:
    along = {"start": "left", "middle": "center", "end": "right"}[shape.anchor.value]
    style: dict[str, Any] = {"family": "monospace", "size": FONT * _POINT, "parse_math": False, "zorder": layer}
    style["color"] = MUTED if shape.weight is Weight.LABEL else INK
    style["weight"] = "bold" if shape.weight is Weight.TITLE else "normal"
    if shape.upright:
        # turned text is aligned by its box: what begins at the foot of a text that reads upwards is its bottom
        bottom = {"left": "bottom", "center": "center", "right": "top"}[along]
        axes.text(shape.x, shape.y, shape.text, rotation=90, ha="right", va=bottom, **style)
    else:
        axes.text(shape.x, shape.y, shape.text, ha=along, va="baseline", **style)


@_add.register
def _(shape: Box, axes: Any, layer: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((shape.x, shape.y), shape.width, shape.height, color=shape.fill, lw=0, zorder=layer))


@_add.register
def _(shape: Cells, axes: Any, layer: int) -> None:
    from matplotlib.colors import to_rgb

    image = [[to_rgb(colour(shade)) for shade in row] for row in shape.shades]
    right, bottom = shape.x + shape.cell * len(image), shape.y + shape.cell * len(image)
    axes.imshow(image, extent=(shape.x, right, bottom, shape.y), interpolation="nearest", zorder=layer)


@_add.register
def _(shape: Strokes, axes: Any, layer: int) -> None:
    from matplotlib.collections import LineCollection

    style: dict[str, Any] = {"colors": shape.colour, "linewidths": shape.width * _POINT, "zorder": layer}
    axes.add_collection(LineCollection(shape.lines, linestyles=(0, (3, 4)) if shape.dashed else "solid", **style))
