"""Runs of tokens that belong together, found once and looked up per query: documents, segments, marked tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs import PerToken
from ..ranges import Ranges


_NEVER = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False)
class Runs:
    """The maximal runs of neighbouring tokens of each group.

    Args:
        start, end: integers `(most, groups + 1)`, per group its runs as half-open intervals of positions, in order;
            what a group does not need is `[never, never)`, and so is all of the last group, which is nobody's.
    """

    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, row: Tensor, position: Tensor, group: Tensor, groups: int) -> Runs:
        """From every token, in order: its row, its position, and its group, int64 `(tokens,)` each; -1 is none."""
        first, size = _pieces(row, group)
        owner = group[first]
        used = owner >= 0
        start = position[first]
        return cls.among(owner[used], start[used], (start + size)[used], groups)

    @classmethod
    def among(cls, owner: Tensor, start: Tensor, end: Tensor, groups: int) -> Runs:
        """From every run, in order: its group, and where it starts and ends, int64 `(runs,)` each."""
        order = owner.argsort(stable=True)
        counts = owner.bincount(minlength=groups)
        rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        starts = owner.new_full((max(1, int(counts.max()) if groups else 0), groups + 1), _NEVER)
        ends = starts.clone()
        starts[rank, owner[order]], ends[rank, owner[order]] = start[order], end[order]
        return cls(starts, ends)

    @property
    def most(self) -> int:
        """The most runs that a group has."""
        return len(self.start)

    def of_groups(self, groups: Tensor) -> Runs:
        """Those of other groups, each one's of one of these; int64 `(groups + 1,)`."""
        return Runs(self.start[:, groups], self.end[:, groups])

    def joined(self, other: Runs) -> Runs:
        """The runs of both, group by group."""
        start, end = (torch.cat(sides)[None, None] for sides in ((self.start, other.start), (self.end, other.end)))
        both = Ranges.covering(start, end, _NEVER)
        return Runs(both.start[0, 0], both.end[0, 0])

    def at(self, group: Tensor, length: int) -> Ranges:
        """The runs of one group per query, int64 `(batch or 1, queries)`."""
        sides = (side.clamp(max=length).int()[:, group] for side in (self.start, self.end))
        start, end = (side.movedim(0, 1)[:, None] for side in sides)
        return Ranges(start, end, length)


@dataclass(frozen=True, eq=False)
class Groups:
    """Tokens of a row that have the same id: what documents and segments are.

    Args:
        ids: of the tokens, as given.
        group: of the tokens; its numbers are those of `runs`.
        rank: of each token among those of its group.
        runs: of each group.
    """

    ids: PerToken
    group: PerToken
    rank: PerToken
    runs: Runs

    @classmethod
    def of(cls, ids: PerToken) -> Groups:
        row, position = ids.tokens
        place = ids.starts[row] + position
        own = ids.values[place]
        first, size = _pieces(row, own)
        dense = own[first].unique(return_inverse=True)[1]
        names, group = (row[first] * (len(first) + 1) + dense).unique(return_inverse=True)
        before = _sizes_before(group, size)

        def by_token(of_run: Tensor, elsewhere: int) -> PerToken:
            filled = torch.full_like(ids.values, elsewhere)
            filled[place] = of_run.repeat_interleave(size)
            return ids.mapped(filled)

        start = position[first]
        rank = by_token(before - start, 0)
        rank.values[place] += position
        runs = Runs.among(group, start, start + size, len(names))
        return cls(ids, by_token(group, len(names)), rank, runs)

    def same(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        """The tokens that have each query's id."""
        return self.runs.at(self.group[batch, q.clamp(min=0)], length)


def _pieces(row: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Where neighbours begin that are alike in both, and how many each time, int64 `(pieces,)`."""
    begins = torch.ones_like(row, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (value[1:] != value[:-1])
    first = begins.nonzero()[:, 0]
    return first, torch.diff(first, append=first.new_tensor([len(row)]))


def _sizes_before(group: Tensor, size: Tensor) -> Tensor:
    """How much of each run's group lies in earlier runs, int64 `(runs,)`."""
    order = group.argsort(stable=True)
    so_far = size[order].cumsum(0) - size[order]
    begins = torch.searchsorted(group[order], group[order])
    before = torch.empty_like(size)
    before[order] = so_far - so_far[begins]
    return before
