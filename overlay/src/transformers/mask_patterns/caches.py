"""What a cache knows and holds: data of earlier forwards, and whether its states and keys fit a pattern."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .checks import first_revised_pair, first_stale_pair
from .errors import UnsupportedMaskError
from .inputs import Rows
from .lowering.dense import grid
from .pattern import Pattern


@dataclass
class CacheMemory:
    """What earlier forwards said of the tokens in a cache: it goes when the cache goes."""

    per_token: list[Tensor] = field(default_factory=list)
    position_ids: Tensor | None = None

    @classmethod
    def of(cls, cache: Any, past: int) -> CacheMemory:
        """What is known of a cache that holds `past` slots: nothing where it is empty or was not seen filling."""
        if cache is None:
            return cls()
        if past == 0:
            _MEMORIES[cache] = cls()
        return _MEMORIES.setdefault(cache, cls())


_MEMORIES: WeakKeyDictionary[Any, CacheMemory] = WeakKeyDictionary()


def check_cache(pattern: Pattern, bound: Pattern, rows: Rows) -> None:
    """Refuse a cache that holds states which this pattern makes stale, or lacks keys that it shows."""
    layout = rows.layout
    stale = first_stale_pair(bound, layout)
    if stale is not None:
        raise UnsupportedMaskError(
            f"mask_pattern={str(pattern)!r} is not cache-safe here: position {stale[0]} is in the cache, and may "
            f"see position {stale[1]}, which is new. Pass use_cache=False, or put both in one forward."
        )
    revised = first_revised_pair(pattern, bound, rows)
    if revised is not None:
        raise UnsupportedMaskError(
            f"mask_pattern={str(pattern)!r} is not cache-safe here: the new tokens change whether position "
            f"{revised[0]} may see position {revised[1]}, and both are in the cache. Pass use_cache=False, or put "
            "all in one forward."
        )
    evicted = layout.positions[:, : layout.kv_offset]
    if layout.kv_offset and bool(grid(bound, layout.queries, evicted, layout).any()):
        raise UnsupportedMaskError(
            f"mask_pattern={str(pattern)!r} shows keys that the cache has dropped: it keeps "
            f"{layout.kv_length - layout.q_length} of {layout.q_offset}. Use a cache that keeps all keys: "
            "DynamicCache() without a config, or use_sliding_window=False in the model's."
        )


def position_ids_so_far(before: Tensor | None, now: Tensor | None, past: int) -> Tensor | None:
    """The `position_ids` of every slot so far, `(batch or 1, slots)`; None where earlier ones are unknown or apart.

    They join where the new ones go on by one, or start again at 0.
    """
    if past == 0 or now is None:
        return now if past == 0 else None
    if before is None or before.shape[1] < past:
        return None
    before = before[:, :past].expand(max(len(before), len(now)), -1)
    now = now.expand(len(before), -1)
    joins = (now[:, 0] == before[:, -1] + 1) | (now[:, 0] == 0)
    return torch.cat([before, now], dim=1) if bool(joins.all()) else None
