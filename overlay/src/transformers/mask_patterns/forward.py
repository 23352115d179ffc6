"""One forward of a model: where its tokens lie, what each of its layers has, and the masks for its backend.

With `hooks` it is the seam: it reads upstream's configurations and caches, whose differences `upstream` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .attention import (
    EagerMask,
    FlashMask,
    FlexMask,
    KeysMask,
    LayerMasks,
    LoweredMask,
    Native,
    NativeCausal,
    SdpaMask,
    TiledMask,
)
from .caches import CacheMemory, check_cache
from .errors import UnsupportedMaskError, bad_argument
from .explicit import WholeMask, real_tokens, whole_mask
from .flash_kernels import has_windows, takes_patterns
from .inputs import PromptRows, Rows
from .layers import NATIVE, LayerMask, Masks, Own, PerLayer
from .library import Causal
from .lowering.blocks import block_mask, grid_block_mask
from .lowering.dense import visible_grid
from .lowering.flash import Obstacle, flash_arguments
from .lowering.tile_plan import tile_plan
from .masked_cache import MaskedCache
from .pattern import Pattern
from .positions import Held, Layout
from .prompt_mask import PromptMask
from .steps import Answer, Said, Spans, Steps, Token
from .takers import layer_kinds, plan
from .tiled_sdpa import can_tile
from .training import LeakWatch
from .upstream import key_slots, own_mask, query_offset


class Backend(str, Enum):
    """Attention implementations that take any mask, by name; FlashAttention takes what its arguments can say."""

    EAGER = "eager"
    SDPA = "sdpa"
    FLEX = "flex_attention"


@dataclass(frozen=True, eq=False)
class Forward:
    """One forward of a base model: its geometry and its backend.

    Args:
        fixed: whether the shapes of masks must not change from token to token.
    """

    model: Any
    embeds: Tensor
    cache: Any
    fixed: bool = False

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def implementation(self) -> Any:
        """The name of its attention function."""
        return self.config._attn_implementation

    @property
    def layer_types(self) -> set[str]:
        """The kinds of layers that there are."""
        return set(layer_kinds(self.config))

    @property
    def is_plain_flash(self) -> bool:
        """Whether upstream would run plain causal FlashAttention in every layer.

        Over a static cache it would count the slots that are not filled yet, where no 2D mask comes.
        """
        if "flash" not in str(self.implementation) or "sliding_attention" in self.layer_types:
            return False
        past, _, kv_length, _ = self._geometry(0)
        return bool(getattr(self.config, "is_causal", True)) and kv_length <= past + self.embeds.shape[1]

    @property
    def is_paged(self) -> bool:
        """Whether this is continuous batching, which makes 4D masks of its own for its own attention functions."""
        return str(self.implementation).startswith("paged|")

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.config.num_attention_heads)

    def backend(self, what: str) -> Backend:
        """The backend, or the reason why `what` cannot be obeyed on it."""
        if self.implementation not in list(Backend):
            raise self._refusal(what)
        return Backend(self.implementation)

    def _refusal(self, what: str) -> UnsupportedMaskError:
        can = ", ".join(repr(backend.value) for backend in Backend)
        return UnsupportedMaskError(
            f"attn_implementation={self.implementation!r} cannot obey {what}; these can: {can}. "
            "Load the model with attn_implementation='sdpa', or switch with model.set_attn_implementation('sdpa')."
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def whole(self, mask: Tensor) -> LayerMasks:
        """The masks of all layers from a caller's 3D or 4D mask."""
        if mask.ndim not in (3, 4):
            expected = "2 dimensions (batch, seq), or a whole mask of 3 or 4"
            raise bad_argument(
                "attention_mask", f"{mask.ndim} dimensions", expected, "See the README's table of masks."
            )
        backend = self.backend(f"a {mask.ndim}D attention_mask")

        def lower(layout: Layout, _: LayerMask) -> LoweredMask:
            _require_all_keys(layout)
            given = whole_mask(mask, layout, self.heads, self.embeds.dtype)
            given = replace(given, visible=given.visible & (layout.keys >= 0)[:, None, None])  # static: unfilled slots
            return self._lower_whole(given, layout.batch, backend)

        return self._layers(lower, None, self.plan(NATIVE))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def behind_prompt(self, given: PromptMask, said: Masks | Own, mask: Tensor | None) -> LayerMasks:
        """The masks of all layers in `generate()`, from a caller's 3D or 4D mask of the prompt.

        Args:
            said: for new tokens; upstream's own mask stands for `Causal()`.
            mask: the 2D mask that `generate()` keeps; some releases drop it, as it is all ones.
        """
        backend = self.backend("a whole attention_mask")
        past, _, kv_length, _ = self._geometry(0)
        if mask is not None:
            real_tokens(mask, len(self.embeds), past + self.embeds.shape[1], kv_length)  # it tells of another prompt
        plan = [Causal()] * len(self.plan(said)) if said is NATIVE else self._resolved(said)

        def lower(layout: Layout, pattern: LayerMask) -> LoweredMask:
            assert isinstance(pattern, Pattern)
            _require_all_keys(layout)
            return self._lower_whole(given.part(layout, pattern, self.cache), layout.batch, backend)

        return self._layers(lower, None, plan)

    def plan(self, said: Masks | Own) -> tuple[LayerMask, ...]:
        """What each layer has."""
        return plan(said, self.config)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def patterns(
        self,
        said: Masks | Own,
        plan: Sequence[LayerMask],
        mask: Tensor | None,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs: Mapping[str, Tensor],
        prompt_rows: PromptRows | None,
        watch: LeakWatch | None,
    ) -> LayerMasks:
        """The masks of all layers from their patterns and a 2D mask of real tokens."""
        is_flash = takes_patterns(self.implementation)
        backend = None if is_flash else self.backend(f"mask_pattern={str(said)!r}")
        past, _, kv_length, _ = self._geometry(0)
        slots = past + self.embeds.shape[1]
        real = None if mask is None else real_tokens(mask, len(self.embeds), slots, kv_length).to(self.embeds.device)
        memory = CacheMemory.of(self.cache, past)
        if prompt_rows is not None:
            memory.learn(prompt_rows.tokens_of(0, past), past)
            input_ids = prompt_rows.tokens_of(past, slots) if input_ids is None else input_ids
        memory.go_on(input_ids, position_ids, past)
        known = {"input_ids": memory.tokens, "position_ids": memory.position_ids}
        data = {**{name: tensor for name, tensor in known.items() if tensor is not None}, **inputs}
        read: set[str] = set()

        def lower(layout: Layout, pattern: LayerMask) -> LoweredMask:
            if isinstance(pattern, Own):
                raise AssertionError("upstream makes its own masks")
            rows = Rows(layout, data, memory.per_token, read, prompt=prompt_rows)
            bound = pattern.bind(rows).simplified()
            check_cache(pattern, bound, rows)
            return (
                self._lower_flash(pattern, bound, layout) if backend is None else self._lower(bound, layout, backend)
            )

        real = None if real is None or bool(real.all()) else real
        if isinstance(self.cache, MaskedCache):
            layout = self._layout(*self._geometry(0), real)
            self.cache.forget(plan, Rows(layout, data, memory.per_token, read, prompt=prompt_rows))
        masks = self._layers(lower, real, plan, partial(self._own_mask, mask, position_ids))
        Rows(Layout.of(1, 0), data, read=read).require_all_read(said)
        rows = Rows(self._layout(*self._geometry(0), real), data, memory.per_token, prompt=prompt_rows)
        if watch is not None:
            watch.saw(said, self._resolved(said), rows)
        repeats = self.is_step and not memory.rows_move
        memory.steps = Steps.ahead(Said(said, self.config, inputs, prompt_rows), plan, rows) if repeats else None
        return masks

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def next_token(
        self,
        said: Masks | Own,
        mask: Tensor | None,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs: Mapping[str, Tensor],
        prompt_rows: PromptRows | None,
    ) -> LayerMasks | None:
        """The masks of all layers for one more token per row, if they are known from forwards before; else None."""
        past = query_offset(self.cache, 0)
        memory = CacheMemory.of(self.cache, past)
        steps = memory.steps_from(past)
        if steps is None or (isinstance(self.cache, MaskedCache) and self.cache.is_due):
            return None
        if len(steps.layers) != self.config.num_hidden_layers:
            return None
        token = Token(past, len(self.embeds), mask, input_ids, position_ids)
        if not steps.serve(Said(said, self.config, inputs, prompt_rows), token):
            return None
        made: dict[tuple[Any, ...], LoweredMask | None] = {}
        masks: list[LoweredMask] = []
        for layer, which in enumerate(steps.layers):
            key = (which, *self._geometry(layer))
            if key not in made:
                made[key] = self._of_step(steps.answers[which], steps, *key[1:])
            if (lowered := made[key]) is None:
                return None
            masks.append(lowered)
        memory.go_on(input_ids, position_ids, past)
        return LayerMasks(tuple(masks))

    def _of_step(
        self, answer: Answer, steps: Steps, slot: int, kv_offset: int, kv_length: int, held: Held | None
    ) -> LoweredMask | None:
        """One layer's mask of one token; None where the cache lacks keys that it shows, or has no room for it."""
        if held is None and kv_offset + kv_length <= slot:
            return None
        positions, groups = steps.positions[:, : slot + 1], int(self.config.num_key_value_heads)
        layout = Layout(positions, len(self.embeds), slot, kv_offset, kv_length, self.heads, groups, held)
        if steps.is_padded or answer.spans is None:
            seen = answer.positions(slot - steps.first)
            if layout.dropped.shape[1] and bool(seen.contains(layout.dropped).any()):
                return None
            return self._of_visible(seen.contains(layout.keys), exact=answer.is_causal)
        places = layout.places(answer.spans[slot - steps.first])  # a slot is a position here
        return None if places is None else self._of_places(places, kv_length, answer.is_causal)

    def _of_places(self, places: Spans, kv_length: int, is_causal: bool) -> LoweredMask:
        """The mask of one token that sees these places of the key/value tensors, in every row and head."""
        if self.implementation == Backend.SDPA and not self.fixed and _are_few(places):
            return NativeCausal() if is_causal and places == ((0, kv_length),) else KeysMask(places, kv_length)
        visible = torch.zeros(1, 1, 1, kv_length, dtype=torch.bool, device=self.embeds.device)
        for start, end in places:
            visible[..., start:end] = True
        return self._of_visible(visible, exact=is_causal)

    def _of_visible(self, visible: Tensor, *, exact: bool) -> LoweredMask:
        """A mask given whole, for eager or SDPA; `exact` as in `SdpaMask`."""
        if self.implementation == Backend.SDPA:
            return SdpaMask.of(visible, exact=exact)
        return EagerMask.of(visible, self.embeds.dtype)

    @property
    def is_step(self) -> bool:
        """Whether this may be one of many forwards of one token, on a backend whose masks differ little then."""
        repeats = self.implementation in (Backend.SDPA, Backend.EAGER)
        return repeats and self.cache is not None and self.embeds.shape[1] == 1

    def _resolved(self, said: Masks | Own) -> Sequence[Pattern]:
        """What each layer shows, upstream's own masks as patterns."""
        if not isinstance(said, PerLayer):
            return [mask for mask in self.plan(said) if isinstance(mask, Pattern)]
        window = getattr(self.config, "sliding_window", None)
        return said.resolve(int(self.config.num_hidden_layers), layer_kinds(self.config), window)

    def _own_mask(self, mask: Tensor | None, position_ids: Tensor | None, kind: str) -> Native:
        """Upstream's own mask for a layer of this type."""
        return Native(own_mask(kind, self.model, self.embeds, mask, self.cache, position_ids))

    def _lower_whole(self, mask: WholeMask, batch: int, backend: Backend) -> LoweredMask:
        if backend is Backend.EAGER:
            return EagerMask.of(mask.visible, self.embeds.dtype, mask.bias)
        if backend is Backend.SDPA:
            return SdpaMask.of(mask.visible, mask.bias)
        return FlexMask(grid_block_mask(mask.visible, batch), mask.bias)

    def _lower(self, bound: Pattern, layout: Layout, backend: Backend) -> LoweredMask:
        if backend is Backend.FLEX:
            return FlexMask(block_mask(bound, layout))
        if backend is Backend.SDPA and bound == Causal() and not self.fixed and _is_plain(layout):
            return NativeCausal()

        def dense() -> LoweredMask:
            return self._of_visible(visible_grid(bound, layout), exact=bound == Causal())

        tiles = backend is Backend.SDPA and self.embeds.device.type == "cpu" and can_tile()
        plan = tile_plan(bound, layout) if tiles else None
        return dense() if plan is None else TiledMask(plan, dense)

    def _lower_flash(self, pattern: Pattern, bound: Pattern, layout: Layout) -> LoweredMask:
        """What FlashAttention is told, or the reason why it cannot be told."""
        arguments = flash_arguments(bound, layout)
        if isinstance(arguments, Obstacle):
            raise self._refusal(f"mask_pattern={str(pattern)!r}, as {arguments.value}")
        if arguments.window is not None and not has_windows(self.implementation):
            raise self._refusal(f"mask_pattern={str(pattern)!r}, as its kernel on this device has no window_size")
        return FlashMask(arguments, layout.kv_length)

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
        kinds = layer_kinds(self.config)
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

    def _layout(self, q_offset: int, kv_offset: int, kv_length: int, held: Held | None, real: Tensor | None) -> Layout:
        batch, q_length, _ = self.embeds.shape
        if held is None and kv_offset + kv_length < q_offset + q_length:
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
            held=held,
            device=self.embeds.device,
        )

    def _geometry(self, layer: int) -> tuple[int, int, int, Held | None]:
        """Slot of the first query, and what a layer's keys hold after this forward's update; see `Layout`."""
        q_length = self.embeds.shape[1]
        if self.cache is None:
            return 0, 0, q_length, None
        q_offset = query_offset(self.cache, layer)
        held = self.cache.held(layer) if isinstance(self.cache, MaskedCache) else None
        if held is not None:
            return q_offset, 0, len(held.kept) + q_offset - held.since + q_length, held
        kv_length, kv_offset = key_slots(self.cache, q_offset, q_length, layer)
        return q_offset, kv_offset, kv_length, None


def _are_few(places: Spans) -> bool:
    """Whether it is cheaper to copy these keys together than to hide those between them."""
    return len(places) < 2 or 2 * sum(end - start for start, end in places) < places[-1][1] - places[0][0]


def _require_all_keys(layout: Layout) -> None:
    """Refuse a whole mask of slots that are gone."""
    if layout.held is not None:
        raise UnsupportedMaskError(
            "past_key_values: a cache that has dropped keys fits no 4D mask. Pass a DynamicCache."
        )


def _is_plain(layout: Layout) -> bool:
    """Whether SDPA's own causal flag means the same: no padding, and all queries there are, or just the last."""
    full = layout.held is None and layout.kv_offset == 0 and layout.kv_length == layout.slots and not layout.is_padded
    return full and (layout.q_offset == 0 or layout.q_length == 1)
