"""A whole mask that a caller gives for a prompt, and what it means for the tokens that are generated behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .errors import UnsupportedMaskError, bad_argument
from .explicit import WholeMask, whole_mask
from .inputs import Rows
from .lowering.dense import grid
from .pattern import Pattern
from .positions import Layout


@dataclass(frozen=True, eq=False)
class PromptMask:
    """A 3D or 4D `attention_mask` of `generate()`; it goes along with the 2D mask that is kept there.

    Tokens of the prompt see what it says. A new token sees what a pattern of slots shows it, plain `causal` as a
    rule, and of the prompt only what the last token of the prompt sees too, head by head. A floating mask's last row
    goes on for the prompt's keys; to the scores of new keys nothing is added.

    Args:
        given: bool and floating `(rows or 1, heads or 1, queries, slots)`: the queries are the prompt's last slots.
            A batch of several times as many rows, as beams make it, holds copies of each row side by side.
        filled: caches that took the whole prompt in one forward. Who drops some of it again, as an assistant does,
            puts the same tokens back, so that what saw them stays right.
    """

    given: WholeMask
    filled: WeakSet[Any] = field(default_factory=WeakSet)

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptMask:
        return self  # an assistant sees the same prompt

    @classmethod
    def read(cls, mask: Tensor, batch: int, queries: int, past: int, heads: int, dtype: torch.dtype) -> PromptMask:
        """Read a caller's mask as `whole_mask` does.

        Args:
            mask: `(batch, queries, slots)` or `(batch or 1, 1 or heads, queries, slots)`.
            queries: tokens given: all of the prompt, or those that are not in the cache yet.
            past: slots that a cache holds.
        """
        slots = queries if mask.shape[-1] == queries > past else past + queries
        layout = Layout.of(batch, queries, q_offset=slots - queries, device=mask.device)
        return cls(whole_mask(mask.detach(), layout, heads, dtype))

    @property
    def slots(self) -> int:
        """Of the prompt."""
        return self.given.visible.shape[-1]

    @property
    def first(self) -> int:
        """Slot of the first query."""
        return self.slots - self.given.visible.shape[-2]

    def part(self, layout: Layout, pattern: Pattern, cache: Any) -> WholeMask:
        """The mask of one forward: of its queries and of all keys that the key/value tensors hold.

        Args:
            layout: without padding, as the mask is by slot.
            pattern: for new tokens.
            cache: that the forward goes on from, or fills; None if there is none.

        Raises:
            ValueError: the pattern may see later tokens, changes with them, or reads data of the sample.
            UnsupportedMaskError: the cache holds states that the mask makes stale, or lacks keys that it shows.
        """
        self._check_fit(layout)
        if cache is not None and layout.q_offset == 0 and layout.slots >= self.slots:
            self.filled.add(cache)
        if layout.q_offset and cache not in self.filled:
            self._check_stale(layout)
        pattern = _of_slots(pattern, layout)
        evicted = torch.arange(layout.kv_offset, device=layout.positions.device)
        if layout.kv_offset and bool(self._of(layout, pattern, evicted, evicted).visible.any()):
            raise UnsupportedMaskError(
                "`attention_mask` shows keys that the cache has dropped: it keeps "
                f"{layout.kv_length - layout.q_length} of {layout.q_offset}. Use a cache that keeps all keys: "
                "DynamicCache() without a config, or use_sliding_window=False in the model's."
            )
        held = torch.arange(layout.kv_length, device=layout.positions.device) + layout.kv_offset
        return self._of(layout, pattern, held, layout.keys[0])

    def _check_fit(self, layout: Layout) -> None:
        rows, heads = self.given.visible.shape[:2]
        if layout.batch % rows or heads not in (1, layout.heads) or layout.q_offset < self.first:
            got = f"{rows} rows, {heads} heads and queries from slot {self.first} on"
            expected = (
                f"masks for {layout.batch} rows, {layout.heads} heads and queries from slot {layout.q_offset} on"
            )
            remedy = "Pass one of the whole prompt; with one head, where an assistant has another number of heads."
            raise bad_argument("attention_mask", got, expected, remedy)

    def _check_stale(self, layout: Layout) -> None:
        cached = self.given.visible[:, :, : layout.q_offset - self.first, layout.q_offset :]
        if bool(cached.any()):
            _, _, query, key = cached.nonzero()[0].tolist()
            raise UnsupportedMaskError(
                f"`attention_mask`: token {query + self.first} is in the cache, and may see token "
                f"{key + layout.q_offset}, which is new. Put both in one forward, without prefill_chunk_size."
            )

    def _of(self, layout: Layout, pattern: Pattern, slots: Tensor, positions: Tensor) -> WholeMask:
        """The mask of a forward's queries and of some keys; `positions` are their slots, or -1 if not filled yet."""
        queries = torch.arange(layout.q_offset, layout.slots, device=slots.device)
        is_new, is_prompt = (queries >= self.slots)[:, None], slots < self.slots
        rows = (queries - self.first).clamp(max=self.given.visible.shape[-2] - 1)

        def of_prompt(mask: Tensor) -> Tensor:
            picked = mask.to(slots.device)[:, :, rows][..., slots.clamp(max=self.slots - 1)]
            return picked if len(picked) == 1 else picked.repeat_interleave(layout.batch // len(picked), dim=0)

        seen = of_prompt(self.given.visible)
        shown = grid(pattern, layout.queries, positions[None], layout)
        visible = torch.where(is_new, (seen | ~is_prompt) & shown, seen & is_prompt)
        if self.given.bias is None:
            return WholeMask(visible)
        return WholeMask(visible, of_prompt(self.given.bias).where(is_prompt, 0).expand(visible.shape))


class _NoData(Rows):
    """Data that no pattern may read: beside a whole mask nobody knows which slots are padding."""

    def _find(self, name: str, own: Tensor | None) -> Tensor | None:
        raise _unfit(f"a pattern that reads {name}", "Put all of it in the mask, or all of it in the pattern.")


def _of_slots(pattern: Pattern, layout: Layout) -> Pattern:
    """A pattern that says from slots alone, once and for all, what a new token sees; others are refused."""
    if not (pattern.causal and pattern.settled):
        raise _unfit(f"{str(pattern)!r}, which may change with later tokens", "Add `& Causal()`.")
    return pattern.bind(_NoData(layout))


def _unfit(got: str, remedy: str) -> ValueError:
    expected = "beside a whole attention_mask, a causal pattern for the new tokens that needs no data"
    return bad_argument("mask_pattern", got, expected, remedy)
