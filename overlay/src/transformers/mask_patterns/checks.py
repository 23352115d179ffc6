"""Questions about a pattern: does it see the future, and may a cache be trusted with it?"""

from __future__ import annotations

from torch import Tensor

from .inputs import Rows
from .lowering.dense import grid
from .pattern import Pattern
from .positions import Layout


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
    future = pattern.dense(length, heads=heads, **inputs).triu(1).any(0).any(0).nonzero()
    return None if len(future) == 0 else (int(future[0, 0]), int(future[0, 1]))


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
