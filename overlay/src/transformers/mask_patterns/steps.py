"""Decoding token by token: what a pattern shows to the tokens that come next is asked once, for many of them.

Every forward of one token asks the same questions, and their answers differ by one row. As long as what is said stays
the same, and no token comes that a pattern looks for, the answers for the next tokens are those known already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .checks import shown
from .inputs import PromptRows, Rows
from .layers import LayerMask, Masks, Own
from .library import Causal
from .lowering.dense import key_ranges
from .pattern import Pattern, same
from .positions import Layout
from .ranges import Ranges


AHEAD = 256  # tokens that are asked for at a time
_NO_TOKEN = -1

Spans: TypeAlias = tuple[tuple[int, int], ...]  # half-open, in order


@dataclass(frozen=True, eq=False)
class Said:
    """What the forwards of one decoding say alike.

    Args:
        masks: as parsed.
        config: of the model.
        inputs: `mask_inputs`.
        prompt: of `generate()`.
    """

    masks: Masks | Own
    config: Any
    inputs: Mapping[str, Tensor]
    prompt: PromptRows | None

    def kept(self) -> Said:
        """The same, whatever the caller later writes into its tensors, bound ones too."""
        inputs = {name: data.clone() for name, data in self.inputs.items()}
        return replace(self, masks=deepcopy(self.masks), inputs=inputs)

    def is_said_by(self, other: Said) -> bool:
        """Whether another forward says the same."""
        if self.config is not other.config or self.masks != other.masks or not _is_same(self.prompt, other.prompt):
            return False
        if self.inputs.keys() != other.inputs.keys():
            return False
        return all(same(data, other.inputs[name]) for name, data in self.inputs.items())


@dataclass(frozen=True, eq=False)
class Answer:
    """What one pattern shows to the tokens to come.

    Args:
        bound: the pattern.
        ranges: the queries are those tokens.
    """

    bound: Pattern
    ranges: Ranges

    @property
    def has_rows(self) -> bool:
        """Whether rows of the batch differ."""
        return len(self.ranges.start) > 1

    def positions(self, step: int) -> Ranges:
        """Of the keys that one token may see."""
        start, end = (side[..., step : step + 1] for side in (self.ranges.start, self.ranges.end))
        return Ranges(start, end, self.ranges.length)

    @cached_property
    def is_causal(self) -> bool:
        """Whether it is plain causal attention."""
        return self.bound == Causal()

    @cached_property
    def spans(self) -> Sequence[Spans] | None:
        """The same for every token, as numbers; None where rows or heads differ."""
        if self.ranges.start.shape[:2] != (1, 1):
            return None
        bounds = torch.stack([self.ranges.start[0, 0].T, self.ranges.end[0, 0].T], dim=-1).tolist()
        return [tuple((start, end) for start, end in spans if start < end) for spans in bounds]


@dataclass(frozen=True, eq=False)
class Token:
    """A forward of one token per row.

    Args:
        slot: of the token.
        batch: rows.
        mask: the 2D mask of real tokens, if there is one.
        tokens: int64 `(batch, 1)`, if they are known.
        position_ids: of the token, if they are given.
    """

    slot: int
    batch: int
    mask: Tensor | None
    tokens: Tensor | None
    position_ids: Tensor | None


@dataclass(frozen=True, eq=False)
class Steps:
    """What the layers' patterns show to the tokens in the slots from `first` on.

    Args:
        said: by the forward that asked.
        first: slot of the first token.
        positions: of all slots up to the last of those tokens, int64 `(batch or 1, slots)`, -1 at padding.
        answers: of the patterns.
        layers: which answer each layer has.
        looked_for: tokens; the answers take for granted that none of them comes.
        position_ids: that those tokens must have, int64 `(batch or 1, tokens)`, if a pattern reads them.
    """

    said: Said
    first: int
    positions: Tensor
    answers: Sequence[Answer]
    layers: Sequence[int]
    looked_for: frozenset[int]
    position_ids: Tensor | None

    @classmethod
    def ahead(cls, said: Said, plan: Sequence[LayerMask], rows: Rows) -> Steps | None:
        """The answers for the tokens behind those of a forward; None where they cannot be known yet.

        Args:
            plan: what each layer has, not bound.
            rows: of the forward, whose data has been found right.
        """
        order = {mask: i for i, mask in enumerate(dict.fromkeys(plan))}
        later, slots = _with_later_tokens(rows), rows.layout.slots
        try:
            answers = [_answer(mask, later, slots) for mask in order]
        except (ValueError, IndexError, RuntimeError):  # of data that ends with the tokens so far
            return None
        known = [answer for answer in answers if answer is not None]
        if len(known) < len(answers):
            return None
        ids = later.inputs["position_ids"][:, slots:] if "position_ids" in later.read else None
        layers = [order[mask] for mask in plan]
        return cls(said.kept(), slots, later.layout.positions, known, layers, frozenset(later.looked_for), ids)

    def serve(self, said: Said, token: Token) -> bool:
        """Whether a forward is one of those that the answers are for."""
        step = token.slot - self.first
        if not 0 <= step < self.positions.shape[1] - self.first or not self.said.is_said_by(said):
            return False
        if self.looked_for and (
            token.tokens is None or not self.looked_for.isdisjoint(token.tokens.flatten().tolist())
        ):
            return False
        if self.position_ids is not None:
            ids = self.position_ids[:, step : step + 1]
            if token.position_ids is None or not _says(token.position_ids, ids, len(token.position_ids)):
                return False
        if token.mask is None:
            return not self.is_padded
        return _says(token.mask, self._real[:, : token.slot + 1], token.batch)

    @cached_property
    def is_padded(self) -> bool:
        """Whether some slot holds no token."""
        return not bool(self._real.all())

    @cached_property
    def _real(self) -> Tensor:
        return (self.positions >= 0).long()  # as most 2D masks are

    @property
    def has_rows(self) -> bool:
        """Whether rows of the batch differ."""
        return len(self.positions) > 1 or any(answer.has_rows for answer in self.answers)


def _is_same(one: PromptRows | None, other: PromptRows | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.counts is other.counts and (one.slots, one.copies) == (other.slots, other.copies)


def _says(given: object, expected: Tensor, rows: int) -> bool:
    if not isinstance(given, Tensor) or given.shape != (rows, expected.shape[1]):
        return False  # where it is no tensor, it is for others to refuse
    return torch.equal(given, expected.to(given.dtype).expand_as(given))


def _with_later_tokens(rows: Rows) -> Rows:
    """The rows as they will be when more tokens have come, none of which a pattern looks for."""
    layout, inputs = rows.layout, dict(rows.inputs)
    real = torch.nn.functional.pad(layout.positions >= 0, (0, AHEAD), value=True)
    later = Layout.of(layout.batch, AHEAD, real=real, q_offset=layout.slots, heads=layout.heads, groups=layout.groups)
    if "input_ids" in inputs:
        inputs["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, AHEAD), value=_NO_TOKEN)
    if "position_ids" in inputs:
        ids = inputs["position_ids"]
        steps = torch.arange(1, AHEAD + 1, device=ids.device)
        inputs["position_ids"] = torch.cat([ids, ids[:, -1:] + steps], dim=1)
    return Rows(later, inputs, rows.copy_of_seen(), prompt=rows.prompt)


def _answer(mask: LayerMask, rows: Rows, slots: int) -> Answer | None:
    """What a pattern shows to the tokens behind the first `slots`; None where that depends on what they are."""
    if isinstance(mask, Own) or not mask.settled:
        return None
    bound, layout = mask.bind(rows).simplified(), rows.layout
    ranges = key_ranges(bound, layout.queries, layout)
    if ranges is None or not (bound.causal or _only_looks_back(bound, layout, slots)):
        return None
    return Answer(bound, ranges)


def _only_looks_back(bound: Pattern, layout: Layout, slots: int) -> bool:
    """Whether no token sees a later one, other than among the first `slots`."""
    before = (layout.positions[:, :slots] >= 0).sum(-1, keepdim=True)
    later = shown(bound, layout).beyond().beyond(before)
    return not bool((later.start < later.end).any())
