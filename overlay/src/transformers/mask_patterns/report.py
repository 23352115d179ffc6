"""One report on a mask: what `Pattern.check` and `PerLayer.check` answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .checks import first_pair, label_leaks, network, reads_head, shown
from .errors import bad_argument
from .explicit import real_tokens
from .inputs import Rows
from .pattern import Pattern, bound_rows
from .positions import Layout
from .ranges import Ranges
from .reach import Network


IGNORED = -100  # the label that a loss passes over
REMEDY = "set the leaking labels to -100 (the report's `labels`), or train with `& Causal()`"
_SOME = 6  # splits that are listed


@dataclass(frozen=True, eq=False)
class Question:
    """What a report is asked about: arguments as for `Pattern.check`."""

    length: int
    heads: int
    labels: Tensor | None
    attention_mask: Tensor | None
    split: int | None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def report(self, said: object, patterns: Sequence[Pattern], *, endless: bool) -> Report:
        """The report on a stack of layers, first to last; `said` is what the user called it.

        Raises:
            ValueError: malformed data, or masks of many key intervals per query on too many tokens.
        """
        if self.split is not None and not 0 <= self.split <= self.length:
            remedy = "Leave it out to ask for all splits."
            raise bad_argument("split", self.split, f"0 to {self.length}, tokens in a cache", remedy)
        rows = Rows(self._layout(patterns), self.inputs)
        stack = network(patterns, rows, endless=endless)
        rows.require_all_read(said)
        return Report(str(said), patterns, rows, stack, self._targets(rows.layout), self.labels, self.split)

    def _layout(self, patterns: Sequence[Pattern]) -> Layout:
        data = [self.labels, self.attention_mask, *self.inputs.values()]
        batch = max(
            [*(len(t) for t in data if isinstance(t, Tensor) and t.ndim), *(bound_rows(p) for p in set(patterns))]
        )
        mask = self.attention_mask
        real = None if mask is None else real_tokens(mask, batch, self.length, self.length)
        if self.heads == 1 and any(map(reads_head, patterns)):
            expected = "the model's number of query heads, as a function in the pattern asks which one it is for"
            raise bad_argument("heads", "1", expected, "Say heads=model.config.num_attention_heads.")
        heads = max(pattern.head_counts(self.heads)[0] for pattern in set(patterns))
        groups = min(pattern.head_counts(heads)[1] for pattern in set(patterns))
        return Layout.of(batch, self.length, real=real, heads=heads, groups=groups)

    def _targets(self, layout: Layout) -> Tensor:
        """The slots that a next-token loss predicts: all tokens behind another one, or where there is a label."""
        if self.labels is None:
            real = layout.positions.expand(layout.batch, -1) >= 0
            return torch.nn.functional.pad(real[:, 1:] & real[:, :-1], (1, 0))
        if self.labels.shape != (layout.batch, layout.slots):
            got, expected = f"shape {tuple(self.labels.shape)}", f"({layout.batch}, {layout.slots}), as input_ids"
            raise bad_argument("labels", got, expected, "Do not shift them: the loss does.")
        scored = self.labels.to(layout.positions.device) != IGNORED
        return torch.nn.functional.pad(scored[:, 1:], (1, 0))


@dataclass(frozen=True, eq=False)
class Report:
    """What a mask does to training and to generation; `print` it, or read its fields.

    Pairs are positions among the real tokens of a row; tensors are by slot, padding included, as `input_ids` are.

    Args:
        said: the pattern, as text.
        patterns: of the layers, first to last.
        rows: where the tokens lie, and their data.
        stack: what each token sees in each layer.
        targets: bool `(batch, slots)`, the slots whose token is to be predicted.
        given: the labels that were passed, integers `(batch, slots)`, or None.
        split: how many slots a cache would hold, or None.
    """

    said: str
    patterns: Sequence[Pattern]
    rows: Rows
    stack: Network
    targets: Tensor
    given: Tensor | None
    split: int | None

    @cached_property
    def future(self) -> tuple[int, int] | None:
        """The first `(query, key)` whose key is the later; None: the mask is autoregressive."""
        return _first([first_pair(mask.beyond()) for mask in self.stack.masks])

    @cached_property
    def stale(self) -> Tensor:
        """Bool `(slots + 1,)`: whether some row of a cache of the first `s` slots has seen a token behind them.

        That is the first of two conditions; for the second, see `revised_pair`.
        """
        behind = [mask.end.where(mask.start < mask.end, 0).amax((1, 2)) for mask in self.stack.masks]
        rows = self._layout.batch
        seen = torch.stack([side.expand(rows, -1) for side in behind]).amax(0)  # by position, the end of what it sees
        seen = torch.nn.functional.pad(seen.cummax(1).values, (1, 0))
        held = torch.nn.functional.pad(self._real.cumsum(1), (1, 0))  # by slot, the tokens before it
        return (seen.gather(1, held) > held).any(0)

    @cached_property
    def stale_pair(self) -> tuple[int, int] | None:
        """The first `(query, key)` with the query in the cache of `split` slots and the key behind it; or None."""
        held = self._held
        if held is None:
            return None
        cached = torch.arange(self._layout.length, device=held.device) < held
        return _first([first_pair(mask.beyond(held).where(cached)) for mask in self.stack.masks])

    @cached_property
    def revised_pair(self) -> tuple[int, int] | None:
        """The first `(query, key)`, both in the cache of `split` slots, of which later data changes what is said.

        So may a later gist token, segment or half of a row: what was visible while the cache was filled is not what
        the whole row says. None where it changes nothing, or without a split.

        Raises:
            ValueError: the pattern cannot be said of the first tokens alone, as block diffusion of an odd number.
        """
        if self.split is None or self._held is None:
            return None
        unsettled = {pattern for pattern in self.patterns if not pattern.settled}
        return _first([self._revised(pattern, self.split, self._held) for pattern in unsettled])

    @cached_property
    def empty(self) -> Tensor:
        """Bool `(batch, slots)`: the tokens that see nothing, not even themselves, in some layer and head."""
        blind = [(mask.counts() == 0).any(1).expand(self._layout.batch, -1) for mask in self.stack.masks]
        by_position = torch.nn.functional.pad(torch.stack(blind).any(0), (0, 1))  # one place more, for padding
        return by_position.gather(1, self._positions.where(self._real, self._layout.length))

    @cached_property
    def leaks(self) -> Tensor:
        """Bool `(batch, slots)`, aligned with labels: the targets that the network can read instead of predict."""
        return label_leaks(self.stack, self._layout) & self.targets

    @property
    def labels(self) -> Tensor | None:
        """The labels that were passed, with -100 where the target leaks."""
        return None if self.given is None else self.given.masked_fill(self.leaks.to(self.given.device), IGNORED)

    def __str__(self) -> str:
        layers = "any number of layers" if self.stack.endless else f"{len(self.stack.layers)} layers"
        lines = [
            f"{self.said}: {self._layout.slots:,} tokens, {layers}",
            f"autoregressive  {_seen(self.future)}",
            f"cache-safe      {self._cache()}",
            f"sees nothing    {_places(self.empty, self._real, 'tokens')}",
            f"label leaks     {_places(self.leaks, self.targets, 'targets')}",
        ]
        if bool(self.leaks.any()):
            lines.append(f"remedy          {REMEDY}")
        return "\n".join(lines)

    __repr__ = __str__

    def _cache(self) -> str:
        if self.split is not None:
            return f"at {self.split:,}: {_seen(self.stale_pair) if self.stale_pair else self._later()}"
        splits = ~self.stale[1:-1]
        safe = (splits.nonzero()[:, 0] + 1).tolist()
        some = ", ".join(map(str, safe[:_SOME])) + (", ..." if len(safe) > _SOME else "")
        where = f"at {len(safe):,} of {len(splits):,} splits" + (f": {some}" if safe else "")
        if not all(pattern.settled for pattern in self.patterns):
            return f"{where}, if later tokens change nothing: ask with split="
        return "yes, at every split" if len(safe) == len(splits) else where

    def _later(self) -> str:
        try:
            pair = self.revised_pair
        except ValueError as error:
            return f"no, it cannot be said of these alone: {error}"
        return "yes" if pair is None else f"no, later tokens change whether token {pair[0]:,} sees token {pair[1]:,}"

    @property
    def _layout(self) -> Layout:
        return self.rows.layout

    @property
    def _positions(self) -> Tensor:
        return self._layout.positions.expand(self._layout.batch, -1)

    @property
    def _real(self) -> Tensor:
        return self._positions >= 0

    @property
    def _held(self) -> Tensor | None:
        """How many tokens of each row the cache would hold, int64 `(batch, 1)`; None without a split."""
        return None if self.split is None else self._real[:, : self.split].sum(1, keepdim=True)

    def _revised(self, pattern: Pattern, split: int, held: Tensor) -> tuple[int, int] | None:
        known = Rows(replace(self._layout, q_offset=split), self.rows.inputs).before()
        then = shown(pattern.bind(known), known.layout)
        now = _among(shown(pattern.bind(self.rows), self._layout), held, then.length)
        return first_pair((then & ~now) | (now & ~then))


def _among(mask: Ranges, held: Tensor, length: int) -> Ranges:
    """What the first tokens of each row, `held` of them and at most `length`, show each other."""
    cut = Ranges.of(mask.start[..., :length], mask.end[..., :length], length)
    there = Ranges.single(torch.zeros_like(held), held, length)
    return (cut & there).where(torch.arange(length, device=held.device)[None] < held)


def _first(pairs: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    return min((pair for pair in pairs if pair is not None), default=None)


def _seen(pair: tuple[int, int] | None) -> str:
    return "yes" if pair is None else f"no, token {pair[0]:,} sees token {pair[1]:,}"


def _places(found: Tensor, all_of_them: Tensor, what: str) -> str:
    """How many, and the first."""
    count, total = int(found.sum()), int(all_of_them.sum())
    if not count:
        return f"none of {total:,} {what}"
    row, token = (int(i) for i in found.nonzero()[0])
    where = f"row {row}, token {token:,}" if len(found) > 1 else f"token {token:,}"
    return f"{count:,} of {total:,} {what}, first: {where}"
