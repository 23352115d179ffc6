"""`Picture`: the masks of one or several rows, heads and layers, as tiles that any of the writers draws."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_argument
from ..inputs import Rows
from ..layers import Masks
from ..library import Tree
from ..pattern import Pattern
from ..positions import Layout
from .tiles import Tiles, tiles_of


MOST_CELLS = 64  # up to here each pair of tokens is drawn
MOST_TILES = 128
_PLAIN_LENGTH, _MOST_TELLING = 16, 1 << 17


@dataclass(frozen=True)
class Panel:
    """One mask of a picture, and what it is the mask of; no title where it is the only one."""

    title: str
    tiles: Tiles


@dataclass(frozen=True, repr=False)
class Picture:
    """Masks side by side, over the same tokens. A terminal shows it in characters, a notebook as SVG.

    Args:
        title: the pattern's text.
        panels: at least one, all of the same length.
        tokens: one per position, shown on the axes of masks of at most 64 tokens.
    """

    title: str
    panels: tuple[Panel, ...]
    tokens: tuple[str, ...] | None = None

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.panels[0].tiles.length

    @property
    def by_pair(self) -> bool:
        """Whether each pair of tokens is drawn; longer masks are drawn in tiles."""
        return self.length <= MOST_CELLS

    @property
    def looks_ahead(self) -> bool:
        """Whether some query sees a later key."""
        return any(bool(panel.tiles.ahead.any()) for panel in self.panels)

    def text(self) -> str:
        """The picture in characters, for a terminal."""
        from .terminal import text

        return text(self)

    def svg(self) -> str:
        """The picture as an SVG document."""
        from .svg import svg

        return svg(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file, `.svg` or `.png`, whole or not at all.

        Raises:
            ValueError: another suffix, or the folder does not exist.
            ImportError: `.png` without matplotlib.
        """
        path = Path(path)
        if path.suffix.lower() not in (".svg", ".png"):
            raise bad_argument("path", f"{str(path)!r}", "a file name that ends in .svg or .png", "Rename it.")
        if not path.parent.is_dir():
            raise bad_argument("path", f"{str(path)!r}", "a file in a folder that exists", "Make the folder first.")
        _write_whole(path, self.svg().encode() if path.suffix.lower() == ".svg" else self._png())

    __repr__ = text
    _repr_svg_ = svg

    def _png(self) -> bytes:
        from .png import png

        return png(self)


def picture(
    masks: Masks, length: int, *, heads: int = 1, tokens: Sequence[str] | None = None, **inputs: Tensor
) -> Picture:
    """The picture of a pattern, or of patterns by layer.

    There is a panel for each of the layers that are named together, each row of the batch, and each head; heads that
    follow each other and look alike share one. Layers with upstream's own mask are left out: it depends on the model.

    Arguments and errors as for `Drawable.picture`; it is an error, too, if no layer has a pattern.
    """
    names, read = _checked_tokens(tokens, length), set[str]()
    panels: list[Panel] = []
    for title, pattern in _patterns(masks):
        rows = Rows(pattern.layout(length, heads, inputs), inputs, read=read)
        panels += _panels(title, pattern.bind(rows), rows.layout)
    Rows(Layout.of(1, 0), inputs, read=read).require_all_read(masks)
    return Picture(str(masks), tuple(panels), names)


def telling_length(masks: Masks) -> int:
    """A length at which a picture tells something: of the tokens bound to the patterns, or else 16, or four times
    their largest size if that is more; at most 131,072.
    """
    named = [part for _, pattern in _patterns(masks) for part in _with_parts(pattern)]
    bound = [length for part in named for length in _bound_lengths(part)]
    sizes = [size for part in named for size in _sizes(part)]
    return max(bound) if bound else min(max([_PLAIN_LENGTH, *(4 * size for size in sizes)]), _MOST_TELLING)


def _patterns(masks: Masks) -> list[tuple[str, Pattern]]:
    """What is drawn, and its title; the only pattern needs none."""
    if isinstance(masks, Pattern):
        return [("", masks)]
    patterns = [(f"{_layers(key)}: {mask}", mask) for key, mask in masks.layers if isinstance(mask, Pattern)]
    if not patterns:
        raise bad_argument(
            "mask_pattern", str(masks), "a pattern for some layer", "Name one: there is nothing to draw."
        )
    return patterns


def _layers(key: str) -> str:
    return f"layer {key}" if key.isdigit() else f"layers {key}" if key[0].isdigit() else key


def _checked_tokens(tokens: Sequence[str] | None, length: int) -> tuple[str, ...] | None:
    if length < 1:
        raise bad_argument("length", length, "at least one token", "Draw a longer row.")
    if tokens is None:
        return None
    fitting = not isinstance(tokens, str) and len(tokens) == length and all(isinstance(t, str) for t in tokens)
    if not fitting:
        got = repr(tokens) if isinstance(tokens, str) else f"{len(tokens)} of them"
        remedy = "Pass tokenizer.convert_ids_to_tokens(ids), for instance."
        raise bad_argument("tokens", got, f"a list of {length} strings, one per position", remedy)
    return tuple(tokens)


def _panels(title: str, bound: Pattern, layout: Layout) -> Iterator[Panel]:
    rows = tiles_of(bound, layout, layout.length if layout.length <= MOST_CELLS else MOST_TILES)
    for row, by_head in enumerate(rows):
        alike = list(_runs_alike(by_head))
        for first, last in alike:
            parts = [_named("row", row, row)] * (len(rows) > 1) + [_named("head", first, last)] * (len(alike) > 1)
            yield Panel(", ".join(filter(None, [title, *parts])), by_head[first])


def _runs_alike(by_head: list[Tiles]) -> Iterator[tuple[int, int]]:
    """First and last of the heads that follow each other and look the same."""
    first = 0
    for head in range(1, len(by_head) + 1):
        if head == len(by_head) or not by_head[head].looks_like(by_head[first]):
            yield first, head - 1
            first = head


def _named(what: str, first: int, last: int) -> str:
    return f"{what} {first}" if first == last else f"{what}s {first}-{last}"


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the file, then rename, so that no reader ever meets half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _with_parts(pattern: Pattern) -> Iterator[Pattern]:
    yield pattern
    for part in pattern.parts:
        yield from _with_parts(part)


def _bound_lengths(pattern: Pattern) -> Iterator[int]:
    if isinstance(pattern, Tree):
        if pattern.prefix is not None and pattern.parents is not None:
            yield int(torch.as_tensor(pattern.prefix).max()) + torch.as_tensor(pattern.parents).shape[-1]
        return
    yield from (value.shape[1] for value in _arguments(pattern) if isinstance(value, Tensor) and value.ndim == 2)


def _sizes(pattern: Pattern) -> Iterator[int]:
    for value in _arguments(pattern):
        if isinstance(value, int):
            yield value
        elif isinstance(value, Tensor) and value.ndim == 1 and len(value):
            yield int(value.max())


def _arguments(pattern: Pattern) -> list[Any]:
    """Those without keyword: the others are flags and tokens."""
    return [getattr(pattern, argument.name) for argument in fields(pattern) if not argument.kw_only]  # type: ignore[arg-type]
