"""Another pattern for each group of heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..choices import Choices
from ..errors import PatternSyntaxError, bad_argument, shown
from ..inputs import RowData
from ..pattern import Bound, Index, Pattern, agreed
from ..ranges import Ranges
from .named import Named


@dataclass(frozen=True, eq=False, repr=False)
class PerHead(Named):
    """A pattern for each key/value head, which serves a group of query heads:
    `visible(h, q, k) = pattern of group h // (query heads / key/value heads)`.

    Args:
        groups: a mapping from numbers (`0`), ranges (`"1-3"`) or `"default"` to patterns or their texts. Every group
            that the model has must be covered, and named once.

    DuoAttention (arXiv:2410.10819): `PerHead({0: Causal(), "default": Sink(4) | SlidingWindow(1024)})`. Its soft gate
    in training mixes two outputs and is not a mask.

    groups 0: causal, 1: sliding_window(1); length 4:

        1... 11.. 111. 1111

        1... .1.. ..1. ...1
    """

    word: ClassVar[str] = "per_head"
    groups: Choices[Pattern] | Mapping[Any, Pattern | str] = field(metadata={"text": "choices"})

    def __post_init__(self) -> None:
        if isinstance(self.groups, Choices):
            return
        expected = "a mapping such as {0: Causal(), 'default': Sink(4)}"
        self._require(isinstance(self.groups, Mapping), "groups", self.groups, expected)
        read = {key: _pattern(key, value) for key, value in self.groups.items()}
        object.__setattr__(self, "groups", Choices.of("groups", read, kinds=False))

    def bind(self, rows: RowData) -> Pattern:
        layout = rows.layout
        patterns = self.choices.at("groups", layout.groups)
        distinct: list[Pattern] = []
        for pattern in patterns:
            if pattern not in distinct:
                distinct.append(pattern)
        served = range(layout.heads // layout.groups)
        owners = tuple(distinct.index(pattern) for pattern in patterns for _ in served)
        return _BoundPerHead(tuple(pattern.bind(rows) for pattern in distinct), owners)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        """As for a model with one query head per group, as many as are named."""
        patterns = self.choices.at("groups", max(self.choices.named, 1 + int(head)))
        return patterns[int(head)].visible(q, k, batch, head)

    @property
    def choices(self) -> Choices[Pattern]:
        """What each group has."""
        assert isinstance(self.groups, Choices)
        return self.groups

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return tuple(pattern for _, pattern in self.choices)

    @property
    def head_groups(self) -> tuple[int, int]:
        exact, least = super().head_groups
        named = self.choices.named
        if self.choices.default is None:
            return max(exact, named), max(least, named)
        return exact, max(least, named if self.choices.has_gap else named + 1)

    def require_groups(self, groups: int) -> None:
        self.choices.at("groups", groups)
        super().require_groups(groups)

    @property
    def causal(self) -> bool:
        return all(part.causal for part in self.parts)


def _pattern(key: object, value: object) -> Pattern:
    if isinstance(value, Pattern):
        return value
    name = f"groups[{shown(key)}]"
    if not isinstance(value, str):
        expected = "a pattern or its text"
        raise bad_argument(name, shown(value), expected, "Heads cannot be 'native': name a pattern.")
    try:
        return Pattern.parse(value)
    except PatternSyntaxError as error:
        raise PatternSyntaxError(f"{name}: {error}") from None


@dataclass(frozen=True, eq=False)
class _BoundPerHead(Bound):
    """`PerHead` bound: the different patterns, and which of them each query head has."""

    word: ClassVar[str] = "per_head"
    patterns: tuple[Pattern, ...]
    owners: tuple[int, ...]

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        owners = torch.tensor(self.owners, device=head.device if isinstance(head, Tensor) else None)
        owner = owners[head]
        return reduce(or_, [(owner == i) & p.visible(q, k, batch, head) for i, p in enumerate(self.patterns)])

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        distinct = [pattern.ranges(q, length, batch) for pattern in self.patterns]
        known = [ranges for ranges in distinct if ranges is not None]
        if len(known) < len(distinct):
            return None
        return Ranges.per_head([known[owner].of_head(head) for head, owner in enumerate(self.owners)])

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        said = [pattern.lasting(q, length, batch) for pattern in self.patterns]
        known = [keys for keys in said if keys is not None]
        return reduce(or_, known) if len(known) == len(said) else None  # heads share their slots

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor | None:
        return agreed([pattern.rotary(q, batch) for pattern in self.patterns])

    @property
    def causal(self) -> bool:
        return all(pattern.causal for pattern in self.patterns)
