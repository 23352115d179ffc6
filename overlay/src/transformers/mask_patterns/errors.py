"""What the library raises. Both are `ValueError`s, so one `except` catches bad input of any kind."""


class UnsupportedMaskError(ValueError):
    """The mask is well formed, but this backend, cache or call cannot obey it.

    Raised instead of running a different mask: the message says which mask, what stands in its way, and what can.
    """


class PatternSyntaxError(ValueError):
    """A pattern's text cannot be read; the message shows the place with a caret under it."""


def bad_argument(name: str, got: object, expected: str, remedy: str) -> ValueError:
    """A `ValueError` that names the argument, what came, what was expected, and what to do."""
    return ValueError(f"`{name}`: got {got}; expected {expected}. {remedy}")
