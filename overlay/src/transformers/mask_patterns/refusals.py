"""What one call may not bring together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedMaskError, bad_argument
from .inputs import PER_ROW, PER_TOKEN
from .layers import Masks, Own


def check_prepared(attention_mask: Any, config: Any) -> None:
    """Refuse a mapping of masks that upstream would misread: it adds what should hide, or reads head 0 only."""
    if not isinstance(attention_mask, Mapping):
        return
    backend = config._attn_implementation
    for kind, mask in attention_mask.items():
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            continue
        fits = {"eager": mask.is_floating_point(), "flex_attention": False}.get(backend, True)
        if not fits or not (mask.is_floating_point() or mask.dtype == torch.bool):
            expected = f"what {backend} takes as it is"
            remedy = "Pass the tensor itself as attention_mask, not in a mapping."
            raise bad_argument(f"attention_mask[{kind!r}]", f"a {mask.dtype} tensor", expected, remedy)


def check_no_inputs(inputs: Mapping[str, Tensor], beside: str = "") -> None:
    """Refuse data that no pattern is there to read."""
    if inputs:
        remedy = "Pass mask_pattern=... too, or leave mask_inputs out."
        raise bad_argument("mask_inputs", f"{sorted(inputs)}{beside}", "a mask pattern that reads it", remedy)


_DATA = {*PER_TOKEN, *PER_ROW, "tree_parents"}


def check_keywords(kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that a forward would pass on and never read, though they can only mean our masks.

    Raises:
        ValueError: data beside the batch in place of `mask_inputs`, or a misspelled `mask_pattern` or `mask_inputs`.
    """
    for name in kwargs:
        if name in _DATA:
            remedy = f"Pass mask_inputs={{{name!r}: ...}}."
            raise bad_argument(name, "an argument of its own", "it within mask_inputs", remedy)
        if name.startswith(("mask_pattern", "mask_input")):
            raise bad_argument(name, "an unknown argument", "mask_pattern or mask_inputs", "Spell it so.")


def check_pipeline(given: Mapping[str, Any], forwarded: Mapping[str, Any]) -> None:
    """Refuse arguments of a pipeline that say our masks, and that it does not hand on to its model.

    Args:
        given: when the pipeline was made, or called.
        forwarded: what it hands on of these.

    Raises:
        UnsupportedMaskError: names the argument.
    """
    for name in given:
        if name.startswith(("mask_pattern", "mask_input")) and name not in forwarded:
            raise UnsupportedMaskError(
                f"`{name}`: this pipeline does not hand it on to its model. Set model.config.mask_pattern, or call "
                "the pipeline inside `with use_mask_pattern(pipeline.model, ...)`."
            )


def check_order(model: Any) -> None:
    """Refuse layers that stand elsewhere than they say: each finds its own mask, and its cache, by its number.

    Raises:
        UnsupportedMaskError: a layer was moved, copied or taken out.
    """
    for place, layer in zip(range(model.config.num_hidden_layers), model.layers, strict=False):
        said = layer.self_attn.layer_idx
        if said != place:
            raise UnsupportedMaskError(
                f"layer {place} of {type(model).__name__} says that it is layer {said}, so masks and caches would be "
                f"mixed up. Number the layers in order: model.layers[{place}].self_attn.layer_idx = {place}."
            )


def check_router(mask: Any, is_asked: Any) -> None:
    """Refuse a whole mask where the loss that balances experts reads the same argument, to leave padding out.

    Args:
        is_asked: `output_router_logits`.
    """
    if is_asked and isinstance(mask, Tensor) and mask.ndim > 2:
        expected = "a 2D mask beside output_router_logits=True, whose loss counts the real tokens by it"
        remedy = "Put the mask in a pattern, from_function(lambda b, h, q, k: mask[b, q, k]), or switch the loss off."
        raise bad_argument("attention_mask", f"a {mask.ndim}D mask", expected, remedy)


def check_combination(pattern: Masks | Own, attention_mask: Any) -> None:
    """Refuse to trace a pattern, and two masks at once: a pattern is a whole mask, as a 3D, 4D or prepared one is."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise UnsupportedMaskError(
            f"mask_pattern={str(pattern)!r}: torch.jit.trace would keep this length's mask for every other. "
            "Use torch.compile, or trace with mask_pattern='native'."
        )
    if attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.ndim < 3):
        return
    if isinstance(attention_mask, Tensor):
        got = f"a {attention_mask.ndim}D mask beside mask_pattern={str(pattern)!r}"
        remedy = "Each is a whole mask: pass mask_pattern='native' to use the tensor alone, or put it in a pattern: "
        remedy += "from_function(lambda b, h, q, k: mask[b, q, k]) & ..."
        raise bad_argument("attention_mask", got, "None or a 2D mask of real tokens and padding", remedy)
    raise UnsupportedMaskError(
        f"`attention_mask`: got masks prepared ahead ({type(attention_mask).__name__}), which do not know "
        f"mask_pattern={str(pattern)!r}. Pass the 2D mask that they were made from, or mask_pattern='native'."
    )
