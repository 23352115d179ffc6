"""Causal and bidirectional: the masks of decoders and of encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pattern import Index
from ..ranges import Ranges
from .named import Named


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Named):
    """Each query sees itself and what came before it: `k <= q`. Upstream's default for decoders.

    length 4:

        1... 11.. 111. 1111
    """

    word: ClassVar[str] = "causal"

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return k <= q

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), q + 1, length)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Bidirectional(Named):
    """Each query sees every key. Embeddings: LLM2Vec, arXiv:2404.05961; diffusion: Dream, arXiv:2508.15487.

    length 4:

        1111 1111 1111 1111
    """

    word: ClassVar[str] = "bidirectional"

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (q == q) & (k == k)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), torch.full_like(q, length), length)
