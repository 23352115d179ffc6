"""Patterns around a place in the row: a prefix that all see, gist tokens that stand for what came before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import bad_argument
from ..inputs import RowData
from ..pattern import Bound, Index, Pattern
from ..ranges import Ranges
from .named import MAX_INTEGER, Named, Sampled, is_int


@dataclass(frozen=True, eq=False, repr=False)
class PrefixLM(Named):
    """Causal, but the first `length` tokens are seen by every query: `k <= q or k < length`. T5, arXiv:1910.10683.

    `length` is one number, or one per row as an integer tensor `(batch,)`; or `mask_inputs["prefix_lengths"]` says it;
    or it ends with the first `until` token of the row, included (no such token: causal). It does not grow in
    `generate`, where the prompt alone is searched for `until`, and must lie within the first forward. Decoding without
    `generate` cannot tell a prompt from what follows: an `until` that comes later, where none was before, is refused;
    `prefix_lengths` say otherwise.

    length 2, 4 tokens:

        11.. 11.. 111. 1111
    """

    word: ClassVar[str] = "prefix_lm"
    length: int | Tensor | None = None
    until: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ok = self.length is None or isinstance(self.length, Tensor) or is_int(self.length, 0)
        self._require(ok, "length", self.length, f"an integer from 0 to {MAX_INTEGER}, or an integer tensor (batch,)")
        self._require(self.until is None or is_int(self.until, 0), "until", self.until, "a token id")
        self._require_one_source("length", "until")

    def bind(self, rows: RowData) -> Pattern:
        if isinstance(self.length, int):
            return self
        if self.until is not None:
            found = self._marked(rows, self.until)
            first = found.first()
            return PrefixLM((first + 1).where(first < torch.minimum(found.counts, rows.prompt_counts), 0))
        lengths = rows.per_row("prefix_lengths", self.length)
        if lengths is None:
            self._missing("prefix_lengths", "Or say prefix_lm(P) or prefix_lm(until=TOKEN).")
        if bool((lengths < 0).any()):
            remedy = "A row without a prefix has length 0."
            raise bad_argument("prefix_lengths", lengths.tolist(), "numbers of at least 0", remedy)
        return PrefixLM(lengths)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        length = self._length()
        return (k <= q) | (k < (length[batch] if isinstance(length, Tensor) else length))

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        prefix = self._length()
        prefix = prefix.to(q.device)[batch] if isinstance(prefix, Tensor) else torch.full_like(q, prefix)
        return Ranges.single(torch.zeros_like(q), torch.maximum(q + 1, prefix), length)

    def _length(self) -> int | Tensor:
        if self.length is None:
            raise bad_argument("prefix_lengths", "nothing", f"data for {self!r}", "Say PrefixLM(P), or bind it first.")
        return self.length

    @property
    def causal(self) -> bool:
        return isinstance(self.length, int) and self.length == 0


@dataclass(frozen=True, eq=False, repr=False)
class Gist(Sampled):
    """Queries behind the gist tokens see the gist tokens in place of all before them:
    `k <= q and (q <= last_gist or k >= first_gist)`; causal in a row without any.

    Gist tokens are every `token`; or where `mask`, bool or integers `(batch, length)`, is 1, which may also come as
    `mask_inputs["gist_mask"]`. New tokens are none, unless they are a `token`; a second group of gist tokens changes
    what is in a cache already, and is refused there. Source: Learning to Compress Prompts with Gist Tokens,
    arXiv:2304.08467.

    gist token at 1, length 4:

        1... 11.. .11. .111
    """

    word: ClassVar[str] = "gist"
    mask: Tensor | None = field(default=None, metadata={"text": False})
    token: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ok = self.mask is None or isinstance(self.mask, Tensor)
        self._require(ok, "mask", self.mask, "a bool or integer tensor (batch, length)")
        self._require(self.token is None or is_int(self.token, 0), "token", self.token, "a token id")
        self._require_one_source("mask", "token")

    def bind(self, rows: RowData) -> Pattern:
        given = None if self.token is not None else rows.per_token("gist_mask", self.mask)
        marked = given if self.token is None else self._marked(rows, self.token)
        if marked is None:
            self._missing("gist_mask", "Or say gist(token=TOKEN).")
        marked = marked.mapped((marked.values > 0).long())
        first, last = marked.first(), marked.last()
        return _BoundGist(first.where(last >= 0, 0), last.where(last >= 0, MAX_INTEGER))

    @property
    def causal(self) -> bool:
        return True

    @property
    def settled(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class _BoundGist(Bound):
    """`Gist` with the first and the last gist token of each row, int64 `(rows,)`."""

    word: ClassVar[str] = "gist"
    first: Tensor
    last: Tensor

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (k <= q) & ((q <= self.last[batch]) | (k >= self.first[batch]))

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        start = self.first[batch].where(q > self.last[batch], 0)
        return Ranges.single(start, q + 1, length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        # a gist token right behind the last one may still come; a later one would revise what is in the cache
        start = self.first[batch].where(q > self.last[batch] + 1, 0)
        return Ranges.single(start, torch.full_like(start, length), length)

    @property
    def causal(self) -> bool:
        return True
