"""What differs between the releases of transformers that the fork is kept for, in one place.

The features decide, never a version number: releases between the pins are served too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .attention import AttentionFunction, AttentionOutput, LayerMasks, attend
from .errors import UnsupportedMaskError


# What upstream's own masks are made from, by its names in all releases.
_EMBEDS = ("inputs_embeds", "input_embeds")
_KEYWORDS = ("kwargs", "flash_attn_kwargs")


def given_embeds(arguments: Mapping[str, Any]) -> Tensor:
    """The embeddings `(batch, queries, any)` among the arguments of upstream's `create_causal_mask`."""
    embeds: Tensor | None = next((arguments[name] for name in _EMBEDS if name in arguments), None)
    if embeds is None:  # before transformers 4.53 it is told their sizes
        sizes = arguments["batch_size"], arguments["sequence_length"], 0
        return torch.empty(sizes, dtype=arguments["dtype"], device=arguments["device"])
    return embeds if embeds.ndim == 3 else embeds[..., None]  # before transformers 5 generate() leaves the last out


def unmade_embeds(model: Any, input_ids: Tensor) -> Tensor:
    """What stands for the embeddings of these tokens before they are made: `(batch, queries, 0)`, of their dtype."""
    return torch.empty((*input_ids.shape, 0), dtype=model.dtype, device=input_ids.device)


def made_cache(model: Any, use_cache: bool | None) -> Any:
    """The cache that a forward without one makes, or None, as before transformers 4.53."""
    from ..cache_utils import DynamicCache

    is_wanted = model.config.use_cache if use_cache is None else use_cache
    return DynamicCache() if is_wanted and not (model.gradient_checkpointing and model.training) else None


def keywords(names: Mapping[str, Any]) -> MutableMapping[str, Any]:
    """The further arguments of a forward, `kwargs` for short, among its `locals()`.

    Before transformers 4.54 they have another name. Of a compiled forward's names only those are there that it goes
    on to use, as it does with these.
    """
    found: MutableMapping[str, Any] = next(names[name] for name in _KEYWORDS if name in names)
    return found


def own_mask(kind: str, model: Any, embeds: Tensor, mask: Tensor | None, cache: Any, position_ids: Any) -> Any:
    """Upstream's own mask for layers of a type; before transformers 4.53 a model makes one for all its layers."""
    past = 0 if cache is None else int(cache.get_seq_length())
    slots = torch.arange(past, past + embeds.shape[1], device=embeds.device)
    if hasattr(model, "_update_causal_mask"):
        return model._update_causal_mask(mask, embeds, slots, cache)
    from .. import masking_utils

    name = "create_sliding_window_causal_mask" if kind == "sliding_attention" else "create_causal_mask"
    make = getattr(masking_utils, name)
    known = {
        "config": model.config,
        **dict.fromkeys(_EMBEDS, embeds),
        "attention_mask": mask,
        "past_key_values": cache,
        "position_ids": position_ids,
        "cache_position": slots,
    }
    return make(**{name: known[name] for name in signature(make).parameters if name in known})


def query_offset(cache: Any, layer: int) -> int:
    """The slot of a forward's first query."""
    offset = getattr(cache, "get_query_offset", cache.get_seq_length)
    return int(offset(layer))


def key_slots(cache: Any, offset: int, queries: int, layer: int) -> tuple[int, int]:
    """How many keys a layer has after a forward's update, and the slot of the first.

    Args:
        offset: the slot of the first query.
        queries: of the forward.
    """
    if not hasattr(cache, "get_mask_sizes"):
        return _older_key_slots(cache, offset, queries)
    if layer >= len(getattr(cache, "layers", range(layer + 1))):  # not filled yet: before 4.56 it is not to be asked
        return offset + queries, 0
    sizes = cache.get_mask_sizes
    length, first = sizes(torch.arange(offset, offset + queries) if _takes_slots(sizes.__func__) else queries, layer)
    return int(length), int(first)


@lru_cache
def _takes_slots(method: Callable[..., Any]) -> bool:
    """Whether a cache is asked with the slots of the queries, as before transformers 5, or with their number."""
    return "cache_position" in signature(method).parameters


def _older_key_slots(cache: Any, offset: int, queries: int) -> tuple[int, int]:
    """`key_slots` of caches that cannot be asked: the two that hold every slot in order, before transformers 4.53."""
    from ..cache_utils import DynamicCache, StaticCache

    if type(cache) is DynamicCache:
        return offset + queries, 0
    if type(cache) is StaticCache:
        return int(cache.get_max_cache_shape()), 0
    raise UnsupportedMaskError(
        f"past_key_values: this release of transformers does not tell which keys a {type(cache).__name__} holds. "
        "Pass a DynamicCache or a StaticCache."
    )


def hook_eager(model: Any) -> None:
    """Let the eager attention of a model's layers obey our masks, where no registry is asked for it.

    Before transformers 5, a layer takes the function of its modeling file. That global is replaced, once for each
    file of whose classes a model is made.
    """
    homes = {base.__module__ for part in model.modules() for base in type(part).__mro__}
    for home in homes:
        file = vars(sys.modules[home]) if home in sys.modules else {}
        function = file.get("eager_attention_forward")
        if function is not None and not _obeys(function):
            file["eager_attention_forward"] = partial(_attend_eagerly, function)


def _obeys(function: Callable[..., Any]) -> bool:
    return isinstance(function, partial) and function.func is _attend_eagerly


def _attend_eagerly(function: AttentionFunction, module: Any, *args: Any, **kwargs: Any) -> AttentionOutput:
    """`attend` of eager attention, where it is what was asked for."""
    backend = getattr(getattr(module, "config", None), "_attn_implementation", "eager")
    if backend != "eager" and any(isinstance(given, LayerMasks) for given in (*args, *kwargs.values())):
        raise UnsupportedMaskError(
            f"output_attentions: in this release of transformers it takes eager attention in place of {backend!r}, "
            f"and the mask is made for that. Load the model with attn_implementation='eager'."
        )
    return attend(function, module, *args, **kwargs)
