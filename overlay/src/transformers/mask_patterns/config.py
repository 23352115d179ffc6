"""The `mask_pattern` of a model's configuration. Torch is imported only when one is set."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import bad_argument


if TYPE_CHECKING:
    from .layers import Masks


# First of the `layer_types` in a saved config: transformers that do not know it refuse the file, and show it.
WARNING = (
    "mask_pattern: stock transformers would ignore it and run another mask. Load this in the mask patterns fork, "
    "or export it there (mask_patterns.export) and load that by an Auto class with trust_remote_code=True."
)
_SIGN = "mask_pattern:"  # how it begins, in any release of the fork


class ConfigPattern:
    """The attribute `mask_pattern` of a configuration class: takes a pattern, its text, or a mapping of layers.

    It holds and saves text, or a JSON object of texts by layers or heads. What is said is read when it is set, so a
    malformed one in a `config.json` fails where the model is loaded. Whoever reads the pattern has understood the
    file's warning, which goes then.
    """

    def __get__(self, config: Any, owner: type | None = None) -> str | dict[str, Any] | None:
        value: str | dict[str, Any] | None = None if config is None else config.__dict__.get("mask_pattern")
        return ReadOnly.of(value) if isinstance(value, dict) else value

    def __set__(self, config: Any, value: Masks | str | dict[Any, Any] | None) -> None:
        config.__dict__["mask_pattern"] = None if value is None else config_value(value)
        _drop_warning(config)


# What the base of all configurations has.
mask_pattern = ConfigPattern()


class ReadOnly(dict[str, Any]):
    """A mapping as a configuration shows it. What is put into it in place nobody would check or write as text."""

    @classmethod
    def of(cls, value: dict[str, Any]) -> ReadOnly:
        """The same, mappings within it too."""
        return cls({key: cls.of(inner) if isinstance(inner, dict) else inner for key, inner in value.items()})

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        got, expected = f"a change of {dict(self)} in place", "a whole new one, which is checked"
        remedy = "Write config.mask_pattern = {**config.mask_pattern, ...}."
        raise bad_argument("config.mask_pattern", got, expected, remedy)

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # a copy may be changed


def for_file(config: Any) -> Any:
    """What to write to a `config.json` for `config`: with a pattern, a copy that stock transformers refuses to load.

    Stock reads `mask_pattern`, says nothing and runs its own mask. It does check `layer_types` against the kinds that
    it knows, in every way to load a model, and its error quotes them. The same holds of a configuration inside this
    one, such as that of the text model in a model of images and text.
    """
    inner = {name: value for name, value in config.__dict__.items() if hasattr(type(value), "mask_pattern")}
    changed = {name: marked for name, value in inner.items() if (marked := for_file(value)) is not value}
    if config.__dict__.get("mask_pattern") is not None:
        changed["layer_types"] = [WARNING, *(getattr(config, "layer_types", None) or [])]
    if not changed:
        return config
    marked = copy.copy(config)
    for name, value in changed.items():
        setattr(marked, name, value)
    return marked


def from_file(settings: dict[str, Any]) -> dict[str, Any]:
    """What a `config.json` says, without the warning, where a configuration would look at it before its pattern."""
    inner = {name: from_file(value) for name, value in settings.items() if isinstance(value, dict)}
    said = {**settings, **inner}
    kinds = said.get("layer_types")
    if not kinds or not str(kinds[0]).startswith(_SIGN):
        return said
    if kinds[1:]:
        return said | {"layer_types": kinds[1:]}
    return {name: value for name, value in said.items() if name != "layer_types"}


def _drop_warning(config: Any) -> None:
    kinds = getattr(config, "layer_types", None)
    if not kinds or not kinds[0].startswith(_SIGN):
        return
    if kinds[1:]:
        config.layer_types = kinds[1:]
    else:  # a configuration that has none, and whose cache would look at them
        del config.layer_types


def config_value(value: Masks | str | dict[Any, Any]) -> str | dict[str, Any] | None:
    """What a configuration holds for a mask pattern, in its one canonical form; None for "native".

    Raises:
        ValueError: what is said is malformed or too long, or holds tensors or a function without a name.
    """
    from .layers import Own, parse_masks, to_json

    masks = parse_masks(value)
    return None if isinstance(masks, Own) else to_json(masks)
