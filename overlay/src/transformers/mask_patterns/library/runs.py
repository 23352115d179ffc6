"""Runs of tokens that belong together, found once and looked up per query: documents, segments, marked tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs import PerToken
from ..ranges import Ranges


@dataclass(frozen=True, eq=False)
class Runs:
    """The maximal runs of neighbouring tokens of each group.

    Args:
        start, end: int64 `(most, groups + 1)`, per group its runs as half-open intervals of positions, in order; what
            a group does not need is `[never, never)`, and so is all of the last group, which is nobody's.
    """

    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, row: Tensor, position: Tensor, group: Tensor, groups: int) -> Runs:
        """From every token, in order: its row, its position, and its group, int64 `(tokens,)` each; -1 is none."""
        begins = torch.ones_like(row, dtype=torch.bool)
        begins[1:] = (row[1:] != row[:-1]) | (group[1:] != group[:-1])
        first = begins.nonzero()[:, 0]
        size = torch.diff(first, append=first.new_tensor([len(row)]))
        start, owner = position[first], group[first]
        used = owner >= 0
        start, end, owner = start[used], (start + size)[used], owner[used]
        order = owner.argsort(stable=True)
        counts = owner.bincount(minlength=groups)
        rank = torch.arange(len(owner), device=row.device) - (counts.cumsum(0) - counts)[owner[order]]
        never = torch.iinfo(torch.int32).max
        starts = row.new_full((max(1, int(counts.max()) if groups else 0), groups + 1), never)
        ends = starts.clone()
        starts[rank, owner[order]], ends[rank, owner[order]] = start[order], end[order]
        return cls(starts, ends)

    @property
    def most(self) -> int:
        """The most runs that a group has."""
        return len(self.start)

    def at(self, group: Tensor, length: int) -> Ranges:
        """The runs of one group per query, int64 `(batch or 1, queries)`."""
        start, end = (side[:, group].movedim(0, 1)[:, None].clamp(max=length) for side in (self.start, self.end))
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
        dense = ids.values.unique(return_inverse=True)[1]
        key = row * len(ids.values) + ids.mapped(dense)[row, position]
        names, group = key.unique(return_inverse=True)
        order = group.argsort(stable=True)
        counts = group.bincount(minlength=len(names))
        rank = torch.empty_like(group)
        rank[order] = torch.arange(len(group), device=row.device) - (counts.cumsum(0) - counts)[group[order]]

        def by_token(values: Tensor, elsewhere: int) -> PerToken:
            filled = torch.full_like(ids.values, elsewhere)
            filled[ids.starts[row] + position] = values
            return ids.mapped(filled)

        runs = Runs.of(row, position, group, len(names))
        return cls(ids, by_token(group, len(names)), by_token(rank, 0), runs)

    def same(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        """The tokens that have each query's id."""
        return self.runs.at(self.group[batch, q.clamp(min=0)], length)
