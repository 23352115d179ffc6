"""Which models take masks of ours, and the refusal of a pattern in a configuration that does not fit its model."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

from .errors import UnsupportedMaskError
from .layers import LayerMask, Masks, Own, for_model, parse_masks


TAKERS = "Qwen2, Qwen3 and their MoE siblings take one."


def takes_masks(kind: type) -> bool:
    """Whether models of this class ask for their masks: their forward, or one above it, imports us or is ours.

    The code decides, not a mark beside it, as upstream generates models from one another, and marks come along
    where the forward does not.
    """
    if computes_with_its_mask(kind):
        return False
    forwards = (unwrap(vars(base)["forward"]) for base in kind.__mro__ if "forward" in vars(base))
    return any(_asks(forward) for forward in forwards if hasattr(forward, "__code__"))


def _asks(forward: Any) -> bool:
    ours: bool = forward.__module__.rpartition(".")[0] == __package__  # `standalone.MaskedModel`, of exported models
    return ours or "mask_patterns" in forward.__code__.co_names


def computes_with_its_mask(kind: type) -> bool:
    """Whether this model was generated with a forward that asks, but needs the tensor that upstream makes."""
    return any(base.__name__ == "DogeModel" for base in kind.__mro__)


def check_pattern(model: Any) -> None:
    """At the end of a model's construction: something in it reads the pattern of its config, if there is one.

    Raises:
        UnsupportedMaskError: the pattern would be ignored.
        ValueError: it names layers or heads that the model does not have, or leaves some out.
    """
    said = model.config.__dict__.get("mask_pattern")
    if said is None:
        return
    takers = [part for part in model.modules() if takes_masks(type(part)) and part.config.mask_pattern == said]
    if not takers:
        kind = type(model.config).__name__
        raise UnsupportedMaskError(f"{kind}: mask_pattern={said!r} would be ignored by this model. {TAKERS}")
    plan(parse_masks(said), takers[0].config)


def plan(said: Masks | Own, config: Any) -> tuple[LayerMask, ...]:
    """What each layer of a model with this configuration has; see `layers.for_model`."""
    return for_model(said, int(config.num_hidden_layers), layer_kinds(config), int(config.num_key_value_heads))


def layer_kinds(config: Any) -> list[str]:
    """The type of each layer."""
    if kinds := getattr(config, "layer_types", None):
        return list(kinds)
    layers = int(config.num_hidden_layers)
    if getattr(config, "sliding_window", None) is None or not getattr(config, "use_sliding_window", True):
        return ["full_attention"] * layers
    # Before transformers 4.53 dense models say where windows begin; those with experts have one mask for all layers.
    full = min(int(config.max_window_layers), layers) if config.model_type in ("qwen2", "qwen3") else 0
    return ["full_attention"] * full + ["sliding_attention"] * (layers - full)
