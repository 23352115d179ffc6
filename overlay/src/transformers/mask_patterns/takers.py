"""Which models take masks of ours, and the refusal of a pattern in the configuration of one that does not."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

from .errors import UnsupportedMaskError


TAKERS = "Qwen2, Qwen3 and their MoE siblings take one."


def takes_masks(kind: type) -> bool:
    """Whether models of this class ask for their masks: the code of their forward, or of one above it, imports us.

    The code decides, not a mark beside it, as upstream generates models from one another, and marks come along
    where the forward does not.
    """
    if computes_with_its_mask(kind):
        return False
    forwards = (unwrap(vars(base)["forward"]) for base in kind.__mro__ if "forward" in vars(base))
    return any("mask_patterns" in forward.__code__.co_names for forward in forwards if hasattr(forward, "__code__"))


def computes_with_its_mask(kind: type) -> bool:
    """Whether this model was generated with a forward that asks, but needs the tensor that upstream makes."""
    return any(base.__name__ == "DogeModel" for base in kind.__mro__)


def check_config(model: Any) -> None:
    """At the end of a model's construction: something in it reads the pattern of its config, if there is one.

    Raises:
        UnsupportedMaskError: the pattern would be ignored.
    """
    said = model.config.__dict__.get("mask_pattern")
    if said is None:
        return
    if not any(takes_masks(type(part)) and part.config.mask_pattern == said for part in model.modules()):
        kind = type(model.config).__name__
        raise UnsupportedMaskError(f"{kind}: mask_pattern={said!r} would be ignored by this model. {TAKERS}")
