"""A cache that follows the mask: it keeps only keys that some query may still see.

With `hooks` and `forward` it is the seam: it is a cache of transformers, and `forward` tells it what to forget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import cache_utils
from .caches import lasting_slots
from .errors import UnsupportedMaskError
from .inputs import Rows
from .layers import LayerMask, Own
from .positions import Held


BLOCK = 64  # to drop keys copies those that stay, so a layer waits until this many have come, or a quarter of those


# Before transformers 4.54 caches have no layers.
_DynamicLayer: Any = getattr(cache_utils, "DynamicLayer", None)


class MaskedLayer(_DynamicLayer or object):  # type: ignore[misc]
    """The keys and values of one layer, `(batch, key/value heads, slots held, head_dim)` each.

    `held` says which slots they are; None: all.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.held: Held | None = None
        self.cumulative_length = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time to look for keys to drop."""
        since, kept = (0, 0) if self.held is None else (self.held.since, len(self.held.kept))
        return self.cumulative_length - since >= max(BLOCK, kept // 4)

    def keep(self, which: Tensor, held: Held) -> None:
        """Drop the keys where `which`, bool `(slots held,)`, is False; `held` says what is left."""
        self.held = held
        if not bool(which.all()):
            which = which.to(self.keys.device)
            self.keys, self.values = self.keys[:, :, which], self.values[:, :, which]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; see `DynamicLayer`."""
        self.cumulative_length += key_states.shape[-2]
        updated: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
        return updated

    def get_seq_length(self) -> int:
        """Tokens seen so far, dropped ones included."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """How many keys there are after an update by so many queries, or with these slots, and the slot of the first.

        Raises:
            UnsupportedMaskError: keys were dropped; only the pattern that they were dropped for fits what is left.
        """
        if self.held is not None and not self.held.is_all:
            raise UnsupportedMaskError(
                "past_key_values: this MaskedCache has dropped keys that its mask_pattern hides, and upstream's own "
                "mask may show them. Go on with that pattern, or use a DynamicCache."
            )
        queries = len(query_length) if isinstance(query_length, Tensor) else query_length  # slots before 5
        return self.cumulative_length + queries, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens, or all but the first `tokens_to_remove` where it is positive.

        What was dropped does not come back: a later forward that may see it is refused. The tokens of the last forward
        can always be taken back.
        """
        length = tokens_to_remove if tokens_to_remove > 0 else self.cumulative_length + tokens_to_remove
        length = min(max(length, 0), self.cumulative_length)
        if length == self.cumulative_length:
            return
        removed = self.cumulative_length - length
        if self.held is not None and length < self.held.since:
            kept = self.held.kept[self.held.kept < length]
            removed = self.keys.shape[-2] - len(kept)
            self.held = Held(kept, length)
        self.keys, self.values = (side[:, :, : side.shape[-2] - removed] for side in (self.keys, self.values))
        self.cumulative_length = length

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = self.held = None
        self.is_initialized, self.cumulative_length = False, 0


class MaskedCache(cache_utils.Cache):
    """A cache for `past_key_values=`, in forwards and in `generate()`, that keeps only what may still be seen.

        model.generate(**batch, past_key_values=MaskedCache(), max_new_tokens=100_000)

    Which keys those are, each layer's pattern says: after a window, sinks, chunks, dilated windows, global tokens,
    gist tokens and documents that ended, the rest is dropped before the next forward, and logits are those of a full
    cache. With `sink(S) | sliding_window(W)` that is constant memory. What a pattern does not say so of keeps all:
    `prefix_lm`, segments, trees, `~`, users' functions (join one with `&` to a window that it respects).

    A layer drops keys once 64 tokens, or a quarter of what it keeps, have come, so it holds at most
    `n + max(64, n // 4)` after a forward of one token, where `n` were still visible when it dropped. Rows and heads
    share slots: one that any of them may see stays. Beams, `num_return_sequences`, assisted decoding and prompt
    lookup go; layers that are `native` are refused, as upstream's own masks know nothing of dropped keys.

    Raises:
        UnsupportedMaskError: this release's caches have no layers that could drop keys.
    """

    def __init__(self) -> None:
        if _DynamicLayer is None:
            raise UnsupportedMaskError(
                "MaskedCache: the caches of this release of transformers have no layers of their own that could drop "
                "keys. Use a DynamicCache, which gives the same logits and keeps every key."
            )
        super().__init__(layer_class_to_replicate=MaskedLayer)

    @property
    def is_due(self) -> bool:
        """Whether it is time for some layer to look for keys to drop."""
        return any(layer.is_due for layer in self.layers)

    def held(self, layer: int) -> Held | None:
        """The slots that a layer holds; None: all."""
        held = self.layers[layer].held if layer < len(self.layers) else None
        return None if held is None or held.is_all else held

    def forget(self, masks: Sequence[LayerMask], rows: Rows) -> None:
        """Before a forward: drop what neither its queries nor later ones may see.

        Args:
            masks: of each layer.
            rows: of the forward.

        Raises:
            UnsupportedMaskError: some layers have upstream's own mask.
        """
        if any(isinstance(mask, Own) for mask in masks):
            raise UnsupportedMaskError(
                "past_key_values: a MaskedCache drops keys by patterns, and some layers have 'native'. Say causal or "
                "sliding_window(W) for them, or use a DynamicCache."
            )
        alike: dict[tuple[Any, ...], list[MaskedLayer]] = {}
        for mask, layer in zip(masks, self.layers, strict=False):  # the first forward makes the layers
            if layer.is_due:
                alike.setdefault((mask, layer.held), []).append(layer)
        past, device = rows.layout.q_offset, rows.layout.positions.device
        for (pattern, held), layers in alike.items():
            slots = torch.arange(past, device=device) if held is None else held.slots(past)
            which = lasting_slots(pattern.bind(rows).simplified(), rows.layout, slots)
            left = Held(slots[which], past)
            for layer in layers:
                layer.keep(which, left)
