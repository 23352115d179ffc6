"""The seam: what patched upstream code calls, and all that it calls.

What differs between upstream versions is translated here; nothing below this module knows transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from inspect import getattr_static
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .attention import (
    AttentionFunction,
    EagerMask,
    FlexMask,
    LayerMasks,
    LoweredMask,
    Native,
    NativeCausal,
    SdpaMask,
    attend,
)
from .checks import first_revised_pair, first_stale_pair
from .config import ConfigPattern
from .errors import UnsupportedMaskError, bad_argument
from .explicit import real_tokens, whole_mask
from .inputs import Rows
from .layers import NATIVE, LayerMask, Masks, Own, for_model, parse_masks
from .library import Causal
from .lowering.blocks import block_mask, grid_block_mask
from .lowering.dense import grid, visible_grid
from .pattern import Pattern
from .positions import Layout
from .training import LeakWatch, watched


class Backend(Enum):
    """The attention implementations that take any mask."""

    EAGER = "eager"
    SDPA = "sdpa"
    FLEX = "flex_attention"


@dataclass
class _CacheMemory:
    """What earlier forwards said of the tokens in a cache: it goes when the cache goes."""

    per_token: list[Tensor] = field(default_factory=list)
    position_ids: Tensor | None = None


_MEMORIES: WeakKeyDictionary[Any, _CacheMemory] = WeakKeyDictionary()


def attention_function(function: AttentionFunction) -> AttentionFunction:
    """What `AttentionInterface.get_interface` returns in place of `function`: the same, and it obeys our masks too."""
    return partial(attend, function)


def adopt(model: Any) -> None:
    """At the end of a model's construction: its base model may then ask the owner's `get_mask_pattern`.

    Raises:
        UnsupportedMaskError: the config says a mask pattern, but is of a model that does not ask for it.
        ValueError: it names layers or heads that the model does not have, or leaves some out.
    """
    said = model.config.__dict__.get("mask_pattern")
    if said is not None and not isinstance(getattr_static(type(model.config), "mask_pattern", None), ConfigPattern):
        kind = type(model.config).__name__
        raise UnsupportedMaskError(
            f"{kind}: mask_pattern={said!r} would be ignored by this model. Qwen2 and Qwen3 take one."
        )
    if said is not None:
        _plan(parse_masks(said), model.config)
    base = getattr(model, "base_model", model)
    if base is not model and hasattr(type(model), "get_mask_pattern"):
        object.__setattr__(base, "get_mask_pattern", model.get_mask_pattern)


def loss_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """What a model's `loss_function` is in place of `function`: the same, and a next-token loss looks for label leaks.

    Only in training, after a forward under a pattern that may see the future.
    """
    watch = getattr(model.base_model, "_leak_watch", None) if model.training else None
    if watch is None or watch.seen is None or function.__name__ != "ForCausalLMLoss":
        return function
    return partial(watched, watch, function)


def prepares_own_masks(config: Any) -> bool:
    """Whether masks made ahead of the forward, as `generate` does for static caches, would miss a pattern."""
    return getattr(config, "mask_pattern", None) is not None


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
        kwargs: of the forward; `mask_pattern` and `mask_inputs` are taken out of it.

    Raises:
        ValueError: malformed masks, patterns or data.
        UnsupportedMaskError: the backend, the cache or the prepared masks cannot obey.
    """
    inputs = _inputs(kwargs)
    said = _said(model, kwargs.pop("mask_pattern", None), input_ids, attention_mask, inputs)
    forward = _Forward(model.config, inputs_embeds, past_key_values)
    plan = forward.plan(said)
    if all(mask is NATIVE for mask in plan):
        if inputs:
            remedy = "Pass mask_pattern=... too, or leave mask_inputs out."
            raise bad_argument("mask_inputs", sorted(inputs), "a mask pattern that reads it", remedy)
        _check_prepared(attention_mask, model.config)
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim == 2 or forward.is_paged:
            return attention_mask
        lowered = forward.whole(attention_mask)
    else:
        _check_combination(said, attention_mask)
        is_upstreams = forward.is_plain_flash and set(plan) <= {Causal(), NATIVE} and not inputs
        if is_upstreams and not _is_packed(attention_mask, position_ids):
            return attention_mask
        lowered = forward.patterns(said, plan, attention_mask, input_ids, position_ids, inputs, _watch(model))
    return dict.fromkeys(forward.layer_types, lowered)


