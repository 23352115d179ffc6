"""A tree of candidate tokens behind a prefix: speculative decoding checks all branches in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import bad_argument
from ..inputs import RowData
from ..pattern import Bound, Index, Pattern
from ..ranges import Ranges
from .named import MANY_INTERVALS, MAX_INTEGER, Sampled, is_int


@dataclass(frozen=True, eq=False, repr=False)
class Tree(Sampled):
    """Behind `prefix` tokens a tree: each sees the prefix, its ancestors and itself:
    `k < prefix or (k >= prefix and k - prefix is q - prefix or an ancestor of it)`; the prefix is causal.

    `parents` says for each token of the tree, counted from 0 behind the prefix, its parent; parents come before
    children, -1 is a root, and several roots are allowed. Both are static (`Tree(2, [-1, 0, 0])`), or tensors,
    integers `(batch,)` and `(batch, nodes)`, or `(nodes,)` for all rows, or come as `mask_inputs["tree_prefix"]`
    and `["tree_parents"]`; rows with fewer nodes are filled with -1. A token's rotary position is `prefix +
    depth`, see `position_ids`. A tree is for one forward: `generate` cannot go on from it. Trees deeper than 32
    have no short form. Sources: Medusa, arXiv:2401.10774; EAGLE-2, arXiv:2406.16858.

    prefix 1, parents -1 0 0:

        1... 11.. 111. 11.1
    """

    word: ClassVar[str] = "tree"
    prefix: int | Tensor | None = None
    parents: Sequence[int] | Tensor | None = field(default=None, metadata={"text": "integers"})

    def __post_init__(self) -> None:
        if isinstance(self.parents, list):
            object.__setattr__(self, "parents", tuple(self.parents))
        if isinstance(self.parents, Tensor) and self.parents.ndim == 1:
            object.__setattr__(self, "parents", self.parents[None])
        ok = self.prefix is None or isinstance(self.prefix, Tensor) or is_int(self.prefix, 0)
        self._require(ok, "prefix", self.prefix, f"an integer from 0 to {MAX_INTEGER}, or an integer tensor (batch,)")
        if isinstance(self.parents, tuple):
            ok = all(is_int(parent, -1) and parent < node for node, parent in enumerate(self.parents))
            self._require(ok, "parents", self.parents, "for each node the number of an earlier one, or -1 for a root")
        else:
            ok = self.parents is None or isinstance(self.parents, Tensor)
            self._require(ok, "parents", self.parents, "a list of integers, or an integer tensor (batch, nodes)")

    def bind(self, rows: RowData) -> Pattern:
        prefix, parents = self._prefix(rows), self._parents(rows)
        _check_tree(prefix, parents, rows.counts, self)
        return _BoundTree(prefix, *_ancestors(parents))

    def _prefix(self, rows: RowData) -> Tensor:
        if isinstance(self.prefix, int):
            return torch.full_like(rows.counts, self.prefix)
        prefix = rows.per_row("tree_prefix", self.prefix)
        return self._missing("tree_prefix", "Or say tree(PREFIX, [PARENTS]).") if prefix is None else prefix

    def _parents(self, rows: RowData) -> Tensor:
        if isinstance(self.parents, tuple):
            parents = rows.counts.new_tensor(self.parents).expand(len(rows.counts), -1)
        else:
            own = self.parents if isinstance(self.parents, Tensor) else None
            given = rows.table("tree_parents", own)
            parents = self._missing("tree_parents", "Or say tree(PREFIX, [PARENTS]).") if given is None else given
        return torch.nn.functional.pad(parents, (0, 1), value=-1)  # so that there is a node to ask for

    @property
    def causal(self) -> bool:
        return True


def _check_tree(prefix: Tensor, parents: Tensor, counts: Tensor, pattern: Tree) -> None:
    nodes = torch.arange(parents.shape[1], device=parents.device)
    size = counts - prefix
    if bool(((prefix < 0) | (size < 0) | (size >= parents.shape[1])).any()):
        got = f"{prefix.tolist()} and {parents.shape[1] - 1} nodes for rows of {counts.tolist()} tokens"
        expected = f"a prefix within each row, and a parent for every token behind it, for {pattern!r}"
        remedy = "A tree is for one forward: it does not go on in generate()."
        raise bad_argument("tree_prefix, tree_parents", got, expected, remedy)
    if bool(((parents < -1) | (parents >= nodes)).any()):
        remedy = "Number the nodes from 0 behind the prefix; -1 is a root."
        raise bad_argument("tree_parents", parents.tolist(), "parents before their children", remedy)
    if bool(((nodes >= size[:, None]) & (parents != -1)).any()):
        expected = "-1 behind the last token of a row"
        raise bad_argument("tree_parents", parents.tolist(), expected, "Fill rows of fewer nodes with -1.")


def _ancestors(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Per node itself and its ancestors, int64 `(rows, depth, nodes)`, -1 when there are no more; and its depth."""
    nodes = torch.arange(parents.shape[1], device=parents.device).expand_as(parents)
    lines = [nodes]
    while bool((lines[-1] >= 0).any()):
        lines.append(parents.gather(1, lines[-1].clamp(min=0)).where(lines[-1] >= 0, -1))
    ancestors = torch.stack(lines[:-1] or lines, dim=1)  # where there are no rows, there is no last line to leave out
    return ancestors, (ancestors >= 0).sum(1) - 1


@dataclass(frozen=True, eq=False)
class _BoundTree(Bound):
    """`Tree` with its data: prefix `(rows,)`, ancestors `(rows, depth, nodes)` and depth `(rows, nodes)`."""

    word: ClassVar[str] = "tree"
    prefix: Tensor
    ancestors: Tensor
    depth: Tensor

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        prefix = self.prefix[batch]
        node = self._node(q, prefix)
        lines = [self.ancestors[:, level][batch, node] for level in range(self.ancestors.shape[1])]
        is_ancestor = reduce(or_, [(line >= 0) & (line == k - prefix) for line in lines])
        return (k <= q) & ((k < prefix) | is_ancestor)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        levels = self.ancestors.shape[1]
        if levels > MANY_INTERVALS:
            return None
        prefix, nodes = self.prefix[batch], self._of_nodes(length)
        node = self._node(q, prefix)
        sides = (side[:, 0].movedim(1, 2)[batch, node].movedim(-1, 1) for side in (nodes.start, nodes.end))
        start, end = (side[:, None] for side in sides)
        past = Ranges.single(torch.zeros_like(q), q + 1, length)
        return Ranges.either(q >= prefix, Ranges(start, end, length), past)

    def _of_nodes(self, length: int) -> Ranges:
        """What the nodes of the tree see, which are few beside the tokens of the prefix."""
        prefix, known = self.prefix[:, None, None], self.ancestors >= 0
        key = (self.ancestors + prefix).where(known, 0)
        start = torch.cat([torch.zeros_like(key[:, :1]), key], 1)
        end = torch.cat([prefix.expand_as(key[:, :1]), key + known], 1)
        return Ranges.covering(start[:, None].clamp(max=length), end[:, None].clamp(max=length), length)

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor:
        prefix = self.prefix[batch]
        return q.where(q < prefix, prefix + self.depth[batch, self._node(q, prefix)])

    def _node(self, q: Index, prefix: Tensor) -> Tensor:
        node: Tensor = (q - prefix).clamp(0, self.ancestors.shape[2] - 1)
        return node

    @property
    def causal(self) -> bool:
        return True
