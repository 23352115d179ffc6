"""The `mask_pattern` of a model's configuration. Torch is imported only when one is set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .layers import Masks


class ConfigPattern:
    """The attribute `mask_pattern` of a configuration class: takes a pattern, its text, or a mapping of layers.

    It holds and saves text, or a JSON object of texts by layers or heads. What is said is read when it is set, so a
    malformed one in a `config.json` fails where the model is loaded.
    """

    def __get__(self, config: Any, owner: type | None = None) -> str | dict[str, Any] | None:
        return None if config is None else config.__dict__.get("mask_pattern")

    def __set__(self, config: Any, value: Masks | str | dict[Any, Any] | None) -> None:
        config.__dict__["mask_pattern"] = None if value is None else config_value(value)


def config_value(value: Masks | str | dict[Any, Any]) -> str | dict[str, Any] | None:
    """What a configuration holds for a mask pattern, in its one canonical form; None for "native".

    Raises:
        ValueError: what is said is malformed or too long, or holds tensors or a function without a name.
    """
    from .layers import Own, parse_masks, to_json

    masks = parse_masks(value)
    return None if isinstance(masks, Own) else to_json(masks)
