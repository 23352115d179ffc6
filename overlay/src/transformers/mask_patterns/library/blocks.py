"""Patterns of fixed blocks: chunks, blocks that see each other, and block diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import bad_argument
from ..inputs import RowData
from ..pattern import Bound, Index, Pattern
from ..ranges import Ranges
from .named import Named, Sampled


@dataclass(frozen=True, eq=False, repr=False)
class Chunked(Named):
    """Each query sees what came before it in its own chunk of `size` tokens: `k <= q and k // size == q // size`.

    Source: Llama 4, as upstream's `chunked_attention` layers.

    size 2, length 4:

        1... 11.. ..1. ..11
    """

    word: ClassVar[str] = "chunked"
    size: int

    def __post_init__(self) -> None:
        self._require_size("size", 1)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (k <= q) & (k // self.size == q // self.size)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(q // self.size * self.size, q + 1, length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(q // self.size * self.size, torch.full_like(q, length), length)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class BlockCausal(Named):
    """Each query sees its own block of `size` tokens in both directions, and all before: `k // size <= q // size`.

    Inference of block diffusion models; cache-safe only at multiples of `size`. Sources: Fast-dLLM v2,
    arXiv:2509.26328; SDAR, arXiv:2510.06303.

    size 2, length 4:

        11.. 11.. 1111 1111
    """

    word: ClassVar[str] = "block_causal"
    size: int

    def __post_init__(self) -> None:
        self._require_size("size", 1)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return k // self.size <= q // self.size

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), (q // self.size + 1) * self.size, length)

    @property
    def causal(self) -> bool:
        return self.size == 1


@dataclass(frozen=True, eq=False, repr=False)
class BlockDiffusion(Sampled):
    """Training of block diffusion models: the first half of each row is noisy, the second the same text clean.

    With `n` the length of a half and `b(i) = i % n // size` the block of a token: noisy queries see their own noisy
    block and the clean blocks before it; clean queries see the clean blocks up to their own. Rotary positions are
    `i % n`, see `position_ids`. A row of odd length raises. Not cache-safe, as every new token moves the halves. SDAR
    trains on noisy and clean halves of each document in turn: `Document(BlockDiffusion(size))`.
    Source: BD3-LM, arXiv:2503.09573.

    size 1, length 4:

        1... .11. ..1. ..11
    """

    word: ClassVar[str] = "block_diffusion"
    size: int

    def __post_init__(self) -> None:
        self._require_size("size", 1)

    def bind(self, rows: RowData) -> Pattern:
        odd = rows.counts % 2 == 1
        if bool(odd.any()):
            got = f"{int(rows.counts[odd][0])} tokens in row {int(rows.origin[odd][0])}"
            expected = f"an even number for {self!r}: a noisy half, then a clean one"
            raise bad_argument("input_ids", got, expected, "Concatenate both halves, of the same length.")
        return _BoundBlockDiffusion(self.size, rows.counts // 2)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        expected = "a pattern that knows how long the rows are"
        raise bad_argument("visible", repr(self), expected, "Bind it first: .placed(length)[0].visible(q, k).")

    @property
    def settled(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class _BoundBlockDiffusion(Bound):
    """`BlockDiffusion` with the length of a half per row, int64 `(rows,)`."""

    word: ClassVar[str] = "block_diffusion"
    size: int
    half: Tensor

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        half = self.half[batch]
        noisy_q, noisy_k = q < half, k < half
        block_q, block_k = (q - half * (q >= half)) // self.size, (k - half * (k >= half)) // self.size
        within_noisy = noisy_q & noisy_k & (block_q == block_k)
        to_clean = (block_q > block_k) | ((block_q == block_k) & ~noisy_q)
        return within_noisy | (~noisy_k & to_clean)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        half = self.half[batch]
        noisy = q < half
        block = (q - half.where(~noisy, 0)) // self.size
        begin, end = block * self.size, torch.minimum((block + 1) * self.size, half)
        own = Ranges.single(begin.where(noisy, 0), end.where(noisy, 0), length)
        return own | Ranges.single(half, half + begin.where(noisy, end), length)

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor:
        half = self.half[batch]
        return q - half.where(q >= half, 0)
