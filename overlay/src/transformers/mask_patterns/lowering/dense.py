"""The whole mask as one tensor: what eager attention and SDPA take, and the oracle for looking and testing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..pattern import Pattern
from ..positions import Layout
from ..ranges import Ranges


def key_ranges(pattern: Pattern, q: Tensor, layout: Layout) -> Ranges | None:
    """The keys that a bound pattern shows to queries at positions `q`, int64 `(batch or 1, queries)`, -1 at padding.

    None where the pattern has no such form.
    """
    rows = torch.arange(layout.batch, device=q.device)[:, None]
    ranges, real = pattern.ranges(q, layout.length, rows), q >= 0
    return ranges if ranges is None or bool(real.all()) else ranges.where(real)


def visible_grid(pattern: Pattern, layout: Layout) -> Tensor:
    """Which key slot each query of a forward may see: bool `(batch or 1, heads or 1, q_length, kv_length)`.

    Args:
        pattern: bound to this forward's data.
        layout: where the tokens lie. Padded queries see nothing, padded keys are seen by nobody.
    """
    return grid(pattern, layout.queries, layout.keys, layout)


def grid(pattern: Pattern, q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """`visible` for any positions `q`, `(batch or 1, queries)`, and `k`, `(batch or 1, keys)`; -1 is padding."""
    ranges = key_ranges(pattern, q, layout)
    if ranges is not None:
        return ranges.contains(k)
    real = (q >= 0)[:, None, :, None] & (k >= 0)[:, None, None, :]
    if layout.length == 0:  # no row has a token that a function could be asked about
        return real
    return _by_function(pattern, q.clamp(min=0), k.clamp(min=0), layout.batch, layout.heads) & real


def _by_function(pattern: Pattern, q: Tensor, k: Tensor, batch: int, heads: int) -> Tensor:
    """`mask_mod` on every row, head, query and key, one scalar each, as FlexAttention calls it.

    A dimension that the function does not look at comes out of `vmap` with stride 0 and is cut to size 1.
    """
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    rows = torch.arange(batch, device=q.device)
    shared = len(q) == 1 and len(k) == 1
    q, k = (q[0], k[0]) if shared else (q.expand(batch, -1), k.expand(batch, -1))
    own = None if shared else 0
    function: Callable[..., Any] = pattern.mask_mod
    for dims in ((None, None, None, 0), (None, None, 0, None), (0, None, own, own), (None, 0, None, None)):
        function = torch.vmap(function, in_dims=dims)
    with TransformGetItemToIndex():
        seen: Tensor = function(rows, torch.arange(heads, device=q.device), q, k)
    seen = seen.transpose(0, 1)
    for dim in (0, 1):
        if seen.stride(dim) == 0:
            seen = seen.narrow(dim, 0, 1)
    return seen
