"""Slots and positions: where the tokens of one forward lie, and which data belongs to which token.

A *slot* indexes the key/value tensors, padding and all. A *position* is a token's rank among the real tokens of its
row. Patterns speak of positions only, so padding and caches never change what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .errors import bad_argument


_GIVEN_ANYWAY = {"input_ids", "position_ids"}  # every forward has them, whether or not the pattern looks


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
    """

    positions: Tensor
    batch: int
    q_offset: int
    kv_offset: int
    kv_length: int
    heads: int = 1
    groups: int = 1

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
        device: torch.device | None = None,
    ) -> Layout:
        """The layout of `q_length` queries behind `q_offset` cached slots; `real` is bool `(batch, slots)`."""
        if real is None:
            positions = torch.arange(q_offset + q_length, device=device)[None]
        else:
            positions = (real.cumsum(-1) - 1).masked_fill(~real, -1)
        kv_length = q_offset + q_length if kv_length is None else kv_length
        return cls(positions, batch, q_offset, kv_offset, kv_length, heads, groups)

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
        held = self.positions[:, self.kv_offset : self.kv_offset + self.kv_length]
        return torch.nn.functional.pad(held, (0, self.kv_length - held.shape[1]), value=-1)

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


@dataclass(frozen=True, eq=False)
class Rows:
    """The per-sample data of one forward: what the caller passed, looked up by name, checked, and put in positions.

    Args:
        layout: where the tokens lie.
        inputs: `mask_inputs` of the call: `document_ids` and `input_ids`, integers `(batch, slots)`,
            `prefix_lengths`, integers `(batch,)`, `position_ids`, integers `(batch, slots)`.
        at_prefill: per-token data seen in earlier forwards of the same cache. Only such data may be shorter than the
            row by now: new tokens then go on as the last one. Data of the wrong size is never stretched.
        read: names of `inputs` that a pattern has asked for.
    """

    layout: Layout
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    at_prefill: list[Tensor] = field(default_factory=list)
    read: set[str] = field(default_factory=set)

    def require_all_read(self, pattern: object) -> None:
        """Refuse data that no part of the pattern has read: misspelled, or meant for a pattern that is not there.

        Raises:
            ValueError: names the data and the pattern.
        """
        unread = sorted(set(self.inputs) - self.read - _GIVEN_ANYWAY)
        if unread:
            expected = "document_ids, prefix_lengths or input_ids, as far as the pattern reads them"
            remedy = f"mask_pattern={str(pattern)!r} does not: spell it right, add its pattern, or leave it out."
            raise bad_argument("mask_inputs", unread, expected, remedy)

    def per_row(self, name: str, own: Tensor | None = None) -> Tensor | None:
        """One integer per row, int64 `(batch,)`, from the pattern itself or from `mask_inputs`; None if neither."""
        data = self._find(name, own)
        if data is None:
            return None
        if data.ndim != 1 or len(data) not in (1, self.layout.batch):
            expected = f"shape ({self.layout.batch},), one number per row"
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, "Give each row of the batch its own.")
        return data.expand(self.layout.batch)

    def per_token(self, name: str, own: Tensor | None = None) -> Tensor | None:
        """Integers by position, int64 `(batch, length)`, from the pattern itself or from `mask_inputs`."""
        data = self._find(name, own)
        if data is None:
            return None
        slots = self.layout.slots
        if data.ndim != 2 or len(data) not in (1, self.layout.batch):
            expected = f"shape ({self.layout.batch}, {slots}), shaped like input_ids"
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, "Give every row its own line.")
        if name == "document_ids" and data.shape[1] < slots and self._is_known(data):
            return self._go_on(data)
        if data.shape[1] != slots:
            expected = f"shape ({self.layout.batch}, {slots})"
            remedy = "It covers everything so far, cached tokens and padding too, as attention_mask does."
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, remedy)
        if self.layout.q_offset == 0:
            self.at_prefill.append(data)
        return self.layout.by_position(data)

    def _find(self, name: str, own: Tensor | None) -> Tensor | None:
        if own is None:
            self.read.add(name)
        data = own if own is not None else self.inputs.get(name)
        if data is None:
            return None
        if not isinstance(data, Tensor) or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            got = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
            raise bad_argument(
                name, got, "a tensor of integers", f"Pass torch.tensor(..., dtype=torch.long) as {name}."
            )
        return data.to(self.layout.positions.device, torch.int64)

    def _is_known(self, data: Tensor) -> bool:
        return any(data.shape == seen.shape and torch.equal(data, seen) for seen in self.at_prefill)

    def _go_on(self, data: Tensor) -> Tensor:
        """Data of the prompt, by position, with the last token's value for all tokens since."""
        known = self.layout.positions[:, : data.shape[1]]
        prompt = Layout(known, self.layout.batch, 0, 0, known.shape[1])
        by_position = prompt.by_position(data)
        steps = torch.arange(self.layout.length, device=data.device)
        last = (prompt.counts - 1).clamp(min=0)[:, None]
        index = torch.minimum(steps[None], last).expand(len(by_position), -1)
        return by_position.gather(1, index)
