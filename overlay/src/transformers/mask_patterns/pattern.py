"""`Pattern`: an immutable description of which query may see which key, and how patterns compose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from .drawable import Drawable
from .errors import bad_argument
from .inputs import RowData, Rows
from .positions import Layout
from .ranges import Ranges


if TYPE_CHECKING:
    from .report import Report


Index: TypeAlias = "int | Tensor"
MaskMod: TypeAlias = Callable[[Any, Any, Any, Any], Any]
P = TypeVar("P", bound="Pattern")


class Pattern(Drawable, ABC):
    """Which query may see which key.

    Patterns compose with `&` (both), `|` (either) and `~` (not), as in Python: `~` binds first, then `&`, then `|`.
    A pattern is the whole mask: nothing is causal unless it says so. Positions count the real tokens of a row, from 0.

    A subclass is a frozen dataclass that defines `visible`, the slow and obvious meaning, and where it can `ranges`,
    the same in O(length).
    """

    word: ClassVar[str]

    @abstractmethod
    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        """Whether query position `q` may attend to key position `k`.

        Takes integers, or integer tensors that broadcast against each other, and returns a bool or a bool tensor.
        Per-sample data is read as given by position; `bind` puts it there.
        """

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        """The keys that queries may see, as intervals of positions below `length`.

        None where the pattern is not, per query, a union of few intervals: it is then lowered densely.

        Args:
            q: positions, int64 `(batch or 1, queries)`; what is said of -1, which is padding, is not looked at.
            length: of the longest row.
            batch: the row that each query belongs to, int64, of a shape that broadcasts with that of `q`.
        """
        return None

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        """Of the keys before each query, those that it or any later query may see: a cache need not keep others.

        It may say too many, never too few, of a bound pattern whatever tokens and data come later; None: all of them.
        What it says of keys behind the query is not looked at. Arguments as for `ranges`.
        """
        return None

    def bind(self, rows: RowData) -> Pattern:
        """This pattern with the data of one forward, checked and indexed by position.

        Raises:
            ValueError: data that the pattern needs is missing, or has the wrong shape or dtype.
        """
        return self

    @property
    def causal(self) -> bool:
        """True when no query sees a later key, whatever the length and the data; False when it might."""
        return False

    @property
    def settled(self) -> bool:
        """True when tokens that come later never change what earlier queries see among themselves."""
        return all(part.settled for part in self.parts)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """The patterns that this one is made of."""
        return ()

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor | None:
        """The rotary positions that a bound pattern implies for tokens at positions `q`, int64 of the shape of `q` and
        `batch` together, as in `ranges`; None where it implies no other than `q`.
        """
        return None

    def mask_mod(self, batch: Any, head: Any, q: Any, k: Any) -> Any:
        """`visible` with its arguments in FlexAttention's order."""
        return self.visible(q, k, batch, head)

    def dense(self, length: int, *, heads: int = 1, **inputs: Tensor) -> Tensor:
        """The whole mask, for looking and testing: bool `(batch or 1, heads or 1, length, length)`.

        Args:
            length: tokens per row, none of them padding.
            heads: query heads, for patterns that tell them apart; by default one, or one per group that `PerHead`
                names.
            inputs: what would be `mask_inputs`, e.g. `document_ids=...`, integers `(batch, length)`.
        """
        from .lowering.dense import visible_grid

        return visible_grid(*self.placed(length, heads=heads, **inputs))

    def placed(self, length: int, *, heads: int = 1, **inputs: Tensor) -> tuple[Pattern, Layout]:
        """This pattern bound to rows of `length` tokens, and their layout. Arguments as for `dense`."""
        return self._placed(self.layout(length, heads, inputs), inputs)

    def layout(self, length: int, heads: int, inputs: Mapping[str, Tensor]) -> Layout:
        """The layout of rows of `length` tokens, none of them padding. Arguments as for `dense`."""
        heads, groups = self.head_counts(heads)
        return Layout.of(self._batch(inputs), length, heads=heads, groups=groups)

    def position_ids(self, length: int, *, attention_mask: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """The `position_ids` that go with this mask, int64 `(batch, length)`, by slot; 0 at padding.

        Documents and answers restart, branches of a tree count from the prefix, halves of block diffusion count
        alike; where a pattern implies nothing they are the ranks of the tokens.

        Args:
            length: slots per row.
            attention_mask: 1 at real tokens, 0 at padding, `(batch, length)`; without it all are real.
            inputs: what would be `mask_inputs`, as for `dense`.

        Raises:
            ValueError: two parts imply different positions.
        """
        real = None if attention_mask is None else attention_mask.bool()
        batch = max(self._batch(inputs), 1 if real is None else len(real))
        heads, groups = self.head_counts(1)
        bound, layout = self._placed(Layout.of(batch, length, real=real, heads=heads, groups=groups), inputs)
        rows = torch.arange(batch, device=layout.positions.device)[:, None]
        implied = bound.rotary(layout.queries, rows)
        ids = layout.queries if implied is None else implied.where(layout.queries >= 0, 0)
        return ids.expand(batch, -1).clamp(min=0)

    def _placed(self, layout: Layout, inputs: dict[str, Tensor]) -> tuple[Pattern, Layout]:
        rows = Rows(layout, inputs)
        bound = self.bind(rows)
        rows.require_all_read(self)
        return bound, layout

    def _batch(self, inputs: Mapping[str, Tensor]) -> int:
        """How many rows the data has, that is passed or bound."""
        return max(
            [bound_rows(self), *(len(data) for data in inputs.values() if isinstance(data, Tensor) and data.ndim)]
        )

    def head_counts(self, heads: int) -> tuple[int, int]:
        """Query heads and groups of a layout in which every group that is named occurs."""
        said, least = self.head_groups
        heads = (said or least) if heads == 1 else heads
        return heads, said if said and heads % said == 0 else heads

    @property
    def head_groups(self) -> tuple[int, int]:
        """How many key/value heads there must be, 0 if any number will do; and how many show all that is said."""
        said = [part.head_groups for part in self.parts]
        return max([0, *(exact for exact, _ in said)]), max([1, *(least for _, least in said)])

    def check(
        self,
        length: int,
        *,
        layers: int | None = None,
        heads: int = 1,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        split: int | None = None,
        **inputs: Tensor,
    ) -> Report:
        """What this mask does to training and generation: a report to print, or to read field by field.

        It says whether the mask is autoregressive, where a cache can be trusted, which tokens see nothing, and which
        targets of a next-token loss leak: the model can read them from its input, through its layers.

        Args:
            length: tokens per row, padding included.
            layers: of the network, all with this mask; None: any number, which can only find more leaks.
            heads: query heads, for patterns that tell them apart.
            labels: integers `(batch, length)` as a causal-LM loss takes them, not shifted, -100 where none counts.
                The report gives them back with -100 where the target leaks.
            attention_mask: 0 and 1 or bool, `(batch, length)`, as the model takes it.
            split: how many tokens a cache would hold, padding included, to ask of that alone.
            inputs: what would be `mask_inputs`.

        Raises:
            ValueError: malformed data, or a mask of many key intervals per query on too many tokens.
        """
        from .report import Question

        if layers is not None and layers < 1:
            raise bad_argument("layers", layers, "at least 1, or None for any number", "Say how many the model has.")
        question = Question(length, heads, labels, attention_mask, split, inputs)
        return question.report(self, (self,) * (layers or 1), endless=layers is None)

    def require_groups(self, groups: int) -> None:
        """Refuse what names heads that a model of so many key/value heads does not have, or leaves some out.

        Raises:
            ValueError: names the group.
        """
        for part in self.parts:
            part.require_groups(groups)

    def simplified(self) -> Pattern:
        """A pattern that means the same and says it with less, where simple laws of sets find one."""
        from .simplify import simplify

        return simplify(self)

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern that `text` says; `Pattern.parse(str(p)) == p`.

        Raises:
            PatternSyntaxError: a `ValueError` that shows the place with a caret and says what was expected.
        """
        from .grammar import parse

        return parse(text)

    def __and__(self, other: Pattern) -> Pattern:
        return And((self, other)) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        return Or((self, other)) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> Pattern:
        return Not(self)

    def __str__(self) -> str:
        from .grammar import write

        return write(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        """Itself, where it holds no tensor: nothing else in it can change."""
        copies = {name: deepcopy(value, memo) for name, value in vars(self).items()}
        if all(copies[name] is value for name, value in vars(self).items()):
            return self
        copy = object.__new__(type(self))
        vars(copy).update(copies)
        return copy

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return hash((type(self), *(tuple(v.shape) if isinstance(v, Tensor) else v for v in values)))


def same(a: object, b: object) -> bool:
    """Whether two values are equal, of tensors their dtype and shape too."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    return type(a) is type(b) and a == b


class Bound(Pattern):
    """What `bind` makes of a pattern with data: it is for the rows of one forward."""


def bound_rows(pattern: Pattern) -> int:
    """How many rows the tensors that a pattern holds have, at most."""
    if isinstance(pattern, Bound):
        got, expected = f"a {pattern.word} bound to a forward", "the pattern that it was made from"
        raise bad_argument("pattern", got, expected, "Keep the pattern, and bind it to each forward anew.")
    values = [getattr(pattern, f.name) for f in fields(pattern)]  # type: ignore[arg-type]
    own = [len(v) for v in values if isinstance(v, Tensor) and v.ndim]
    return max([1, *own, *map(bound_rows, pattern.parts)])


def agreed(implied: Sequence[Tensor | None]) -> Tensor | None:
    """The rotary positions that all imply who imply any.

    Raises:
        ValueError: they differ.
    """
    known = [positions for positions in implied if positions is not None]
    if any(not torch.equal(*torch.broadcast_tensors(known[0], other)) for other in known[1:]):
        raise bad_argument(
            "position_ids", "parts that imply different ones", "one that all agree on", "Pass your own."
        )
    return known[0] if known else None


@dataclass(frozen=True, eq=False, repr=False)
class _Nary(Pattern):
    """Several patterns under one associative operator, kept flat."""

    parts: tuple[Pattern, ...] = ()

    def __post_init__(self) -> None:
        flat = [inner for part in self.parts for inner in (part.parts if isinstance(part, type(self)) else (part,))]
        object.__setattr__(self, "parts", tuple(flat))

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor | None:
        return agreed([part.rotary(q, batch) for part in self.parts])

    def bind(self: Any, rows: RowData) -> Any:
        return replace(self, parts=tuple(part.bind(rows) for part in self.parts))

    def _reduced(self, operator: Callable[[Any, Any], Any], values: list[Any]) -> Any:
        return None if any(value is None for value in values) else reduce(operator, values)


class And(_Nary):
    """Keys that every part shows."""

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return reduce(and_, [part.visible(q, k, batch, head) for part in self.parts])

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        return self._reduced(and_, [part.ranges(q, length, batch) for part in self.parts])  # type: ignore[no-any-return]

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        said = [part.lasting(q, length, batch) for part in self.parts]
        return reduce(and_, known) if (known := [keys for keys in said if keys is not None]) else None

    @property
    def causal(self) -> bool:
        return any(part.causal for part in self.parts)

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, Or) else repr(part) for part in self.parts)


class Or(_Nary):
    """Keys that some part shows."""

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return reduce(or_, [part.visible(q, k, batch, head) for part in self.parts])

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        return self._reduced(or_, [part.ranges(q, length, batch) for part in self.parts])  # type: ignore[no-any-return]

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        return self._reduced(or_, [part.lasting(q, length, batch) for part in self.parts])  # type: ignore[no-any-return]

    @property
    def causal(self) -> bool:
        return all(part.causal for part in self.parts)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


@dataclass(frozen=True, eq=False, repr=False)
class Not(Pattern):
    """Keys that the inner pattern hides."""

    inner: Pattern

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return self.inner.visible(q, k, batch, head) ^ True  # `~` would turn a Python True into -2

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        inner = self.inner.ranges(q, length, batch)
        return None if inner is None else ~inner

    def bind(self, rows: RowData) -> Pattern:
        return replace(self, inner=self.inner.bind(rows))

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def __repr__(self) -> str:
        return f"~({self.inner!r})" if isinstance(self.inner, _Nary) else f"~{self.inner!r}"