def _watch(model: Any) -> LeakWatch | None:
    """Who looks for label leaks while this base model trains."""
    if not model.training:
        return None
    if not hasattr(model, "_leak_watch"):
        object.__setattr__(model, "_leak_watch", LeakWatch())
    return model._leak_watch  # type: ignore[no-any-return]


def _inputs(kwargs: MutableMapping[str, Any]) -> Mapping[str, Tensor]:
    """The `mask_inputs` of this call, taken out of its arguments."""
    inputs: Mapping[str, Tensor] = kwargs.pop("mask_inputs", None) or {}
    if absent := [name for name, tensor in inputs.items() if tensor is None]:
        raise bad_argument("mask_inputs", f"None for {absent}", "tensors", "Leave out what is not known.")
    return inputs


def _said(
    model: Any, given: Any, input_ids: Tensor | None, attention_mask: Any, inputs: Mapping[str, Tensor]
) -> Masks | Own:
    """What this call's masks are: as passed, else as the subclass says, else the config."""
    if given is None and (own := getattr(model, "get_mask_pattern", None)) is not None:
        given = own(input_ids, attention_mask=attention_mask, mask_inputs=inputs)
    if given is None:
        given = getattr(model.config, "mask_pattern", None)
    return NATIVE if given is None else parse_masks(given)


def _check_prepared(attention_mask: Any, config: Any) -> None:
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


def _check_combination(pattern: Masks | Own, attention_mask: Any) -> None:
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
        f"mask_pattern={str(pattern)!r}. For a static cache generate() prepares them before it sees a pattern of the "
        "call: set model.config.mask_pattern instead, or use another cache."
    )


def _plan(said: Masks | Own, config: Any) -> tuple[LayerMask, ...]:
    """What each layer of a model with this config has; refused where it does not fit the model."""
    kinds = getattr(config, "layer_types", None)
    return for_model(said, int(config.num_hidden_layers), kinds, int(config.num_key_value_heads))


