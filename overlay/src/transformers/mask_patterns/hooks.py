"""The seam: what patched upstream code calls, and all that it calls.

What differs between upstream versions is translated here and in `forward`; nothing below them knows transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from .attention import READ, AttentionFunction, attend
from .errors import bad_argument
from .forward import Forward
from .generation import PROMPT, check_arguments, mask_preparation, tell_prompt
from .inputs import Prompt
from .layers import NATIVE, Masks, Own, parse_masks
from .library import Causal
from .owners import configured, spokesman
from .refusals import check_combination, check_prepared, check_router
from .takers import check_config, computes_with_its_mask
from .training import LeakWatch, loss_function


__all__ = [
    "attention_function",
    "check_arguments",
    "check_config",
    "loss_function",
    "mask_function",
    "mask_preparation",
    "masks",
    "tell_prompt",
]


def attention_function(function: AttentionFunction) -> AttentionFunction:
    """What `AttentionInterface.get_interface` returns in place of `function`: the same, and it obeys our masks too."""
    return partial(attend, function)


def masks(
    model: Any,
    attention_mask: Any,
    input_ids: Tensor | None,
    inputs_embeds: Tensor,
    position_ids: Tensor | None,
    past_key_values: Any,
    kwargs: MutableMapping[str, Any],
) -> Any:
    """The `attention_mask` that a model's forward goes on with.

    Without a pattern and without a 3D or 4D mask it is `attention_mask`, untouched: upstream does what it always did.
    Otherwise it is a mapping from every layer type to this forward's `LayerMasks`.

    Args:
        model: the base model; its config says the backend, and the pattern unless the call or a subclass does.
        attention_mask: as the caller passed it: None, 2D, 3D, 4D, or masks that were prepared before.
        kwargs: of the forward, which goes on with them to attention; `mask_pattern`, `mask_inputs` and what
            `tell_prompt` added are taken out of it.

    Raises:
        ValueError: malformed masks, patterns or data.
        UnsupportedMaskError: the backend, the cache or the prepared masks cannot obey.
    """
    prompt: Prompt | None = kwargs.pop(PROMPT, None)
    inputs = _inputs(kwargs, prompt)
    given = kwargs.pop("mask_pattern", None)
    if given is None and (own := spokesman(model)) is not None:
        given = own(input_ids, attention_mask=attention_mask, mask_inputs=inputs)
        if given is not None and prompt is not None:
            prompt = replace(prompt, copies=1)  # it has seen all rows
    said = _said(model, given)
    forward = Forward(model.config, inputs_embeds, past_key_values)
    plan = forward.plan(said)
    if all(mask is NATIVE for mask in plan):
        if inputs:
            remedy = "Pass mask_pattern=... too, or leave mask_inputs out."
            raise bad_argument("mask_inputs", sorted(inputs), "a mask pattern that reads it", remedy)
        check_prepared(attention_mask, model.config)
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim == 2 or forward.is_paged:
            return _upstreams(model, attention_mask, kwargs)
        check_router(attention_mask, kwargs)
        lowered = forward.whole(attention_mask)
    else:
        check_combination(said, attention_mask)
        is_upstreams = forward.is_plain_flash and set(plan) <= {Causal(), NATIVE} and not inputs
        if is_upstreams and not _is_packed(attention_mask, position_ids):
            return _upstreams(model, attention_mask, kwargs)
        lowered = forward.patterns(
            said, plan, attention_mask, input_ids, position_ids, inputs, prompt, LeakWatch.of(model)
        )
    return dict.fromkeys(forward.layer_types, lowered)


def _upstreams(model: Any, attention_mask: Any, kwargs: MutableMapping[str, Any]) -> Any:
    """The caller's `attention_mask`, for upstream's own mask; `attend` hears that no pattern is ignored by that."""
    if getattr(model.config, "mask_pattern", None) is not None:
        kwargs[READ] = True
    return attention_mask


def mask_function(
    model: Any, function: Callable[..., Any], input_ids: Tensor | None, kwargs: MutableMapping[str, Any]
) -> Callable[..., Any]:
    """What a forward with one mask for all layers calls in place of upstream's `function`; `masks` says the rest."""
    if computes_with_its_mask(type(model)):
        return function

    def asked(*, attention_mask: Any, **given: Any) -> Any:
        embeds, positions, cache = (given[name] for name in ("inputs_embeds", "position_ids", "past_key_values"))
        found = masks(model, attention_mask, input_ids, embeds, positions, cache, kwargs)
        return _only(found) if isinstance(found, Mapping) else function(attention_mask=found, **given)

    return asked


def _only(masks: Mapping[str, Any]) -> Any:
    """The one mask of all layers."""
    first, *others = masks.values()
    if any(other is not first for other in others):
        raise bad_argument("attention_mask", f"masks for {sorted(masks)}", "one for all layers", "Pass that one.")
    return first


def _inputs(kwargs: MutableMapping[str, Any], prompt: Prompt | None) -> Mapping[str, Tensor]:
    """The `mask_inputs` of this call, taken out of its arguments, with a line for each row of the batch."""
    inputs: Mapping[str, Tensor] = kwargs.pop("mask_inputs", None) or {}
    if absent := [name for name, tensor in inputs.items() if tensor is None]:
        raise bad_argument("mask_inputs", f"None for {absent}", "tensors", "Leave out what is not known.")
    if prompt is None or prompt.copies == 1:
        return inputs
    return {name: prompt.repeated(data) if isinstance(data, Tensor) else data for name, data in inputs.items()}


def _said(model: Any, given: Any) -> Masks | Own:
    """What this call's masks are: as passed or as a `get_mask_pattern` says, else the config."""
    if given is None:
        given = configured(model)
    return NATIVE if given is None else parse_masks(given)


def _is_packed(attention_mask: Tensor | None, position_ids: Tensor | None) -> bool:
    """Whether upstream would take restarting `position_ids` for documents, which plain `Causal()` does not isolate."""
    return attention_mask is None and position_ids is not None and bool((position_ids.diff(dim=-1) != 1).any())
