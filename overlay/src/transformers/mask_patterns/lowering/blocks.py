"""FlexAttention's block mask, from ranges in O(length) and a grid of blocks.

One `mask_mod` serves every pattern with ranges, whose bounds are tensors, so that its kernel is compiled once for all
that have as many intervals.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import pad

from ..pattern import MaskMod, Pattern
from ..positions import Layout
from ..ranges import Ranges
from .dense import key_ranges, visible_grid


BLOCK = 128  # queries and keys of a block


def block_mask(pattern: Pattern, layout: Layout) -> BlockMask:
    """What FlexAttention takes for a bound pattern: from its ranges, or from the whole grid where it has none."""
    ranges = key_ranges(pattern, layout.queries, layout)
    if ranges is None:
        return grid_block_mask(visible_grid(pattern, layout), layout.batch)
    seen = _seen_per_block(ranges, layout.keys).expand(layout.batch, -1, -1, -1)  # of one shape, whatever rows share
    full = seen == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_numbered((seen > 0) & ~full),
        *_numbered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=_ranges_mask_mod(ranges, layout.keys, layout.batch),
        seq_lengths=(layout.q_length, layout.kv_length),
    )


def _seen_per_block(ranges: Ranges, keys: Tensor) -> Tensor:
    """How many pairs of a query and a key are visible in each block, int64 `(batch or 1, heads or 1, blocks, blocks)`.

    Below each end of an interval lie whole blocks of keys, and a part of one; what lies below its start is taken away.

    Args:
        keys: int64 `(batch or 1, keys)`, their positions; -1 at padding.
    """
    rows = max(len(ranges.start), len(keys))
    keys = keys.expand(rows, -1)
    real = pad((keys >= 0).long(), (0, -keys.shape[1] % BLOCK))
    per_block = real.unflatten(1, (-1, BLOCK)).sum(-1)
    before = pad(real.cumsum(1), (1, 0))
    blocks_before = pad(per_block.cumsum(1), (1, 0))[:, :-1]
    order = keys.int().cummax(1).values.contiguous()

    def below(bounds: Tensor) -> Tensor:
        bounds = bounds.expand(rows, -1, -1, -1).transpose(2, 3)  # rows, heads, queries, intervals
        place = torch.searchsorted(order, bounds.flatten(1).contiguous())
        block = (place // BLOCK).clamp(max=per_block.shape[1] - 1)
        part = before.gather(1, place) - blocks_before.gather(1, block)
        shape = bounds.shape
        parts, whole = (_per_query_block(value, block, shape, per_block.shape[1]) for value in (part, part * 0 + 1))
        seen: Tensor = parts + (whole.flip(-1).cumsum(-1).flip(-1) - whole) * per_block[:, None, None]
        return seen

    return below(ranges.end) - below(ranges.start)


def _per_query_block(value: Tensor, block: Tensor, shape: torch.Size, blocks: int) -> Tensor:
    """Sums over the queries of a block and their intervals, `(rows, heads, query blocks, key blocks)`.

    Args:
        value, block: what goes to which block of keys, `(rows, heads * queries * intervals)`, of the given `shape`.
    """
    rows, heads, queries, intervals = shape
    query_blocks = -(-queries // BLOCK)
    of_query = torch.arange(queries, device=value.device) // BLOCK
    lines = torch.arange(heads, device=value.device)[:, None] * query_blocks + of_query
    place = lines[..., None].expand(-1, -1, intervals).flatten() * blocks + block
    sums = value.new_zeros(rows, heads * query_blocks * blocks).scatter_add_(1, place, value)
    return sums.view(rows, heads, query_blocks, blocks)


def _numbered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: those first, int32."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)


def grid_block_mask(visible: Tensor, batch: int) -> BlockMask:
    """What FlexAttention takes for a whole mask, bool `(batch or 1, heads or 1, queries, keys)`."""
    visible = visible.expand(batch, -1, -1, -1)
    heads, queries, keys = visible.shape[1:]

    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return visible[b, h if heads > 1 else 0, q, k]

    return _create(mask_mod, batch, heads, queries, keys, visible.device)


def _ranges_mask_mod(ranges: Ranges, keys: Tensor, batch: int) -> MaskMod:
    start, end = (side.expand(batch, -1, -1, -1).contiguous() for side in (ranges.start, ranges.end))
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
