"""A user's own function as a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import bad_argument
from ..inputs import RowData, Rows
from ..pattern import Index, MaskMod, Pattern
from .named import Named


@dataclass(frozen=True, eq=False, repr=False)
class Function(Named):
    """A user's own mask function; see `from_function`."""

    word: ClassVar[str] = "function"
    function: MaskMod
    name: str | None = None

    def bind(self, rows: RowData) -> Pattern:
        if isinstance(rows, Rows) and rows.are_callers:
            return self
        function, origin = self.function, rows.origin
        return Function(lambda b, h, q, k: function(origin[b], h, q, k), self.name)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        try:
            seen = self.function(batch, head, q, k)
        except RuntimeError as error:
            if "data-dependent control flow" not in str(error):
                raise
            raise self._unfit("a branch on a tensor") from error
        if isinstance(seen, bool):
            return torch.tensor(seen, device=q.device) if isinstance(q, Tensor) else seen
        if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
            raise self._unfit(f"a result of {seen.dtype if isinstance(seen, Tensor) else type(seen).__name__}")
        return seen

    def _unfit(self, got: str) -> ValueError:
        expected = "bool from operations on tensors, as FlexAttention's mask_mod"
        remedy = (
            "Write & | ~ for `and`, `or`, `not`, and torch.where for `if`; compare what is not bool, as in x != 0."
        )
        return bad_argument("function", f"{got} in {self}", expected, remedy)


def from_function(function: MaskMod, name: str | None = None) -> Function:
    """A pattern from `function(batch, head, q, k) -> bool`, written as FlexAttention's `mask_mod` is.

    Args:
        function: gets scalar integer tensors - the row, the query head, and two positions (not slots) - and returns a
            bool tensor. Tensors that it captures are indexed by position.
        name: registers it, so that the pattern can be saved in a config and parsed by this name. Whoever loads the
            config registers it under the same name first. The latest function of a name counts.

    Raises:
        ValueError: `function` cannot be called, or `name` is not a free lower-case identifier.
    """
    from ..grammar import register

    if not callable(function):
        raise bad_argument(
            "function", repr(function), "a function (batch, head, q, k) -> bool", "Pass the function itself."
        )
    pattern = Function(function, name)
    if name is not None:
        register(name, pattern)
    return pattern
