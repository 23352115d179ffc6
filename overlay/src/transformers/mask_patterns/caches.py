"""What a cache knows and holds: data of earlier forwards, and whether its states and keys fit a pattern."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .checks import first_revised_pair, first_stale_pair
from .errors import UnsupportedMaskError
from .inputs import Rows
from .lowering.dense import grid
from .pattern import Pattern
from .positions import Layout
from .so_far import SoFar
from .steps import Steps


_NAME = f"_mask_memory_of_{__name__}"  # an exported model on stock transformers has a library of its own


@dataclass
class CacheMemory:
    """What earlier forwards said of the tokens in a cache, by slot; one row stands for all.

    It lies on the cache, so that it is copied and goes with it; what is done to the cache is done to it, see
    `_follow`. It never says more than it knows: tokens that came without it, in a forward without a pattern or as
    embeddings, end it.

    Args:
        per_token: data passed at prefill by its name, integers `(batch or 1, slots then)`.
        ids: of the tokens, int64.
        places: their `position_ids`, integers.
        steps: what is known of the tokens to come.
        rows_move: whether that would be known in vain, as the rows change places before they come.
    """

    per_token: dict[str, list[Tensor]] = field(default_factory=dict)
    ids: SoFar | None = None
    places: SoFar | None = None
    steps: Steps | None = None
    rows_move: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"steps": None}  # they hold the pattern, which a copied or saved cache is not to keep

    @classmethod
    def of(cls, cache: Any, past: int) -> CacheMemory:
        """What is known of a cache that holds `past` slots: nothing where it is empty or was not seen filling."""
        memory: CacheMemory | None = getattr(cache, _NAME, None)
        if memory is None or past == 0:
            memory = cls()
            if cache is not None:
                _follow(type(cache))
                setattr(cache, _NAME, memory)
        return memory

    @property
    def tokens(self) -> Tensor | None:
        """Int64 `(batch or 1, slots)`, if they are known."""
        return None if self.ids is None else self.ids.all()

    @property
    def position_ids(self) -> Tensor | None:
        """Integers `(batch or 1, slots)`, if they are known, and each forward's go on by one or start again at 0."""
        return None if self.places is None or not self.places.goes_on() else self.places.all()

    def learn(self, tokens: Tensor | None, past: int) -> None:
        """Take the caller's word for the tokens of `past` slots that others have filled."""
        if self.ids is None or self.ids.slots < past:
            self.ids = SoFar.joined(None, tokens, 0)

    def go_on(self, tokens: Tensor | None, position_ids: Tensor | None, past: int) -> None:
        """Remember what a forward says of its tokens, behind `past` slots."""
        self.places = SoFar.joined(self.places, position_ids, past)
        self.ids = SoFar.joined(self.ids, tokens, past)

    def steps_from(self, past: int) -> Steps | None:
        """What is known of the tokens to come behind `past` slots, if nothing came that was not seen."""
        steps = self.steps
        if steps is None or (steps.looked_for and (self.ids is None or self.ids.slots < past)):
            return None
        if steps.position_ids is not None and (self.places is None or self.places.slots < past):
            return None
        return steps

    def clear(self) -> None:
        """Know nothing."""
        vars(self).update(vars(CacheMemory()))

    def cut(self, slots: int) -> None:
        """Forget what lies behind the first `slots`."""
        self.per_token = {name: [data[:, :slots] for data in seen] for name, seen in self.per_token.items()}
        self.ids = None if self.ids is None else self.ids.cut(slots)
        self.places = None if self.places is None else self.places.cut(slots)

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Do to every row what was done to the cache's."""

        def changed(data: Tensor) -> Tensor:
            return data if len(data) == 1 else change(data)

        self.per_token = {name: [changed(data) for data in seen] for name, seen in self.per_token.items()}
        self.ids = None if self.ids is None else self.ids.changed(changed)
        self.places = None if self.places is None else self.places.changed(changed)
        if self.steps is not None and self.steps.has_rows:
            self.steps, self.rows_move = None, True


def _cut(memory: CacheMemory, cache: Any, *_: Any, **__: Any) -> None:
    memory.cut(int(cache.get_seq_length()))


def _reorder(memory: CacheMemory, _: Any, beam_idx: Tensor) -> None:
    memory.change_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))


def _repeat(memory: CacheMemory, _: Any, repeats: int) -> None:
    memory.change_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))


def _select(memory: CacheMemory, _: Any, indices: Tensor) -> None:
    memory.change_rows(lambda rows: rows[indices])


_CHANGES: dict[str, Callable[..., None]] = {
    "reset": lambda memory, _: memory.clear(),
    "crop": _cut,
    "reorder_cache": _reorder,
    "batch_repeat_interleave": _repeat,
    "batch_select_indices": _select,
}


_FOLLOWED: WeakSet[type] = WeakSet()


def _follow(kind: type) -> None:
    """Have caches of this class tell our memory of their tokens what is done to them: reset, crop, other rows.

    Upstream's caches tell nobody, and `generate()` is not the only one who changes them. So the methods that do are
    wrapped, of the classes that are met with a pattern, once.
    """
    for base in set(kind.__mro__) - set(_FOLLOWED):
        _FOLLOWED.add(base)
        for name in _CHANGES.keys() & vars(base).keys():
            setattr(base, name, _told(vars(base)[name], _CHANGES[name]))


def _told(method: Callable[..., Any], change: Callable[..., None]) -> Callable[..., Any]:
    @wraps(method)
    def told(cache: Any, *args: Any, **kwargs: Any) -> Any:
        memory = vars(cache).pop(_NAME, None)  # away meanwhile: what the method calls is told once, a failure forgets
        result = method(cache, *args, **kwargs)
        if memory is not None:
            change(memory, cache, *args, **kwargs)
            setattr(cache, _NAME, memory)
        return result

    return told


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
    dropped = layout.dropped
    if dropped.shape[1] and bool(grid(bound, layout.queries, dropped, layout).any()):
        raise UnsupportedMaskError(
            f"mask_pattern={str(pattern)!r} shows keys that the cache has dropped: it keeps "
            f"{layout.kv_length - layout.q_length} of {layout.q_offset}. Use a cache that keeps all keys: "
            "DynamicCache() without a config, or use_sliding_window=False in the model's."
        )


def lasting_slots(bound: Pattern, layout: Layout, slots: Tensor) -> Tensor:
    """Which cached slots some query of this forward or of a later one may see, in any row or head.

    Args:
        bound: to this forward's data.
        layout: of this forward.
        slots: int64 `(any,)`, of earlier forwards.

    Returns:
        bool, of the shape of `slots`.
    """
    before = (layout.positions[:, : layout.q_offset] >= 0).sum(-1, keepdim=True)
    first = torch.minimum(before, layout.counts[:, None] - 1).clamp(min=0)  # a row may have no new token
    lasting = bound.lasting(first, layout.length, torch.arange(layout.batch, device=slots.device)[:, None])
    if lasting is None:
        return torch.ones_like(slots, dtype=torch.bool)
    return lasting.contains(layout.positions[:, slots]).flatten(0, 2).any(0)
