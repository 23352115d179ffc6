"""Rows of causal pieces, such as packed documents: each is one tile, and the kernel needs no mask for it.

Asked for causal attention, the kernel leaves out by itself what lies behind a block of queries, and its blocks are the
larger the more queries there are in a call.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


_BLOCKS = ((768, 256), (192, 64), (0, 32))  # queries of a call, from so many on, and of one block of torch's kernel

Runs = list[list[tuple[int, int]]]


def causal_runs(start: Tensor, end: Tensor) -> Runs | None:
    """Where each place is cut so that queries see their own piece up to themselves; None if that is not what they see.

    Args:
        start, end: integers `(places, intervals, queries)`, of key slots, which are those of the queries.

    Returns:
        Per place half-open intervals of queries, one behind the other.
    """
    if start.shape[1] > 1 or not start.shape[2]:
        return None
    start, end = start[:, 0], end[:, 0]
    own = start.new_ones(start.shape[1]).cumsum(0) - 1
    begins = start == own
    if not bool(((end == own + 1) & (start == own.where(begins, 0).cummax(1).values)).all()):
        return None
    cuts = [[*row.nonzero()[:, 0].tolist(), len(own)] for row in begins]
    return [list(zip(row, row[1:], strict=False)) for row in cuts]


def scores(runs: Sequence[tuple[int, int]]) -> int:
    """How many the kernel computes for these pieces, for one head."""
    return sum(_scores(end - start) for start, end in runs)


def _scores(queries: int) -> int:
    block = next(size for least, size in _BLOCKS if queries >= least)
    return queries * (queries + block) // 2
