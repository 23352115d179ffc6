"""Patterns of distance and of place: windows, dilated windows, attention sinks, global tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..inputs import PerToken, RowData
from ..pattern import Bound, Index, Pattern
from ..ranges import Ranges
from .named import MANY_INTERVALS, MAX_INTEGER, Named, Sampled, is_int
from .runs import Runs


@dataclass(frozen=True, eq=False, repr=False)
class SlidingWindow(Named):
    """Each query sees the last `width` keys, itself included: `0 <= q - k < width`; symmetric: `|q - k| < width`.

    `width` counts keys, as upstream's `sliding_window` does. FlexAttention's post and attention-gym use
    `q - k <= width`, one key more; flash-attention takes `width - 1`. Source: Mistral 7B, arXiv:2310.06825.

    width 2, length 4:

        1... 11.. .11. ..11
    """

    word: ClassVar[str] = "sliding_window"
    width: int
    symmetric: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._require_size("width", 1)
        self._require(isinstance(self.symmetric, bool), "symmetric", self.symmetric, "True or False")

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        near = q - k < self.width
        return near & (k - q < self.width) if self.symmetric else near & (k <= q)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        ahead = self.width if self.symmetric else 1
        return Ranges.single(q - self.width + 1, q + ahead, length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(q - self.width + 1, torch.full_like(q, length), length)

    @property
    def causal(self) -> bool:
        return not self.symmetric or self.width == 1


@dataclass(frozen=True, eq=False, repr=False)
class Dilated(Named):
    """Each query sees every `step`-th key back from itself, `count` of them:
    `k <= q and (q - k) % step == 0 and (q - k) // step < count`.

    `count` counts keys, itself included; attention-gym's window is a radius in tokens, and symmetric. Sources: Sparse
    Transformer, arXiv:1904.10509; Longformer, arXiv:2004.05150. Up to 32 keys they are as many intervals; beyond
    that there is no short form, and the mask is made whole.

    count 2, step 2, length 4:

        1... .1.. 1.1. .1.1
    """

    word: ClassVar[str] = "dilated"
    count: int
    step: int

    def __post_init__(self) -> None:
        self._require_size("count", 1)
        self._require_size("step", 1)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        back = q - k
        return (back >= 0) & (back % self.step == 0) & (back // self.step < self.count)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if self.step == 1:
            return Ranges.single(q - self.count + 1, q + 1, length)
        within = min(self.count, -(-length // self.step))  # more do not fit into the row
        if within > MANY_INTERVALS:
            return None
        back = self.step * torch.arange(max(within, 1), device=q.device).flip(0)
        key = q[:, None, None, :] - back[:, None]
        return Ranges.of(key, key + 1, length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(q - (self.count - 1) * self.step, torch.full_like(q, length), length)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Sink(Named):
    """Each query sees the first `count` tokens of its row, as far as they are not later: `k <= q and k < count`.

    With a window it is StreamingLLM's mask (arXiv:2309.17453), `Sink(4) | SlidingWindow(1024)`: what is visible there,
    not its re-indexing of rotary positions.

    count 2, length 4:

        1... 11.. 11.. 11..
    """

    word: ClassVar[str] = "sink"
    count: int

    def __post_init__(self) -> None:
        self._require_size("count", 0)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (k <= q) & (k < self.count)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), (q + 1).clamp(max=self.count), length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), torch.full_like(q, self.count), length)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class GlobalTokens(Sampled):
    """Some tokens see everything and are seen by everything: `k < count or q < count`, or `global[k] or global[q]`.

    They are the first `count` of each row; or where a mask, bool or integers `(batch, length)`, is 1, bound here or
    passed as `mask_inputs["global_attention_mask"]`; or every `token`. New tokens are not global, unless they are a
    `token`. In a decoder: `Causal() & (GlobalTokens(n) | ...)`. Source: Longformer, arXiv:2004.05150.

    count 1, length 4:

        1111 1... 1... 1...
    """

    word: ClassVar[str] = "global_tokens"
    count: int | Tensor | None = None
    token: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ok = self.count is None or isinstance(self.count, Tensor) or is_int(self.count, 0)
        expected = f"an integer from 0 to {MAX_INTEGER}, or a bool or integer tensor (batch, length)"
        self._require(ok, "count", self.count, expected)
        self._require(self.token is None or is_int(self.token, 0), "token", self.token, "a token id")
        self._require_one_source("count", "token")

    def bind(self, rows: RowData) -> Pattern:
        if isinstance(self.count, int):
            return self
        if self.token is not None:
            return _BoundGlobalTokens.of(self._marked(rows, self.token))
        marked = rows.per_token("global_attention_mask", self.count)
        if marked is None:
            self._missing("global_attention_mask", "Or say global_tokens(N) or global_tokens(token=TOKEN).")
        return _BoundGlobalTokens.of(marked.mapped((marked.values > 0).long()))

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        if not isinstance(self.count, int):
            return super().visible(q, k, batch, head)
        return (k < self.count) | (q < self.count)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if not isinstance(self.count, int):
            return None
        return Ranges.single(torch.zeros_like(q), torch.where(q < self.count, length, self.count), length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        return self.ranges(q, length, batch)  # behind the first tokens, all queries see the same


@dataclass(frozen=True, eq=False)
class _BoundGlobalTokens(Bound):
    """`GlobalTokens` with 1 at the global tokens."""

    word: ClassVar[str] = "global_tokens"
    marked: PerToken
    runs: Runs

    @classmethod
    def of(cls, marked: PerToken) -> _BoundGlobalTokens:
        rows, positions = marked.tokens
        return cls(marked, Runs.of(rows, positions, rows.where(marked[rows, positions] > 0, -1), len(marked.counts)))

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (self.marked[batch, q] > 0) | (self.marked[batch, k] > 0)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if self.runs.most > MANY_INTERVALS:
            return None
        everything = Ranges.single(torch.zeros_like(q), torch.full_like(q, length), length)
        keys = self.runs.at(batch.expand_as(q + batch), length)
        return reduce(or_, (keys, everything.where(self.marked[batch, q.clamp(min=0)] > 0)))
