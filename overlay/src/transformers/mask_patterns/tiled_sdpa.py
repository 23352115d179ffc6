"""Attention tile by tile, forward and backward, through the kernel that `scaled_dot_product_attention` has on a CPU.

That kernel also gives the log-sum-exp of the scores, with which the segments of a tile, each attended to on its own,
merge to what all keys together would have given (FlashAttention, arXiv:2205.14135; flash-decoding). With the merged
output and log-sum-exp its backward is right for every segment alone. Nothing of the size of the scores is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lowering.batches import Batch, add_to, taken
from .lowering.kernel import Arrangement
from .lowering.places import Place
from .lowering.tiles import Segment, TilePlan


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
        for place, batch in _batches(plan):
            own_q, own_output, own_lse = (
                _queries(x, place, batch) for x in (q, output.transpose(1, 2), lse[..., None])
            )
            own_k, own_v = (x[place.rows, place.groups] for x in (k, v))
            found, found_lse = _attend(own_q, own_k, own_v, batch, scale)
            own_output.copy_(found)
            own_lse.copy_(found_lse)
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
        for place, batch in _batches(plan):
            mine = [_queries(x, place, batch) for x in (grad, q, output, lse[..., None])]
            own_k, own_v = (x[place.rows, place.groups] for x in (k, v))
            own_grad_k, own_grad_v = (x[place.rows, place.groups] for x in (grad_k, grad_v))
            own_grad_q = grad_q[place.rows, place.heads].unflatten(1, (-1, place.served))
            for segment, step in zip(batch.tile.segments, batch.steps, strict=True):
                call = _Call.of(segment, step, batch, place.served)
                found = call.backward(mine, own_k, own_v, scale)
                add_to(own_grad_q, found[0], batch.tile.start, batch.times, batch.step)
                add_to(own_grad_k, found[1], segment.start, call.times, step)
                add_to(own_grad_v, found[2], segment.start, call.times, step)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "attention tile by tile has no second derivative, nor has torch's fast kernel. Run the forward under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or use attn_implementation='eager'."
        )


def _batches(plan: TilePlan) -> Iterator[tuple[Place, Batch]]:
    """Tiles that go through the kernel together, and whose they are; several of them row by row."""
    for part in plan.parts:
        for batch in part.batches:
            place = part.place
            each = [slice(row, row + 1) for row in range(place.rows.start, place.rows.stop)]
            for rows in [place.rows] if batch.times == 1 else each:
                yield place._replace(rows=rows), batch


def _queries(states: Tensor, place: Place, batch: Batch) -> Tensor:
    """Those of a batch, `(rows or tiles, key/value heads, heads that each serves, queries, any)`."""
    own = taken(states[place.rows, place.heads], batch.tile.start, batch.tile.end, batch.times, batch.step)
    split: Tensor = own.unflatten(1, (-1, place.served))
    return split


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What sums of many values of this dtype are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _attend(q: Tensor, k: Tensor, v: Tensor, batch: Batch, scale: float | None) -> tuple[Tensor, Tensor]:
    """The output of tiles, of the shape of `q`, and the log-sum-exp of their scores, with a last dimension of one;
    that is +inf for what sees nothing.
    """
    tile = batch.tile
    if not tile.segments:
        return torch.zeros_like(q), q.new_full((*q.shape[:-1], 1), torch.inf, dtype=_exact(q.dtype))
    found = [
        _Call.of(segment, step, batch, q.shape[2]).forward(q, k, v, scale)
        for segment, step in zip(tile.segments, batch.steps, strict=True)
    ]
    output, lse = found[0] if len(found) == 1 else _merged(found)
    return output, lse if tile.empty is None else lse.masked_fill(tile.empty[:, None], torch.inf)


@dataclass(frozen=True, eq=False)
class _Call:
    """Of the kernel, for the keys of a segment of all tiles of a batch.

    Args:
        times: how many segments there are, each `step` behind the one before.
        served: how often the mask is repeated.
    """

    segment: Segment
    arrangement: Arrangement
    times: int
    step: int
    served: int

    @classmethod
    def of(cls, segment: Segment, step: int, batch: Batch, served: int) -> _Call:
        arrangement = Arrangement.of(segment, step, batch, served)
        times = 1 if arrangement is Arrangement.TILES else batch.times
        return cls(segment, arrangement, times, step, served if arrangement is Arrangement.HEADS else 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp, which is -inf for queries that see none of these keys; shapes as of `_attend`."""
        given = self.arrangement.call(q), self._keys(k), self._keys(v), 0.0, self.segment.is_causal
        found, found_lse = _forward(*given, attn_mask=self._mask(q), scale=scale)
        output, lse = (self.arrangement.back(x, q) for x in (found, found_lse[..., None]))
        if self.segment.mask is None or not bool(self.segment.mask.blind.any()):
            return output, lse
        blind = self.segment.mask.blind[:, None]
        return output.masked_fill(blind, 0), lse.masked_fill(blind, -torch.inf)

    def backward(
        self, mine: Sequence[Tensor], k: Tensor, v: Tensor, scale: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values.

        Args:
            mine: of all segments the gradient of the output, the queries, the output, and the log-sum-exp.
        """
        grad, q, output, lse = (self.arrangement.call(x) for x in mine)
        given = grad, q, self._keys(k), self._keys(v), output, lse[..., 0], 0.0, self.segment.is_causal
        grad_q, grad_k, grad_v = _backward(*given, attn_mask=self._mask(q), scale=scale)
        return self.arrangement.back(grad_q, mine[1]), grad_k, grad_v

    def _keys(self, states: Tensor) -> Tensor:
        return taken(states, self.segment.start, self.segment.end, self.times, self.step)

    def _mask(self, q: Tensor) -> Tensor | None:
        return None if self.segment.mask is None else self.segment.mask.additive(q.dtype, self.served)


def _merged(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exps over different keys, as of all keys together."""
    (output, lse), *others = found
    output = output.to(lse.dtype)
    for other, own in others:
        weight = (own - lse).sigmoid().nan_to_num(0)  # NaN: neither sees anything
        output = output.lerp_(other.to(lse.dtype), weight)
        lse = torch.logaddexp(lse, own)
    return output, lse
