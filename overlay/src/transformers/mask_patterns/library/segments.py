"""Segments of a row that share a part: several answers to a question, several contexts for a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..inputs import PerToken, RowData
from ..pattern import Bound, Index, Pattern
from ..ranges import Ranges
from .named import MANY_INTERVALS, Sampled, is_int
from .runs import Groups, Runs


@dataclass(frozen=True, eq=False, repr=False)
class _Segments(Sampled):
    """Patterns of segment ids."""

    ids: Tensor | None = field(default=None, metadata={"text": False})
    separator: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._require(self.ids is None or isinstance(self.ids, Tensor), "ids", self.ids, "an integer tensor")
        self._require(self.separator is None or is_int(self.separator, 0), "separator", self.separator, "a token id")
        self._require_one_source("ids", "separator")
        if self.ids is not None and self.ids.ndim == 1:
            object.__setattr__(self, "ids", self.ids[None])

    def _segment_ids(self, rows: RowData) -> PerToken:
        """By position; those that follow from separators count from 0 in each row."""
        if self.separator is not None:
            ids = self._separated(rows, self.separator)
            row, position = ids.tokens
            values = ids.values.clone()
            values[ids.starts[row] + position] -= ids[row, torch.zeros_like(position)]
            return ids.mapped(values)
        given = rows.per_token("segment_ids", self.ids)
        if given is None:
            self._missing("segment_ids", f"Or say {self.word}(separator=TOKEN).")
        return given

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class SharedPrefix(_Segments):
    """One question, several answers; each sees the question and itself:
    `k <= q and (seg[k] == 0 or seg[k] == seg[q])`.

    Segment 0 is the question. The ids, integers `(batch, length)` shaped like `input_ids` (or `(length,)` for all
    rows), are bound here, or come as `mask_inputs["segment_ids"]`, or follow from a `separator` token, which belongs
    to the segment it ends. New tokens go on with the last token's segment; a generated `separator` begins another.
    Rotary positions of each answer go on from the question, see `position_ids`; they do not tell where the first
    answer begins, so ids do not follow from them.
    Source: packing for DPO and GRPO, e.g. Prefix Grouper, arXiv:2506.05433.

    segments 0012, length 4:

        1... 11.. 111. 11.1
    """

    word: ClassVar[str] = "shared_prefix"

    def bind(self, rows: RowData) -> Pattern:
        segments = Groups.of(self._segment_ids(rows))
        row, position = segments.ids.tokens
        shared = row.where(segments.ids[row, position] == 0, -1)
        question = Runs.of(row, position, shared, len(segments.ids.counts))
        owner = torch.full_like(segments.runs.start[0], len(segments.ids.counts))
        owner[segments.group[row, position]] = row
        return _BoundSharedPrefix(segments, question, segments.runs.joined(question.of_groups(owner)))


@dataclass(frozen=True, eq=False)
class _BoundSharedPrefix(Bound):
    """`SharedPrefix` with its segments, the runs of the question in each row, and those that each segment sees."""

    word: ClassVar[str] = "shared_prefix"
    segments: Groups
    question: Runs
    shown: Runs

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        own, other = self.segments.ids[batch, q], self.segments.ids[batch, k]
        return (k <= q) & ((other == 0) | (other == own))

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if self.shown.most > MANY_INTERVALS:
            return None
        group = self.segments.group.of_tokens(batch, q)
        return Ranges.single(torch.zeros_like(q), q + 1, length) & self.shown.at(group, length)

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor:
        question = (self.question.end - self.question.start).sum(0)[batch.expand_as(q + batch)]
        own = self.segments.rank.of_tokens(batch, q)
        return own.where(self.segments.ids.of_tokens(batch, q) == 0, own + question)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class ParallelContext(_Segments):
    """Several contexts, and a task that sees them all: `k <= q and (seg[k] == seg[q] or seg[q] == last)`.

    `last` is the segment of the last token so far: the task. The ids are bound here, or come as
    `mask_inputs["segment_ids"]`, or follow from a `separator` token, as for `SharedPrefix`; new tokens go on with the
    last token's segment. Not cache-safe when a later forward brings another segment. Rotary positions of every context
    start at 0 and the task goes on behind the longest, see `position_ids`. Sources: Parallel Context Windows,
    arXiv:2212.10947; Block-Attention, arXiv:2409.15355.

    segments 0012, length 4:

        1... 11.. ..1. 1111
    """

    word: ClassVar[str] = "parallel_context"

    def bind(self, rows: RowData) -> Pattern:
        segments = Groups.of(self._segment_ids(rows))
        every = torch.arange(len(segments.ids.counts), device=segments.ids.counts.device)
        return _BoundParallelContext(segments, segments.ids[every, (segments.ids.counts - 1).clamp(min=0)])

    @property
    def settled(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class _BoundParallelContext(Bound):
    """`ParallelContext` with its segments and the last one's id per row, int64 `(rows,)`."""

    word: ClassVar[str] = "parallel_context"
    segments: Groups
    last: Tensor

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        own, other = self.segments.ids[batch, q], self.segments.ids[batch, k]
        return (k <= q) & ((other == own) | (own == self.last[batch]))

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if self.segments.runs.most > MANY_INTERVALS:
            return None
        past = Ranges.single(torch.zeros_like(q), q + 1, length)
        is_task = self.segments.ids[batch, q.clamp(min=0)] == self.last[batch]
        return Ranges.either(is_task, past, past & self.segments.same(q, length, batch))

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor | None:
        row, position = self.segments.ids.tokens
        size = (self.segments.rank[row, position] + 1).where(self.segments.ids[row, position] != self.last[row], 0)
        longest = torch.zeros_like(self.last).scatter_reduce_(0, row, size, "amax")
        at = self.segments.rank.of_tokens(batch, q)
        return at.where(self.segments.ids.of_tokens(batch, q) != self.last[batch], at + longest[batch])

    @property
    def causal(self) -> bool:
        return True
