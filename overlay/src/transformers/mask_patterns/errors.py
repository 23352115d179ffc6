"""What the library raises. Both are `ValueError`s, so one `except` catches bad input of any kind."""

from __future__ import annotations

import re
from reprlib import Repr


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class UnsupportedMaskError(ValueError):
    """The mask is well formed, but this backend, cache or call cannot obey it.

    Raised instead of running a different mask: the message says which mask, what stands in its way, and what can.
    """


class PatternSyntaxError(ValueError):
    """A pattern's text cannot be read; the message shows the place with a caret under it."""


def shown(value: object) -> str:
    """A value as a message shows it: short and printable, whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__} of too many digits"


def bad_argument(name: str, got: object, expected: str, remedy: str) -> ValueError:
    """A `ValueError` that names the argument, what came, what was expected, and what to do."""
    return ValueError(f"`{name}`: got {got}; expected {expected}. {remedy}")


def pointed_at(text: str, place: int) -> str:
    """Two lines: the text, printable and shortened around the place, and a caret under the place."""
    left, right = max(0, place - 40), place + 40
    head, tail = "..." if left else "", "..." if right < len(text) else ""
    line = re.sub(r"[^\x20-\x7e]", "?", text[left:right])
    return f"  {head}{line}{tail}\n  {' ' * (len(head) + place - left)}^"