@dataclass(frozen=True, eq=False)
class _Forward:
    """One forward of a base model: its geometry and its backend."""

    config: Any
    embeds: Tensor
    cache: Any

    @property
    def layer_types(self) -> set[str]:
        return set(getattr(self.config, "layer_types", None) or ["full_attention"])

    @property
    def is_plain_flash(self) -> bool:
        """Whether upstream would run plain causal FlashAttention in every layer."""
        causal = getattr(self.config, "is_causal", True) and "sliding_attention" not in self.layer_types
        return causal and "flash" in str(self.config._attn_implementation)

    @property
    def is_paged(self) -> bool:
        """Whether this is continuous batching, which makes 4D masks of its own for its own attention functions."""
        return str(self.config._attn_implementation).startswith("paged|")

    @property
    def heads(self) -> int:
        return int(self.config.num_attention_heads)

    def backend(self, what: str) -> Backend:
        """The backend, or the reason why `what` cannot be obeyed on it."""
        name = self.config._attn_implementation
        if name not in {backend.value for backend in Backend}:
            can = ", ".join(repr(backend.value) for backend in Backend)
            raise UnsupportedMaskError(
                f"attn_implementation={name!r} cannot obey {what}; these can: {can}. "
                "Switch with model.set_attn_implementation('sdpa')."
            )
        return Backend(name)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def whole(self, mask: Tensor) -> LayerMasks:
        """The masks of all layers from a caller's 3D or 4D mask."""
        if mask.ndim not in (3, 4):
            expected = "2 dimensions (batch, seq), or a whole mask of 3 or 4"
            raise bad_argument(
                "attention_mask", f"{mask.ndim} dimensions", expected, "See the README's table of masks."
            )
        backend = self.backend(f"a {mask.ndim}D attention_mask")

        def lower(layout: Layout) -> LoweredMask:
            given = whole_mask(mask, layout, self.heads, self.embeds.dtype)
            given = replace(given, visible=given.visible & (layout.keys >= 0)[:, None, None])  # static: unfilled slots
            if backend is Backend.EAGER:
                return EagerMask.of(given.visible, self.embeds.dtype, given.bias)
            if backend is Backend.SDPA:
                return SdpaMask.of(given.visible, given.bias)
            return FlexMask(grid_block_mask(given.visible, layout.batch), given.bias)

        return self._layers(lambda layout, _: lower(layout), None, self.plan(NATIVE))

    def plan(self, said: Masks | Own) -> tuple[LayerMask, ...]:
        """What each layer has."""
        return _plan(said, self.config)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def patterns(
        self,
        said: Masks | Own,
        plan: Sequence[LayerMask],
        mask: Tensor | None,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs: Mapping[str, Tensor],
        watch: LeakWatch | None,
    ) -> LayerMasks:
        """The masks of all layers from their patterns and a 2D mask of real tokens."""
        backend = self.backend(f"mask_pattern={str(said)!r}")
        past, _, kv_length = self._geometry(0)
        slots = past + self.embeds.shape[1]
        real = None if mask is None else real_tokens(mask, len(self.embeds), slots, kv_length).to(self.embeds.device)
        memory = self._memory(past)
        memory.position_ids = _position_ids_so_far(memory.position_ids, position_ids, past)
        known = {"input_ids": None if past else input_ids, "position_ids": memory.position_ids}
        data = {**{name: tensor for name, tensor in known.items() if tensor is not None}, **inputs}
        read: set[str] = set()

        def lower(layout: Layout, pattern: LayerMask) -> LoweredMask:
            if isinstance(pattern, Own):
                raise AssertionError("upstream makes its own masks")
            rows = Rows(layout, data, memory.per_token, read)
            bound = pattern.bind(rows).simplified()
            self._check_cache(pattern, bound, rows)
            return self._lower(bound, layout, backend)

        real = None if real is None or bool(real.all()) else real
        masks = self._layers(lower, real, plan, partial(self._own_mask, mask, position_ids))
        Rows(Layout.of(1, 0), data, read=read).require_all_read(said)
        if watch is not None:
            watch.saw(said, self._resolved(said), Rows(self._layout(*self._geometry(0), real), data))
        return masks

    def _resolved(self, said: Masks | Own) -> Sequence[Pattern]:
        """What each layer shows, upstream's own masks as patterns."""
        if not isinstance(said, PerLayer):
            return [mask for mask in self.plan(said) if isinstance(mask, Pattern)]
        window = getattr(self.config, "sliding_window", None)
        return said.resolve(int(self.config.num_hidden_layers), getattr(self.config, "layer_types", None), window)

    def _own_mask(self, mask: Tensor | None, position_ids: Tensor | None, kind: str) -> Native:
        """Upstream's own mask for a layer of this type."""
        from ..masking_utils import create_causal_mask, create_sliding_window_causal_mask

        make = create_sliding_window_causal_mask if kind == "sliding_attention" else create_causal_mask
        made = make(
            config=self.config,
            inputs_embeds=self.embeds,
            attention_mask=mask,
            past_key_values=self.cache,
            position_ids=position_ids,
        )
        return Native(made)

    def _memory(self, past: int) -> _CacheMemory:
        """What is known of the tokens in the cache: nothing new where it is empty or was not seen filling."""
        if self.cache is None:
            return _CacheMemory()
        if past == 0:
            _MEMORIES[self.cache] = _CacheMemory()
        return _MEMORIES.setdefault(self.cache, _CacheMemory())

    def _lower(self, bound: Pattern, layout: Layout, backend: Backend) -> LoweredMask:
        if backend is Backend.FLEX:
            return FlexMask(block_mask(bound, layout))
        if backend is Backend.SDPA and bound == Causal() and _is_plain(layout):
            return NativeCausal()
        visible = visible_grid(bound, layout)
        return SdpaMask.of(visible) if backend is Backend.SDPA else EagerMask.of(visible, self.embeds.dtype)

    def _check_cache(self, pattern: Pattern, bound: Pattern, rows: Rows) -> None:
        """Refuse a cache that holds states which this pattern makes stale, or lacks keys that it shows."""
        layout = rows.layout
        stale = first_stale_pair(bound, layout)
        if stale is not None:
            raise UnsupportedMaskError(
                f"mask_pattern={str(pattern)!r} is not cache-safe here: position {stale[0]} is in the cache, and may "
                f"see position {stale[1]}, which is new. Pass use_cache=False, or put both in one forward."
            )
        revised = first_revised_pair(pattern, bound, rows)
        if revised is not None:
            raise UnsupportedMaskError(
                f"mask_pattern={str(pattern)!r} is not cache-safe here: the new tokens change whether position "
                f"{revised[0]} may see position {revised[1]}, and both are in the cache. Pass use_cache=False, or put "
                "all in one forward."
            )
        evicted = layout.positions[:, : layout.kv_offset]
        if layout.kv_offset and bool(grid(bound, layout.queries, evicted, layout).any()):
            raise UnsupportedMaskError(
                f"mask_pattern={str(pattern)!r} shows keys that the cache has dropped: it keeps "
                f"{layout.kv_length - layout.q_length} of {layout.q_offset}. Use a cache that keeps all keys: "
                "DynamicCache() without a config, or use_sliding_window=False in the model's."
            )

    def _layers(
        self,
        lower: Callable[[Layout, LayerMask], LoweredMask],
        real: Tensor | None,
        plan: Sequence[LayerMask],
        own: Callable[[str], LoweredMask] | None = None,
    ) -> LayerMasks:
        """One lowered mask per layer; layers with equal patterns whose caches look alike share theirs.

        Args:
            own: makes the mask of a native layer of some type; without it `lower` makes all.
        """
        made: dict[tuple[Any, ...], LoweredMask] = {}
        kinds = getattr(self.config, "layer_types", None) or ["full_attention"] * len(plan)
        keys: list[tuple[Any, ...]] = []
        for layer, mask in enumerate(plan):
            if own is not None and mask is NATIVE:
                keys.append((NATIVE, kinds[layer]))
                if keys[-1] not in made:
                    made[keys[-1]] = own(kinds[layer])
                continue
            keys.append((mask, *self._geometry(layer)))
            if keys[-1] not in made:
                made[keys[-1]] = lower(self._layout(*self._geometry(layer), real), mask)
        return LayerMasks(tuple(made[key] for key in keys))

    def _layout(self, q_offset: int, kv_offset: int, kv_length: int, real: Tensor | None) -> Layout:
        batch, q_length, _ = self.embeds.shape
        if kv_offset + kv_length < q_offset + q_length:
            name = type(self.cache).__name__
            raise UnsupportedMaskError(
                f"past_key_values: a {name} lays its keys out in a way that patterns do not know."
            )
        return Layout.of(
            batch,
            q_length,
            real=real,
            q_offset=q_offset,
            kv_offset=kv_offset,
            kv_length=kv_length,
            heads=self.heads,
            groups=int(self.config.num_key_value_heads),
            device=self.embeds.device,
        )

    def _geometry(self, layer: int) -> tuple[int, int, int]:
        """Slot of the first query, first slot that a layer's keys hold after this forward's update, and how many."""
        q_length = self.embeds.shape[1]
        if self.cache is None:
            return 0, 0, q_length
        kv_length, kv_offset = self.cache.get_mask_sizes(q_length, layer)
        return int(self.cache.get_query_offset(layer)), int(kv_offset), int(kv_length)


