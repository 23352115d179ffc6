"""What torch's attention kernel on a CPU makes of a call: how the queries lie in it says what a score costs.

The kernel goes through the queries of a head in blocks, larger ones where there are more of them, and a score (one
query and one key of one head) costs less in a larger block. So calls put queries together that read the same keys.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor


if TYPE_CHECKING:
    from .batches import Batch
    from .tiles import Segment


class _Block(NamedTuple):
    """Queries of a block, from how many of a head on, and what a score costs then."""

    least: int
    size: int
    price: float


# What else costs time, in scores of the largest blocks, as `make bench` measures it.
MASKED = 0.1  # a mask makes a score dearer by this, its making included
CAUSAL = 1.2  # what a score costs where the kernel is asked for causal attention
SEGMENT = 32  # another segment costs each query as much as so many keys: what it finds is to be merged
CALL = 40_000  # and as much as so many scores, whatever its size

_BLOCKS = (_Block(768, 256, 1.0), _Block(192, 64, 1.15), _Block(0, 32, 1.4))


def block(queries: int) -> int:
    """How many queries the kernel takes at once, of so many of a head."""
    return _block(queries).size


def price(queries: int) -> float:
    """What a score costs where a head has so many queries, in scores of the largest blocks."""
    return _block(queries).price


def _block(queries: int) -> _Block:
    return next(block for block in _BLOCKS if queries >= block.least)


def in_line(queries: int, served: int) -> bool:
    """Whether the query heads that a key/value head serves go one behind the other, as queries of one head."""
    return block(queries * served) > block(queries)


class Arrangement(Enum):
    """How the queries of a batch, `(tiles, key/value heads, heads that each serves, queries, any)`, go into a call."""

    APART = "each tile and head for itself"
    HEADS = "heads that share their keys as one head"
    TILES = "tiles that share their keys as one tile"

    @classmethod
    def of(cls, segment: Segment, step: int, batch: Batch, served: int) -> Arrangement:
        """What is fastest for a segment whose keys lie `step` apart from tile to tile."""
        size = batch.tile.end - batch.tile.start
        if segment.mask is None and not segment.is_causal and batch.times > 1 and (step, batch.step) == (0, size):
            return cls.TILES
        return cls.HEADS if not segment.is_causal and in_line(size, served) else cls.APART

    def call(self, states: Tensor) -> Tensor:
        """As the kernel takes them, `(any, heads, queries, any)`."""
        if self is Arrangement.HEADS:
            return states.flatten(2, 3)
        if self is Arrangement.TILES:
            return states.movedim(0, 2).flatten(2, 3).flatten(0, 1)[None]
        return states.flatten(1, 2)

    def back(self, found: Tensor, like: Tensor) -> Tensor:
        """What the kernel found for `call(like)`, as a view that lies as `like` does."""
        tiles, groups, served, queries, _ = like.shape
        if self is Arrangement.TILES:
            found = found[0].unflatten(1, (tiles, queries)).movedim(1, 0)
        split = (2, (served, queries)) if self is Arrangement.HEADS else (1, (groups, served))
        lying: Tensor = found.unflatten(*split)
        return lying
