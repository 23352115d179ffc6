"""A picture in characters: a line per query, a column per key."""

from __future__ import annotations

from .axes import printable, short_number, shortened, spaced_ticks, ticks, width
from .picture import Picture
from .tiles import Tiles


_ROWS, _COLUMNS = 32, 64  # of tiles: characters are twice as high as they are wide
_WIDE_CELLS = 36  # up to here a cell and a blank beside it make a square, and all fit into 80 columns
_SEEN, _AHEAD, _HIDDEN = "■", "◆", "⬚"
_SHADES = "·░▒▓█"
_MOST_TOKEN, _MOST_HEADER = 12, 8


def text(picture: Picture) -> str:
    """A picture as lines of text.

    Up to 64 tokens a sign is a pair: `■` visible, `◆` visible although the key is later than the query, `⬚` hidden.
    Longer masks are drawn in 32 by 64 tiles, shaded `·░▒▓█` by the part that is visible: `·` is nothing, `█` all.
    """
    blocks = [picture.title]
    for panel in picture.panels:
        lines = _by_pair(panel.tiles, picture.tokens) if picture.by_pair else _shaded(panel.tiles)
        blocks.append("\n".join([panel.title] * bool(panel.title) + lines))
    if picture.looks_ahead:
        blocks.append(f"{_AHEAD} a key later than its query" if picture.by_pair else "some queries see later keys")
    return "\n\n".join(blocks)


def cells(tiles: Tiles, size: int = 2) -> list[str]:
    """A line per query, a sign per key, each `size` characters wide."""
    signs = [[_AHEAD if shade < 0 else _SEEN if shade else _HIDDEN for shade in row] for row in tiles.shades]
    return [(" " * (size - 1)).join(row) for row in signs]


def _by_pair(tiles: Tiles, tokens: tuple[str, ...] | None) -> list[str]:
    if tokens is None:
        size = 2 if tiles.length <= _WIDE_CELLS else 1
        return _framed(cells(tiles, size), [str(q) for q in range(tiles.length)], [_header(tiles.length, size)])
    names = [printable(token) for token in tokens]
    return _framed(cells(tiles), [shortened(name, _MOST_TOKEN) for name in names], _upright(names))


def _shaded(tiles: Tiles) -> list[str]:
    tiles = tiles.coarser(_ROWS, _COLUMNS)
    lines = ["".join(_SHADES[level] for level in row) for row in tiles.levels.tolist()]
    marks = [tick for tick in ticks(tiles.length, 4) if tick < tiles.length]
    header, labels = [" "] * (_COLUMNS + 8), [""] * len(lines)
    for mark in marks:
        row, column = (int((edges <= mark).sum()) - 1 for edges in (tiles.rows, tiles.columns))
        labels[row] = short_number(mark)
        header[column : column + len(labels[row])] = labels[row]
    return _framed(lines, labels, ["".join(header)])


def _header(length: int, size: int) -> str:
    marks = spaced_ticks(length, size)
    step = (marks + [length])[1]
    return "".join(str(mark).ljust(step * size) for mark in marks)


def _upright(names: list[str]) -> list[str]:
    """Names from top to bottom, one above each column of two characters."""
    columns = [shortened(name, _MOST_HEADER).rjust(_MOST_HEADER) for name in names]
    lines = ["".join(c + " " * (2 - width(c)) for c in line) for line in zip(*columns, strict=False)]
    return [line for line in lines if line.strip()]


def _framed(lines: list[str], labels: list[str], header: list[str]) -> list[str]:
    """Labels at the left, right-aligned, and a header above."""
    corner = "q\\k"
    room = max(len(corner), *map(width, labels))
    heads = [" " * (room + 1) + line for line in header[:-1]] + [corner.rjust(room) + " " + header[-1]]
    body = [" " * (room - width(label)) + label + " " + line for label, line in zip(labels, lines, strict=True)]
    return [line.rstrip() for line in heads + body]
