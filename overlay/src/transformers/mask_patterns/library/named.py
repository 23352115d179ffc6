"""What the named patterns share: checks of their arguments, and the errors for data that is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from ..errors import bad_argument, shown
from ..inputs import PerToken, Rows
from ..pattern import Index, Pattern
from ..positions import Layout


MAX_INTEGER = 2**31 - 1  # of what a pattern says, so that every text can be read back and nothing overflows
MANY_INTERVALS = 32  # a query that needs more is lowered densely: intervals would cost more than a grid


@dataclass(frozen=True, eq=False, repr=False)
class Named(Pattern):
    """A pattern with a word of its own in the text form."""

    def __repr__(self) -> str:
        from ..grammar import python_form

        return python_form(self)

    def _require(self, ok: bool, argument: str, got: object, expected: str) -> None:
        if not ok:
            raise bad_argument(argument, shown(got), expected, f"Change it in {type(self).__name__}(...).")

    def _require_size(self, argument: str, least: int) -> None:
        value = getattr(self, argument)
        self._require(is_int(value, least), argument, value, f"an integer from {least} to {MAX_INTEGER}")

    def _require_one_source(self, *arguments: str) -> None:
        given = [name for name in arguments if getattr(self, name) is not None]
        if len(given) > 1:
            self._require(False, given[-1], getattr(self, given[-1]), f"{' or '.join(arguments)}, not both")

    def _missing(self, name: str, otherwise: str = "") -> NoReturn:
        remedy = f"Pass mask_inputs={{{name!r}: ...}}. {otherwise}".strip()
        raise bad_argument(name, "nothing", f"data for {self!r}", remedy)

    def _separated(self, rows: Any, separator: int) -> PerToken:
        """A number per token that grows behind each `separator`, which belongs to what it ends."""
        ends = self._marked(rows, separator)
        return ends.mapped(ends.values.cumsum(0) - ends.values)

    def _marked(self, rows: Any, token: int) -> PerToken:
        """1 at the tokens that are `token`."""
        marked: PerToken | None = rows.marked(token)
        if marked is None:
            self._missing(
                "input_ids",
                "It covers everything so far. Tokens are known by themselves where every forward of a cache had a "
                "pattern and input_ids, not inputs_embeds.",
            )
        return marked


@dataclass(frozen=True, eq=False, repr=False)
class Sampled(Named):
    """A named pattern with data per sample; `bind` turns it into another one that has the data by position."""

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        """As bound to the tensors that it holds itself, read as given by position."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor) and value.ndim == 2]
        layout = Layout.of(*own[0].shape) if own else Layout.of(1, 0)
        return self.bind(Rows(layout)).visible(q, k, batch, head)


def is_int(value: object, least: int) -> bool:
    """Whether a value is a plain integer from `least` to `MAX_INTEGER`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_INTEGER
