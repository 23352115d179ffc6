"""Another pattern for each layer, and the JSON form in which a configuration holds patterns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from .choices import Choices
from .drawable import Drawable
from .errors import PatternSyntaxError, bad_argument, pointed_at, shown
from .grammar import MAX_LENGTH, is_text
from .library import Causal, PerHead, SlidingWindow
from .pattern import Pattern


if TYPE_CHECKING:
    from torch import Tensor

    from .report import Report


MOST_KEYS = 1_000


class Own(Enum):
    """What a layer has when it has no pattern."""

    NATIVE = "native"

    def __str__(self) -> str:
        return self.value


NATIVE = Own.NATIVE  # upstream's own mask
LayerMask: TypeAlias = "Pattern | Own"
Masks: TypeAlias = "Pattern | PerLayer"


@dataclass(frozen=True)
class PerLayer(Drawable):
    """A pattern for each layer of a model.

    Args:
        layers: a mapping from layer numbers (`0`), ranges (`"4-27"`), layer types (`"sliding_attention"`) or
            `"default"` to patterns, their texts, or `"native"`, which keeps upstream's own mask for those layers.
            Every layer must be covered, and named once.

    `PerLayer({"0-3": "causal", "default": Sink(4) | SlidingWindow(1024)})`. A plain mapping does where a model takes
    `mask_pattern`.
    """

    layers: Choices[LayerMask]

    def __init__(self, layers: Mapping[Any, Any] | Choices[LayerMask]) -> None:
        if not isinstance(layers, Choices):
            layers = _choices(layers)
        object.__setattr__(self, "layers", layers)

    @classmethod
    def parse(cls, text: str) -> PerLayer:
        """Read the JSON form, `{"0-3": "causal", "default": "native"}`; `PerLayer.parse(str(p)) == p`."""
        return cls(_object(text))

    def __str__(self) -> str:
        return json.dumps(to_json(self)) if all(_is_saved(value) for _, value in self.layers) else repr(self)

    def __repr__(self) -> str:
        return f"PerLayer({{{', '.join(f'{key!r}: {value!r}' for key, value in self.layers)}}})"

    def patterns(self, layers: int, layer_types: Sequence[str] | None = None) -> tuple[LayerMask, ...]:
        """What each of a model's layers has.

        Args:
            layers: how many there are.
            layer_types: of each layer, as in a model's config; `full_attention` where none are given.

        Raises:
            ValueError: a layer is not covered or named twice, or a key names what the model does not have.
        """
        return self.layers.at("mask_pattern", layers, tuple(layer_types or ["full_attention"] * layers))

    def resolve(
        self, layers: int, layer_types: Sequence[str] | None = None, sliding_window: int | None = None
    ) -> tuple[Pattern, ...]:
        """A pattern for each layer, those that mean upstream's own masks included.

        Args:
            sliding_window: what the model's `sliding_attention` layers see, in tokens.
        """
        kinds = layer_types or ["full_attention"] * layers
        window = Causal() if sliding_window is None else SlidingWindow(sliding_window)
        own: list[Pattern] = [window if kind == "sliding_attention" else Causal() for kind in kinds]
        said = self.patterns(layers, layer_types)
        return tuple(mine if isinstance(mask, Own) else mask for mask, mine in zip(said, own, strict=True))

    def check(
        self,
        length: int,
        *,
        layers: int,
        layer_types: Sequence[str] | None = None,
        sliding_window: int | None = None,
        heads: int = 1,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        split: int | None = None,
        **inputs: Tensor,
    ) -> Report:
        """What these masks do to training and generation, layer by layer: as `Pattern.check`.

        Args:
            layers, layer_types, sliding_window: of the model, as for `resolve`.
        """
        from .report import Question

        question = Question(length, heads, labels, attention_mask, split, inputs)
        return question.report(self, self.resolve(layers, layer_types, sliding_window), endless=False)


_SAID = (Pattern, PerLayer, Own)


def for_model(masks: Masks | Own, layers: int, kinds: Sequence[str] | None, groups: int) -> tuple[LayerMask, ...]:
    """What each of a model's layers has.

    Args:
        layers: how many there are.
        kinds: the type of each, as in a model's config; `full_attention` where none are given.
        groups: key/value heads.

    Raises:
        ValueError: a layer or a head is named that the model does not have, or is named twice or left out.
    """
    plan = masks.patterns(layers, kinds) if isinstance(masks, PerLayer) else (masks,) * layers
    for mask in dict.fromkeys(plan):
        if isinstance(mask, Pattern):
            mask.require_groups(groups)
    return plan


def parse_masks(said: Any) -> Masks | Own:
    """What a caller, a command line or a configuration says: a pattern, a text, or a mapping by layers or heads.

    Raises:
        PatternSyntaxError: a text that cannot be read.
        ValueError: a mapping with wrong keys or values, or none of these.
    """
    if isinstance(said, _SAID):
        return said
    if isinstance(said, str):
        if said.lstrip().startswith("{"):
            said = _object(said)
        else:
            return NATIVE if said.strip() == NATIVE.value else Pattern.parse(said)
    if isinstance(said, Mapping):
        _check_size(said)
        return _per_head(said) if set(said) == {"per_head"} else PerLayer(said)
    expected = "a pattern such as Sink(4) | SlidingWindow(1024), its text, a mapping of layers to them, or 'native'"
    raise bad_argument("mask_pattern", type(said).__name__, expected, "A tensor goes into attention_mask.")


def to_json(masks: Masks) -> str | dict[str, Any]:
    """What a `config.json` holds: a text, or an object by layers or heads.

    Raises:
        ValueError: a pattern holds tensors or a function without a name, or the text is too long.
    """
    if isinstance(masks, PerLayer):
        saved = {key: _value_json(value) for key, value in masks.layers}
        _check_length(len(json.dumps(saved)))
        return saved
    if isinstance(masks, PerHead):
        groups = {key: _text(pattern) for key, pattern in masks.choices}
        _check_length(len(json.dumps(groups)))
        return {"per_head": groups}
    return _text(masks)


def _value_json(value: LayerMask) -> str | dict[str, Any]:
    return value.value if isinstance(value, Own) else to_json(value)


def _text(pattern: Pattern) -> str:
    if not is_text(pattern):
        raise ValueError(
            f"`mask_pattern`: got {pattern!r}, which a config.json cannot hold; expected static parameters and named "
            "functions. Bind data per call - model(..., mask_pattern=...) or mask_inputs={...} - and name a function: "
            "from_function(f, name='my_mask')."
        )
    read = Pattern.parse(str(pattern))  # raises on one too long or too deep to be read back
    if read != pattern:
        expected = "a pattern that its text says: classes of the library, and the latest function of each name"
        remedy = "Make a pattern of your own with from_function(f, name='my_mask'), and name every function otherwise."
        raise bad_argument(
            "mask_pattern", f"{pattern!r}, of which {str(pattern)!r} would say another", expected, remedy
        )
    return str(read)


def _is_saved(value: LayerMask) -> bool:
    return isinstance(value, Own) or is_text(value)


def _choices(given: object) -> Choices[LayerMask]:
    if not isinstance(given, Mapping):
        expected = "a mapping such as {'0-3': 'causal', 'default': 'native'}"
        raise bad_argument("mask_pattern", type(given).__name__, expected, "See PerLayer.")
    read = {key: _layer_mask(key, value) for key, value in given.items()}
    return Choices.of("mask_pattern", read, kinds=True)


def _layer_mask(key: object, value: Any) -> LayerMask:
    name = f"mask_pattern[{shown(key)}]"
    is_text = isinstance(value, str) and not value.lstrip().startswith("{")
    is_per_head = isinstance(value, Mapping) and set(value) == {"per_head"}
    if not (is_text or is_per_head or isinstance(value, Pattern | Own)):
        expected = "a pattern, its text, {'per_head': {...}} or 'native'"
        raise bad_argument(name, f"a {type(value).__name__}", expected, "Layers do not nest.")
    try:
        read = parse_masks(value)
    except PatternSyntaxError as error:
        raise PatternSyntaxError(f"{name}: {error}") from None
    assert not isinstance(read, PerLayer)
    return read


def _per_head(said: Mapping[str, Any]) -> PerHead:
    groups = said["per_head"]
    if not isinstance(groups, Mapping):
        expected = "a mapping of head groups to patterns"
        raise bad_argument("mask_pattern['per_head']", type(groups).__name__, expected, "See PerHead.")
    return PerHead(groups)


def _object(text: str) -> Mapping[str, Any]:
    """A JSON object, read within bounds."""
    _check_length(len(text))
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles, parse_int=str)
    except (json.JSONDecodeError, RecursionError) as error:
        place = getattr(error, "pos", 0)
        raise PatternSyntaxError(f"this is not a JSON object:\n{pointed_at(text, place)}\n{error}") from None
    if not isinstance(found, Mapping):
        raise bad_argument("mask_pattern", type(found).__name__, "a JSON object", "Or the text of a pattern.")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, _ in pairs:
        if sum(key == other for other, _ in pairs) > 1:
            raise bad_argument("mask_pattern", f"{key[:40]!r} twice", "every key once", "Remove one of them.")
    return dict(pairs)


def _check_size(said: Mapping[Any, Any]) -> None:
    """Refuse more keys or text than a configuration may hold, before any of it is read."""
    keys, texts, mappings = 0, 0, [said]
    while mappings:
        values = mappings.pop()
        keys += len(values)
        if keys > MOST_KEYS:
            expected = f"at most {MOST_KEYS:,}"
            raise bad_argument("mask_pattern", f"more than {MOST_KEYS:,} keys", expected, "Name numbers by ranges.")
        texts += sum(len(value) for value in values.values() if isinstance(value, str))
        mappings += [value for value in values.values() if isinstance(value, Mapping)]
    _check_length(texts)


def _check_length(characters: int) -> None:
    if characters > MAX_LENGTH:
        got, expected = f"{characters:,} characters", f"at most {MAX_LENGTH:,}"
        raise PatternSyntaxError(f"`mask_pattern`: got {got}; expected {expected}. Name numbers by ranges.")
