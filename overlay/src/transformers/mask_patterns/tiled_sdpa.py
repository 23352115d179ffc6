"""Attention tile by tile, forward and backward, through the kernel that `scaled_dot_product_attention` has on a CPU.

That kernel also gives the log-sum-exp of the scores, with which the segments of a tile, each attended to on its own,
merge to what all keys together would have given (FlashAttention, arXiv:2205.14135; flash-decoding). With the merged
output and log-sum-exp its backward is right for every segment alone. Nothing of the size of the scores is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .lowering.batches import Batch, add_to, taken
from .lowering.tiles import Place, Segment, TilePlan


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def can_tile() -> bool:
    """Whether that kernel may run here: nobody has switched it off, for derivatives of derivatives say, and no
    transform of `torch.func` is at work, which can neither be planned in nor look into it.
    """
    is_transformed = torch._C._are_functorch_transforms_active()
    return torch.backends.cuda.flash_sdp_enabled() and not is_transformed  # the switch is a CPU's too


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tiled_sdpa(q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, scale: float | None = None) -> Tensor:
    """What `scaled_dot_product_attention` gives under the plan's mask, and 0 for queries that see nothing.

    Args:
        q: `(batch, heads, queries, head_dim)`, on the CPU, floating.
        k, v: `(batch, key/value heads, keys, head_dim)`; each of their heads serves as many query heads.
        scale: of the scores, by default `head_dim ** -0.5`.

    Returns:
        `(batch, queries, heads, head_dim)`.
    """
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    output: Tensor = _TiledSdpa.apply(q, k, v, plan, scale)  # type: ignore[no-untyped-call]
    return output


class _TiledSdpa(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, scale: float | None) -> Tensor:
        output = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=_exact(q.dtype))
        for (rows, heads, groups), batch in _batches(plan):
            own_q, own_output, own_lse = (
                _queries(x[rows, heads], batch) for x in (q, output.transpose(1, 2), lse[..., None])
            )
            found, found_lse = _attend(own_q, k[rows, groups], v[rows, groups], batch, scale)
            own_output.copy_(found)
            own_lse.copy_(found_lse[..., None])
        ctx.save_for_backward(q, k, v, output, lse)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        found = _TiledGradients.apply(grad, *ctx.saved_tensors, ctx.plan, ctx.scale)  # type: ignore[no-untyped-call]
        return *found, None, None


class _TiledGradients(torch.autograd.Function):
    """A function of its own, so that whoever asks for its derivative gets an error: torch's `once_differentiable`
    gives `autograd.grad` a derivative without these terms.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        lse: Tensor,
        plan: TilePlan,
        scale: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad, output = grad.contiguous().transpose(1, 2), output.transpose(1, 2)
        grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=_exact(x.dtype)) for x in (q, k, v))
        for (rows, heads, groups), batch in _batches(plan):
            mine = [_queries(x[rows, heads], batch) for x in (grad, q, output, lse[..., None])]
            for segment, step in zip(batch.tile.segments, batch.steps, strict=True):
                own_k, own_v = (_keys(x[rows, groups], segment, batch.times, step) for x in (k, v))
                given = *mine[:2], own_k, own_v, mine[2], mine[3][..., 0]
                found = _backward(*given, 0.0, segment.is_causal, attn_mask=_additive(segment, q), scale=scale)
                add_to(grad_q[rows, heads], found[0], batch.tile.start, batch.times, batch.step)
                for total, own in ((grad_k, found[1]), (grad_v, found[2])):
                    add_to(total[rows, groups], own, segment.start, batch.times, step)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "attention tile by tile has no second derivative, nor has torch's fast kernel. Run the forward under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or use attn_implementation='eager'."
        )


def _batches(plan: TilePlan) -> Iterator[tuple[Place, Batch]]:
    """Rows, heads and key/value heads, and tiles that go through the kernel together; several of them row by row."""
    for part in plan.parts:
        for batch in part.batches:
            each = [slice(row, row + 1) for row in range(part.rows.start, part.rows.stop)]
            for rows in [part.rows] if batch.times == 1 else each:
                yield (rows, part.heads, part.groups), batch


def _queries(states: Tensor, batch: Batch) -> Tensor:
    return taken(states, batch.tile.start, batch.tile.end, batch.times, batch.step)


def _keys(states: Tensor, segment: Segment, times: int, step: int) -> Tensor:
    return taken(states, segment.start, segment.end, times, step)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What sums of many values of this dtype are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _attend(q: Tensor, k: Tensor, v: Tensor, batch: Batch, scale: float | None) -> tuple[Tensor, Tensor]:
    """The output of tiles, of the shape of `q`, and the log-sum-exp of their scores; +inf for what sees nothing."""
    tile = batch.tile
    if not tile.segments:
        return torch.zeros_like(q), q.new_full(q.shape[:3], torch.inf, dtype=_exact(q.dtype))
    found = []
    for segment, step in zip(tile.segments, batch.steps, strict=True):
        own_k, own_v = (_keys(x, segment, batch.times, step) for x in (k, v))
        found.append(_attend_to(segment, q, own_k, own_v, scale))
    output, lse = found[0] if len(found) == 1 else _merged(found)
    return output, lse if tile.empty is None else lse.masked_fill(tile.empty, torch.inf)


def _attend_to(segment: Segment, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """The same for the keys of one segment; -inf for queries that see none of them."""
    output, lse = _forward(q, k, v, 0.0, segment.is_causal, attn_mask=_additive(segment, q), scale=scale)
    if segment.mask is None or not bool(segment.mask.blind.any()):
        return output, lse
    blind = segment.mask.blind
    return output.masked_fill(blind[:, None], 0), lse.masked_fill(blind, -torch.inf)


def _additive(segment: Segment, q: Tensor) -> Tensor | None:
    return None if segment.mask is None else segment.mask.additive(q.dtype)


def _merged(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exps over different keys, as of all keys together."""
    (output, lse), *others = found
    output = output.to(lse.dtype)
    for other, own in others:
        weight = (own - lse).sigmoid().nan_to_num(0)  # NaN: neither sees anything
        output = output.lerp_(other.to(lse.dtype), weight[..., None])
        lse = torch.logaddexp(lse, own)
    return output, lse
