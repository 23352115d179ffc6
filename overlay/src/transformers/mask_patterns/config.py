"""The `mask_pattern` of a model's configuration. Torch is imported only when one is set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .pattern import Pattern


class ConfigPattern:
    """The attribute `mask_pattern` of a configuration class: takes a pattern or its text, holds and saves the text.

    The text is read when it is set, so a malformed one in a `config.json` fails where the model is loaded.
    """

    def __get__(self, config: Any, owner: type | None = None) -> str | None:
        return None if config is None else config.__dict__.get("mask_pattern")

    def __set__(self, config: Any, value: Pattern | str | None) -> None:
        config.__dict__["mask_pattern"] = None if value is None else config_text(value)


def config_text(value: Pattern | str) -> str:
    """The canonical text of a pattern for a configuration.

    Raises:
        ValueError: the text is malformed or too long, or the pattern holds tensors or a function without a name.
        TypeError: it is neither a pattern nor a text.
    """
    from .grammar import is_text, parse
    from .pattern import Pattern

    if isinstance(value, str):
        return str(parse(value))
    if not isinstance(value, Pattern):
        kind = type(value).__name__
        raise TypeError(
            f"`mask_pattern`: got {kind}; expected a pattern such as Sink(4) | SlidingWindow(1024), or its text."
        )
    if not is_text(value):
        raise ValueError(
            f"`mask_pattern`: got {value!r}, which a config.json cannot hold; expected static parameters and named "
            "functions. Bind data per call - model(..., mask_pattern=...) or mask_inputs={...} - and name a function: "
            "from_function(f, name='my_mask')."
        )
    return str(parse(str(value)))  # raises on one too long or too deep to be read back
