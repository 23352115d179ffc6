"""Questions about a pattern: does it see the future, may a cache be trusted with it, which labels does it give away?

All are answered exactly, in O(length) memory where each query sees a few intervals of keys, for users' functions too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import Rows
from .library import Function
from .lowering.dense import grid, key_ranges, visible_grid
from .pattern import Pattern
from .positions import Layout
from .ranges import Ranges
from .reach import MOST_INTERVALS, Network, require_dense


_CELLS = 1 << 24  # how much of a mask that has no intervals of its own is asked at a time


def shown(pattern: Pattern, layout: Layout) -> Ranges:
    """The tokens that a bound pattern shows to each token: `(batch or 1, heads or 1, intervals, layout.length)`.

    Raises:
        ValueError: the mask has many intervals per query, and is too long to be kept as a boolean matrix.
    """
    tokens = torch.arange(layout.length, device=layout.positions.device)[None]
    tokens = tokens.where(tokens < layout.counts[:, None], -1)  # rows may end early
    ranges = key_ranges(pattern, tokens, layout)
    if ranges is not None:
        there = Ranges.single(torch.zeros_like(tokens), layout.counts[:, None].expand_as(tokens), layout.length)
        return ranges & there
    tiles = []
    for queries in tokens.split(max(1, _CELLS // max(1, layout.length)), dim=1):
        tiles.append(Ranges.of_grid(grid(pattern, queries, tokens, layout)))
        if tiles[-1].start.shape[2] > MOST_INTERVALS:
            require_dense(layout.length)
    return Ranges.behind_each_other(tiles)


def reads_head(pattern: Pattern) -> bool:
    """Whether a user's function in a pattern asks which head it is for."""
    if any(map(reads_head, pattern.parts)):
        return True
    return isinstance(pattern, Function) and visible_grid(pattern, Layout.of(1, 1, heads=2)).shape[1] > 1


def network(patterns: Sequence[Pattern], rows: Rows, *, endless: bool = False) -> Network:
    """The masks of a stack of layers, whose patterns are given first to last, and bound to the data of `rows` here."""
    bound = {pattern: pattern.bind(rows).simplified() for pattern in patterns}
    order = {pattern: i for i, pattern in enumerate(bound)}
    masks = [shown(pattern, rows.layout) for pattern in bound.values()]
    return Network(masks, tuple(order[pattern] for pattern in patterns), endless)


def label_leaks(stack: Network, layout: Layout) -> Tensor:
    """Which tokens can be read where they are to be predicted: bool `(batch or 1, slots)`, aligned with `labels`.

    A next-token loss scores the output at slot `t - 1` with the token in slot `t`. That target leaks if the token in
    slot `t` can influence that output, through any path of layers and residual stream.
    """
    read = torch.nn.functional.pad(stack.reads_next, (0, 1))  # one place more, where padding looks
    positions = layout.positions.expand(max(len(read), len(layout.positions)), -1)
    leaks = read.expand(len(positions), -1).gather(1, positions.where(positions >= 0, layout.length))
    next_to_each_other = (positions[:, 1:] >= 0) & leaks[:, :-1]
    return torch.nn.functional.pad(next_to_each_other, (1, 0))


def first_pair(seen: Ranges) -> tuple[int, int] | None:
    """The first query that sees a key, in any row or head, and the first such key."""
    first = seen.start[:, :, 0].amin((0, 1))
    queries = (first < seen.length).nonzero()
    return None if len(queries) == 0 else (int(queries[0]), int(first[queries[0]]))


def first_future_key(pattern: Pattern, length: int, *, heads: int = 1, **inputs: Tensor) -> tuple[int, int] | None:
    """The first `(query, key)` in `length` tokens whose key is the later; None: the pattern is autoregressive.

    A pattern that sees the future can be trained and evaluated, but a next-token loss may read its own labels, and
    step-by-step decoding is not what one long forward computes.

    Args:
        pattern: any; a user's function may look at the head, so say how many `heads` there are.
        length: tokens per row.
        heads: query heads.
        inputs: per-sample data, as for `Pattern.dense`.
    """
    if pattern.causal:
        return None
    return first_pair(shown(*pattern.placed(length, heads=heads, **inputs)).beyond())


def first_stale_pair(pattern: Pattern, layout: Layout) -> tuple[int, int] | None:
    """The first `(query, key)`, as positions, where a cached query may see a key of this forward; None: cache-safe.

    Keys and values of deeper layers were computed when the query had not seen that key, so the cache is stale.

    Args:
        pattern: bound to this forward's data.
        layout: of a forward that goes on from a cache.
    """
    if pattern.causal or layout.q_offset == 0:
        return None
    before, now = layout.positions[:, : layout.q_offset], layout.queries
    seen = grid(pattern, before, now, layout).any(1)
    if not bool(seen.any()):
        return None
    row, q, k = (int(i) for i in seen.nonzero()[0])
    return int(before[min(row, len(before) - 1), q]), int(now[min(row, len(now) - 1), k])


def first_revised_pair(pattern: Pattern, bound: Pattern, rows: Rows) -> tuple[int, int] | None:
    """The first `(query, key)`, as positions, both cached, of which the pattern now says other than when they were.

    A later gist token, segment or half of a row can change what earlier queries should have seen; None: it did not.

    Args:
        pattern: as it was before its data was bound.
        bound: the same, bound to `rows`.
        rows: of a forward that goes on from a cache.
    """
    if pattern.settled or rows.layout.q_offset == 0:
        return None
    known = rows.before()
    then, past = pattern.bind(known), known.layout.positions
    changed = (grid(then, past, past, known.layout) != grid(bound, past, past, rows.layout)).any(1)
    if not bool(changed.any()):
        return None
    row, q, k = (int(i) for i in changed.nonzero()[0])
    return int(past[min(row, len(past) - 1), q]), int(past[min(row, len(past) - 1), k])


def is_autoregressive(pattern: Pattern, length: int, *, heads: int = 1, **inputs: Tensor) -> bool:
    """Whether no query among `length` tokens sees a later key, in any of the heads."""
    return first_future_key(pattern, length, heads=heads, **inputs) is None
