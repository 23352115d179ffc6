"""Rows of causal pieces, such as packed documents: each is one tile, and the kernel needs no mask for it.

Asked for causal attention, the kernel leaves out by itself what lies behind a block of queries, and its blocks are the
larger the more queries there are in a call.
"""

from __future__ import annotations

from torch import Tensor

from .kernel import block


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


def scores(queries: int) -> int:
    """How many the kernel computes for a piece, for one head: those of a block are as many as of its last query."""
    return queries * (queries + block(queries)) // 2