def _is_packed(attention_mask: Tensor | None, position_ids: Tensor | None) -> bool:
    """Whether upstream would take restarting `position_ids` for documents, which plain `Causal()` does not isolate."""
    return attention_mask is None and position_ids is not None and bool((position_ids.diff(dim=-1) != 1).any())


def _is_plain(layout: Layout) -> bool:
    """Whether SDPA's own causal flag means the same: no padding, and all queries there are, or just the last."""
    full = layout.kv_offset == 0 and layout.kv_length == layout.slots and not layout.is_padded
    return full and (layout.q_offset == 0 or layout.q_length == 1)


def _position_ids_so_far(before: Tensor | None, now: Tensor | None, past: int) -> Tensor | None:
    """The `position_ids` of every slot so far, `(batch or 1, slots)`; None where earlier ones are unknown or apart.

    They join where the new ones go on by one, or start again at 0.
    """
    if past == 0 or now is None:
        return now if past == 0 else None
    if before is None or before.shape[1] < past:
        return None
    before = before[:, :past].expand(max(len(before), len(now)), -1)
    now = now.expand(len(before), -1)
    joins = (now[:, 0] == before[:, -1] + 1) | (now[:, 0] == 0)
    return torch.cat([before, now], dim=1) if bool(joins.all()) else None
