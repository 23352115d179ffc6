"""FlashAttention's arguments. It takes no mask, but a causal flag, a window, and sequences packed behind each other.

A mask is matched with these by what it shows, not by its name: the arguments must show exactly its ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..pattern import Pattern
from ..positions import Layout
from ..ranges import Ranges
from .dense import key_ranges


class Obstacle(Enum):
    """Why no arguments say a mask."""

    HEADS = "heads differ in it"
    RUNS = "it does not show each token a single run of keys"
    ITSELF = "it hides some token from itself"
    SHAPE = "it is not causal, a window, bidirectional, or documents of one of these"
    DROPPED = "the cache has dropped keys that it shows"
    NO_TOKEN = "there is nothing but padding in this forward"


@dataclass(frozen=True, eq=False)
class Packed:
    """The real tokens of a forward, as sequences that lie one behind the other and see nothing of each other.

    Args:
        queries, keys: int64 `(any,)`, what is packed, as places in `(batch * q_length,)` and `(batch * kv_length,)`.
        query_ends, key_ends: int32 `(sequences + 1,)`, the `cu_seqlens` of flash-attn: 0, then where each one ends.
            The last query of a sequence stands at its last key.
        most_queries, most_keys: in the longest sequence.
    """

    queries: Tensor
    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int

    def unpacked(self, output: Tensor, batch: int, q_length: int) -> Tensor:
        """From `(1, queries, heads, head_dim)` to `(batch, q_length, heads, head_dim)`, 0 at padding."""
        spread = output.new_zeros(batch * q_length, *output.shape[2:])
        spread = spread.index_copy(0, self.queries.to(output.device), output[0])
        return spread.view(batch, q_length, *output.shape[2:])


def packed_states(states: Tensor, places: Tensor) -> Tensor:
    """From `(batch, heads, length, head_dim)` the vectors at these places of `(batch * length,)`, as one row."""
    flat = states.transpose(1, 2).flatten(0, 1)
    return flat[places.to(flat.device)][None].transpose(1, 2)


@dataclass(frozen=True, eq=False)
class FlashArguments:
    """What FlashAttention is told.

    Args:
        is_causal: whether no key behind the query is visible.
        window: how many keys are visible on each side, the token itself included; None: all.
        packed: None where every row is one sequence, whole and without padding.
    """

    is_causal: bool
    window: int | None
    packed: Packed | None


def flash_arguments(pattern: Pattern, layout: Layout) -> FlashArguments | Obstacle:
    """The arguments that show exactly what a bound pattern shows in this forward, or what stands in the way."""
    q = layout.queries
    ranges = key_ranges(pattern, q, layout)
    if ranges is None:
        return Obstacle.RUNS
    ranges &= _own_keys(layout)
    if ranges != ranges.of_head(0):
        return Obstacle.HEADS
    if ranges.start.shape[2] > 1:
        return Obstacle.RUNS
    if not bool((q >= 0).any()):
        return Obstacle.NO_TOKEN
    start, end = (side[:, 0, 0].long() for side in (ranges.start, ranges.end))
    if not bool(((start <= q) & (q < end) | (q < 0)).all()):
        return Obstacle.ITSELF
    return _of_whole_rows(start, end, layout) or _of_packed(start, end, layout)


def _own_keys(layout: Layout) -> Ranges:
    """What there is in each row: ranges go on to the end of the longest."""
    return Ranges.single(torch.zeros_like(layout.counts)[:, None], layout.counts[:, None], layout.length)


def _of_whole_rows(start: Tensor, end: Tensor, layout: Layout) -> FlashArguments | None:
    """Without packing: every row holds the keys up to its last token, none is padding, and all are one sequence."""
    first = layout.slots - layout.kv_length
    if not bool((layout.keys == torch.arange(first, layout.slots, device=start.device)).all()):
        return None
    q = layout.queries
    reach = _reach(q, start, end, torch.full_like(q, first), torch.full_like(q, layout.slots))
    return None if reach is None else FlashArguments(*reach, packed=None)


def _of_packed(start: Tensor, end: Tensor, layout: Layout) -> FlashArguments | Obstacle:
    """With packing: a sequence begins with a row, and wherever a token sees nothing before itself."""
    q = layout.queries.expand(layout.batch, -1)
    places = (q >= 0).flatten().nonzero()[:, 0]
    q, start, end = (side.expand(layout.batch, -1).flatten()[places] for side in (q, start, end))
    rows = places // layout.q_length
    begins_row = rows.diff(prepend=rows.new_full((1,), -1)) != 0
    begins = begins_row | (start == q)
    first = begins.nonzero()[:, 0]
    behind = torch.cat([first[1:], first.new_tensor([len(q)])])
    key_start, key_end = start[first], q[behind - 1] + 1

    sequence = begins.cumsum(0) - 1
    reach = _reach(q, start, end, key_start[sequence], key_end[sequence])
    if reach is None:
        return Obstacle.SHAPE
    row_start = q.new_full((layout.batch,), layout.length)
    row_start[rows[begins_row]] = start[begins_row]
    keys = (layout.keys >= row_start[:, None]).flatten().nonzero()[:, 0]
    if len(keys) != int((key_end - key_start).sum()):
        return Obstacle.DROPPED
    query_ends, most_queries = _ends(behind - first)
    key_ends, most_keys = _ends(key_end - key_start)
    return FlashArguments(*reach, Packed(places, keys, query_ends, key_ends, most_queries, most_keys))


def _reach(q: Tensor, start: Tensor, end: Tensor, first: Tensor, behind: Tensor) -> tuple[bool, int | None] | None:
    """Whether queries are causal, and their window, if they see their sequence, `first .. behind - 1`, so far."""
    is_causal = bool((end == q + 1).all())
    behind = q + 1 if is_causal else behind
    if bool(((start == first) & (end == behind)).all()):
        return is_causal, None
    far = torch.maximum(q - start, end - 1 - q).max()
    near = (start == torch.maximum(first, q - far)) & (end == torch.minimum(behind, q + far + 1))
    return (is_causal, int(far) + 1) if bool(near.all()) else None


def _ends(lengths: Tensor) -> tuple[Tensor, int]:
    """`cu_seqlens` of sequences of these lengths, and the longest."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32), int(lengths.max())
