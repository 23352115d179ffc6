"""FlexAttention's block mask. One `mask_mod` serves every pattern with ranges, so that its kernel is compiled once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from ..pattern import MaskMod, Pattern
from ..positions import Layout
from ..ranges import Ranges
from .dense import key_ranges, visible_grid


def block_mask(pattern: Pattern, layout: Layout) -> BlockMask:
    """What FlexAttention takes for a bound pattern: from its ranges, or from the whole grid where it has none."""
    ranges = key_ranges(pattern, layout.queries, layout)
    if ranges is None:
        return grid_block_mask(visible_grid(pattern, layout), layout.batch)
    mod = _ranges_mask_mod(ranges, layout.keys, layout.batch)
    return _create(mod, layout.batch, ranges.start.shape[1], layout.q_length, layout.kv_length, layout.keys.device)


def grid_block_mask(visible: Tensor, batch: int) -> BlockMask:
    """What FlexAttention takes for a whole mask, bool `(batch or 1, heads or 1, queries, keys)`."""
    visible = visible.expand(batch, -1, -1, -1)
    heads, queries, keys = visible.shape[1:]

    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return visible[b, h if heads > 1 else 0, q, k]

    return _create(mask_mod, batch, heads, queries, keys, visible.device)


def _ranges_mask_mod(ranges: Ranges, keys: Tensor, batch: int) -> MaskMod:
    start = ranges.start.to(torch.int32).expand(batch, -1, -1, -1).contiguous()
    end = ranges.end.to(torch.int32).expand(batch, -1, -1, -1).contiguous()
    positions = keys.to(torch.int32).expand(batch, -1).contiguous()
    heads, intervals = start.shape[1:3]

    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        head, position = h if heads > 1 else 0, positions[b, k]
        seen = (start[b, head, 0, q] <= position) & (position < end[b, head, 0, q])
        for i in range(1, intervals):
            seen = seen | ((start[b, head, i, q] <= position) & (position < end[b, head, i, q]))
        return seen

    return mask_mod


def _create(mod: MaskMod, batch: int, heads: int, queries: int, keys: int, device: torch.device) -> BlockMask:
    return create_block_mask(mod, batch, heads if heads > 1 else None, queries, keys, device=device)
