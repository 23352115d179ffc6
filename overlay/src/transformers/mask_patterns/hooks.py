"""The seam: what patched upstream code calls, and all that it calls.

What differs between upstream versions is translated in `upstream`; nothing below `forward` knows transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .attention import PACKING, READ, AttentionFunction, LayerMasks, attend
from .context import innermost
from .continuous import guard_entries
from .errors import bad_argument
from .forward import Forward
from .generation import (
    PROMPT_MASK,
    PROMPT_ROWS,
    check_arguments,
    check_generation_config,
    has_pattern,
    take_prompt_mask,
    tell_prompt,
)
from .inputs import PromptRows
from .layers import NATIVE, Masks, Own, parse_masks
from .library import Causal
from .owners import configured, spokesman
from .prompt_mask import PromptMask
from .refusals import (
    check_combination,
    check_keywords,
    check_no_inputs,
    check_order,
    check_pipeline,
    check_prepared,
    check_router,
)
from .takers import check_pattern, computes_with_its_mask, takes_masks
from .training import LeakWatch, loss_function
from .upstream import given_embeds, hook_eager, keywords, made_cache, unmade_embeds


__all__ = [
    "attention_function",
    "check_arguments",
    "check_config",
    "check_generation_config",
    "check_pipeline",
    "check_router",
    "hook_eager",
    "keywords",
    "loss_function",
    "mask_function",
    "mask_preparation",
    "masks",
    "masks_first",
    "only",
    "take_prompt_mask",
    "tell_prompt",
]


def check_config(model: Any) -> None:
    """At the end of a model's construction: what would ignore the pattern of its config refuses it."""
    guard_entries(type(model))
    check_pattern(model)


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
    fixed: bool = False,
) -> Any:
    """The `attention_mask` that a model's forward goes on with.

    Without a pattern and without a 3D or 4D mask it is `attention_mask`, untouched: upstream does what it always did.
    Otherwise it is a mapping from every layer type to this forward's `LayerMasks`.

    Args:
        model: the base model; its config says the backend, and the pattern where nothing else does.
        attention_mask: as the caller passed it: None, 2D, 3D, 4D, or masks that were prepared before.
        kwargs: of the forward, which goes on with them to attention; what is ours is taken out of them.
        fixed: whether the masks' shapes must be the same for every token, as a compiled forward wants them.

    Raises:
        ValueError: malformed masks, patterns or data.
        UnsupportedMaskError: the backend, the cache or the prepared masks cannot obey.
    """
    if _are_ready(attention_mask, kwargs):
        return attention_mask
    prompt_mask: PromptMask | None = kwargs.pop(PROMPT_MASK, None)
    of_call = kwargs.get("mask_pattern") is not None
    said, inputs, rows = _said(model, input_ids, attention_mask, kwargs)
    check_keywords(kwargs)
    forward = Forward(model, inputs_embeds, past_key_values, fixed or torch.compiler.is_compiling())
    if said is not NATIVE and prompt_mask is None and not model.training and forward.is_step:
        known = forward.next_token(said, attention_mask, input_ids, position_ids, inputs, rows)
        if known is not None:
            check_combination(said, attention_mask)
            check_order(model)
            return dict.fromkeys(forward.layer_types, known)
    plan = () if said is NATIVE else forward.plan(said)
    if prompt_mask is not None:
        LeakWatch.forget(model)
        lowered = _behind_prompt(forward, prompt_mask, said, of_call, inputs, attention_mask)
    elif all(mask is NATIVE for mask in plan):
        check_no_inputs(inputs)
        LeakWatch.forget(model)
        if not _is_ours(forward, attention_mask, kwargs):
            return _upstreams(model, attention_mask, kwargs)
        lowered = forward.whole(attention_mask)
    else:
        check_combination(said, attention_mask)
        is_upstreams = forward.is_plain_flash and set(plan) <= {Causal(), NATIVE} and not inputs
        if is_upstreams and not _is_packed(attention_mask, position_ids, kwargs):
            return _upstreams(model, attention_mask, kwargs)
        watch = LeakWatch.of(model)
        lowered = forward.patterns(said, plan, attention_mask, input_ids, position_ids, inputs, rows, watch)
    check_order(model)
    return dict.fromkeys(forward.layer_types, lowered)


