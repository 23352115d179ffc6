"""Slots and positions: where the tokens of one forward lie.

A *slot* indexes the key/value tensors, padding and all. A *position* is a token's rank among the real tokens of its
row. Patterns speak of positions only, so padding and caches never change what they mean.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Held:
    """The slots that a cache holds which drops some of them: `kept`, and all from `since` on.

    Args:
        kept: int64 `(any,)`, ascending and below `since`.
    """

    kept: Tensor
    since: int

    @property
    def is_all(self) -> bool:
        """Whether none was dropped."""
        return len(self.kept) == self.since

    @cached_property
    def dropped(self) -> Tensor:
        """The slots that are no longer held, int64 `(any,)`."""
        gone = torch.ones(self.since, dtype=torch.bool, device=self.kept.device)
        gone[self.kept] = False
        return gone.nonzero()[:, 0]

    def place(self, slot: int) -> int:
        """Where a slot lies in the key/value tensors, or would."""
        return len(self._slots) + slot - self.since if slot >= self.since else bisect_left(self._slots, slot)

    @cached_property
    def _slots(self) -> list[int]:
        slots: list[int] = self.kept.tolist()
        return slots

    def slots(self, end: int) -> Tensor:
        """The slots held below `end`, in the order of the key/value tensors, int64 `(any,)`."""
        return torch.cat([self.kept, torch.arange(self.since, end, device=self.kept.device)])


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of one forward lie.

    Args:
        positions: int64 `(batch or 1, slots)`, the position of the token in each slot known so far, -1 at padding.
            One row stands for all when nothing is padded.
        batch: rows in the batch.
        q_offset: slot of the first query; the queries are the last slots known.
        kv_offset: first slot that the key/value tensors hold (larger than 0 when a cache has evicted keys).
        kv_length: how many slots they hold; slots not filled yet (static caches) have position -1.
        heads: query heads.
        groups: key/value heads; each serves `heads // groups` query heads.
        held: what they hold, where that is not all slots from `kv_offset` on.
    """

    positions: Tensor
    batch: int
    q_offset: int
    kv_offset: int
    kv_length: int
    heads: int = 1
    groups: int = 1
    held: Held | None = None

    @classmethod
    def of(
        cls,
        batch: int,
        q_length: int,
        *,
        real: Tensor | None = None,
        q_offset: int = 0,
        kv_offset: int = 0,
        kv_length: int | None = None,
        heads: int = 1,
        groups: int = 1,
        held: Held | None = None,
        device: torch.device | None = None,
    ) -> Layout:
        """The layout of `q_length` queries behind `q_offset` cached slots; `real` is bool `(batch, slots)`."""
        if real is None:
            positions = torch.arange(q_offset + q_length, device=device)[None]
        else:
            positions = (real.cumsum(-1) - 1).masked_fill(~real, -1)
        kv_length = q_offset + q_length if kv_length is None else kv_length
        return cls(positions, batch, q_offset, kv_offset, kv_length, heads, groups, held)

    @property
    def slots(self) -> int:
        """Slots known so far: cached ones and those of this forward."""
        return self.positions.shape[1]

    @property
    def q_length(self) -> int:
        """Queries in this forward."""
        return self.slots - self.q_offset

    @property
    def queries(self) -> Tensor:
        """Positions of the queries, int64 `(batch or 1, q_length)`, -1 at padding."""
        return self.positions[:, self.q_offset :]

    @property
    def keys(self) -> Tensor:
        """Positions of what the key/value tensors hold, int64 `(batch or 1, kv_length)`, -1 where that is no token."""
        if self.held is not None:
            return self.positions[:, self.held.slots(self.slots)]
        held = self.positions[:, self.kv_offset : self.kv_offset + self.kv_length]
        return torch.nn.functional.pad(held, (0, self.kv_length - held.shape[1]), value=-1)

    @property
    def dropped(self) -> Tensor:
        """Positions of what the cache has dropped, int64 `(batch or 1, any)`, -1 at padding."""
        return self.positions[:, : self.kv_offset] if self.held is None else self.positions[:, self.held.dropped]

    def places(self, spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...] | None:
        """Where half-open intervals of slots lie in the key/value tensors; None where some of them do not."""
        found = []
        for start, end in spans:
            place, behind = self._place(start), self._place(end)
            if place < 0 or behind - place != end - start:
                return None
            found.append((place, behind))
        return tuple(found)

    def _place(self, slot: int) -> int:
        return slot - self.kv_offset if self.held is None else self.held.place(slot)

    @cached_property
    def counts(self) -> Tensor:
        """Real tokens per row so far, int64 `(batch or 1,)`."""
        return (self.positions >= 0).sum(-1)

    @cached_property
    def length(self) -> int:
        """Real tokens in the longest row so far: every position is below it."""
        return int(self.counts.max())

    @property
    def is_padded(self) -> bool:
        """Whether some slot known so far holds no token."""
        return bool((self.positions < 0).any())

    def by_position(self, data: Tensor) -> Tensor:
        """Integers per token, from slots `(batch or 1, slots)` to positions `(batch, length)`; -1 behind the rest."""
        data, positions = data.expand(self.batch, -1), self.positions.expand(self.batch, -1)
        spare = self.length  # one place more, where padding goes
        out = data.new_full((self.batch, spare + 1), -1)
        return out.scatter_(1, positions.where(positions >= 0, spare), data)[:, :spare]
