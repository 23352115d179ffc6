"""What stands on the axes: round positions, or the tokens themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from unicodedata import east_asian_width


def ticks(length: int, most: int) -> list[int]:
    """Round positions from 0 to at most `length`, at most `most` steps apart: 0, 25k, 50k, ..."""
    return list(range(0, length + 1, next(step for step in _round_steps() if length <= step * most)))


def spaced_ticks(length: int, room: int) -> list[int]:
    """Round positions below `length` whose labels, and a blank, fit where each position has `room` characters."""
    step = next(step for step in _round_steps() if step * room > len(str(length - 1)))
    return list(range(0, length, step))


def _round_steps() -> Iterator[int]:
    yield from (1, 2, 5)
    for power in count(1):
        yield from (10**power, 25 * 10 ** (power - 1), 5 * 10**power)


def short_number(position: int) -> str:
    """25000 as 25k, 1500000 as 1.5M; a number that would not be exact stays as it is."""
    for unit, sign in ((1_000_000, "M"), (1_000, "k")):
        if position >= unit and position % (unit // 10) == 0:
            return f"{position / unit:g}{sign}"
    return str(position)


def printable(token: str) -> str:
    """A token as it can stand on an axis: blanks as `␣`, what cannot be printed by its escape."""
    return "".join("␣" if c == " " else c if c.isprintable() else repr(c)[1:-1] for c in token)


def width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(1 + (east_asian_width(c) in "WF") for c in text)


def shortened(text: str, most: int) -> str:
    """A text of at most `most` columns, an ellipsis where it is cut."""
    if width(text) <= most:
        return text
    while width(text) >= most:
        text = text[:-1]
    return text + "…"