def masks_first(
    model: Any,
    attention_mask: Any,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: Any,
    use_cache: bool | None,
    kwargs: MutableMapping[str, Any],
) -> tuple[Any, Any]:
    """`masks` in the first line of a forward, and the cache, which upstream would make some lines later.

    Before transformers 4.53 the forward of Qwen2 and Qwen3 is generated from Llama's: they have no other line of their
    own in it.
    """
    if (input_ids is None) == (inputs_embeds is None) or isinstance(past_key_values, tuple | list):
        return attention_mask, past_key_values  # upstream says what is wrong
    embeds = inputs_embeds if input_ids is None else unmade_embeds(model, input_ids)
    assert embeds is not None  # one of the two is there
    cache = made_cache(model, use_cache) if past_key_values is None else past_key_values
    if position_ids is None:
        past = 0 if cache is None else cache.get_seq_length()
        position_ids = (torch.arange(embeds.shape[1], device=embeds.device) + past)[None]
    return masks(model, attention_mask, input_ids, embeds, position_ids, cache, kwargs), cache


def _are_ready(attention_mask: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether `mask_preparation` has made all masks of this forward, beside which nothing else may be said."""
    if not isinstance(attention_mask, Mapping):
        return False
    if not any(isinstance(mask, LayerMasks) for mask in attention_mask.values()):
        return False
    if kwargs.get("mask_pattern") is not None:
        check_combination(kwargs["mask_pattern"], attention_mask)
    check_no_inputs(kwargs.get("mask_inputs") or {}, " beside masks made ahead")
    return True


def _is_ours(forward: Forward, attention_mask: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward without a pattern has a whole mask to obey, which upstream would misread."""
    check_prepared(attention_mask, forward.config)
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim == 2 or forward.is_paged:
        return False
    check_router(attention_mask, kwargs.get("output_router_logits"))
    return True


def mask_preparation(
    model: Any, function: Callable[..., Any], inputs: Mapping[str, Any], kwargs: MutableMapping[str, Any]
) -> Callable[..., Any]:
    """What makes the masks ahead of a forward, as `generate()` does for caches that can be compiled.

    Where there is a mask of ours to obey, they are those of `masks`, so that the forward need not ask a pattern and
    can be compiled as a whole. Where the forward makes one mask for all layers, what upstream's `function` made comes
    in a mapping, so that the forward can tell it from a caller's 4D mask.

    Args:
        inputs: of the forward, as far as they are ready.
        kwargs: of the forward; see `masks`.
    """
    base = model.base_model
    if not takes_masks(type(base)):
        return function

    def ours(attention_mask: Any, past_key_values: Any, **given: Any) -> Any:
        tokens, embeds = inputs.get("input_ids"), given_embeds(given).to(base.device)
        positions = given.get("position_ids", inputs.get("position_ids"))
        return masks(base, attention_mask, tokens, embeds, positions, past_key_values, kwargs, fixed=True)

    def upstreams(attention_mask: Any, **given: Any) -> Any:
        made = function(attention_mask=attention_mask, **given)
        return made if isinstance(made, Mapping) or made is attention_mask else {"full_attention": made}

    return ours if PROMPT_MASK in kwargs or has_pattern(model, kwargs.get("mask_pattern")) else upstreams


def _behind_prompt(
    forward: Forward,
    prompt_mask: PromptMask,
    said: Masks | Own,
    of_call: bool,
    inputs: Mapping[str, Tensor],
    attention_mask: Tensor | None,
) -> LayerMasks:
    """The masks of a `generate()` with a whole mask; what is `said` is for new tokens if the call says it."""
    if not of_call and any(mask is not NATIVE for mask in forward.plan(said)):
        check_combination(said, prompt_mask.given.visible)
    check_no_inputs(inputs, " beside a whole attention_mask")
    lowered: LayerMasks = forward.behind_prompt(prompt_mask, said if of_call else NATIVE, attention_mask)
    return lowered


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
        positions, cache = given["position_ids"], given["past_key_values"]
        found = masks(model, attention_mask, input_ids, given_embeds(given), positions, cache, kwargs)
        return only(found) if isinstance(found, Mapping) else function(attention_mask=found, **given)

    return asked


def only(masks: Mapping[str, Any]) -> Any:
    """The one mask of all layers."""
    first, *others = masks.values()
    if any(other is not first for other in others):
        raise bad_argument("attention_mask", f"masks for {sorted(masks)}", "one for all layers", "Pass that one.")
    return first


def _inputs(kwargs: MutableMapping[str, Any]) -> Mapping[str, Tensor]:
    """The `mask_inputs` of this call, taken out of its arguments."""
    inputs: Mapping[str, Tensor] | None = kwargs.pop("mask_inputs", None)
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        expected = "a mapping of names to tensors, such as {'document_ids': ids}"
        raise bad_argument("mask_inputs", type(inputs).__name__, expected, "Name the data.")
    return inputs


def _for_every_row(inputs: Mapping[str, Tensor], rows: PromptRows | None) -> Mapping[str, Tensor]:
    """The same data, with a line for each row of the batch."""
    if absent := [name for name, tensor in inputs.items() if tensor is None]:
        raise bad_argument("mask_inputs", f"None for {absent}", "tensors", "Leave out what is not known.")
    if rows is None or rows.copies == 1:
        return inputs
    return {name: rows.repeated(name, data) if isinstance(data, Tensor) else data for name, data in inputs.items()}


def _with_tokens(
    inputs: Mapping[str, Tensor], rows: PromptRows | None
) -> tuple[Mapping[str, Tensor], PromptRows | None]:
    """In `generate()`, the tokens of a prompt that came as embeddings: those to come are known, and go on behind."""
    tokens = inputs.get("input_ids")
    if rows is None or not isinstance(tokens, Tensor) or tokens.is_floating_point():
        return inputs, rows
    if tokens.shape[1:] != (rows.slots,) or len(tokens) not in (1, len(rows.counts)):
        return inputs, rows
    tokens = tokens.to(rows.counts.device, torch.int64)
    if rows.tokens is not None and not torch.equal(rows.tokens, tokens.expand_as(rows.tokens)):
        return inputs, rows
    return {name: data for name, data in inputs.items() if name != "input_ids"}, replace(rows, tokens=tokens)


def _said(
    model: Any, input_ids: Tensor | None, attention_mask: Any, kwargs: MutableMapping[str, Any]
) -> tuple[Masks | Own, Mapping[str, Tensor], PromptRows | None]:
    """What this forward's masks are, as the first of these says: call, `use_mask_pattern`, `get_mask_pattern`, config.

    With it come the data for it, and of which rows it speaks; all is taken out of the arguments.
    """
    rows: PromptRows | None = kwargs.pop(PROMPT_ROWS, None)
    given, inputs = kwargs.pop("mask_pattern", None), _inputs(kwargs)
    if given is None and (scope := innermost(model)) is not None:
        given, inputs = scope.masks, {**scope.inputs, **inputs}
    inputs = _for_every_row(inputs, rows)
    if given is None and (own := spokesman(model)) is not None:
        given = own(input_ids, attention_mask=attention_mask, mask_inputs=inputs)
        if given is not None and rows is not None:
            rows = replace(rows, copies=1)  # it has seen all rows
    if given is None:
        given = configured(model)
    return NATIVE if given is None else parse_masks(given), *_with_tokens(inputs, rows)


def _is_packed(attention_mask: Tensor | None, position_ids: Tensor | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether FlashAttention would isolate documents, told by the caller or by restarting `position_ids`, which plain
    `Causal()` does not.
    """
    if any(kwargs.get(name) is not None for name in PACKING):
        return True
    return attention_mask is None and position_ids is not None and bool((position_ids.diff(dim=-1) != 1).any())
