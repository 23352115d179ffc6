"""Documents packed into a row: what is isolated from what, and patterns inside each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..errors import bad_argument
from ..inputs import DocumentRows, PerToken, RowData
from ..pattern import Bound, Index, Pattern
from ..ranges import Ranges
from .named import MANY_INTERVALS, Sampled, is_int
from .runs import Groups


@dataclass(frozen=True, eq=False, repr=False)
class Document(Sampled):
    """Each query sees its own document, in both directions: `id[q] == id[k]`. To pack texts: `Causal() & Document()`.

    With an `inner` pattern, that pattern inside each document, with positions that start at the document's first
    token: `id[q] == id[k] and inner(q - start, k - start)`. What the inner pattern derives from tokens (`until`, gist
    tokens, the last segment) it derives per document.

    The ids, integers `(batch, length)` shaped like `input_ids` (or `(length,)` for all rows), are bound here, or come
    as `mask_inputs["document_ids"]`, or follow from a `separator` token, which belongs to the document it ends, or
    from `position_ids` that start again. Without an inner pattern they need not be contiguous; ids of more than 32
    runs each have no short form. New tokens go on with the last token's document, unless a `separator` was generated:
    then they begin another. Source: packing with block-diagonal masks, as in FlashAttention's `cu_seqlens` and
    arXiv:2107.02027.

    ids 0011, length 4:

        11.. 11.. ..11 ..11
    """

    word: ClassVar[str] = "document"
    inner: Pattern | Tensor | None = field(default=None, metadata={"text": "pattern"})
    ids: Tensor | None = field(default=None, metadata={"text": False})
    separator: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.inner, Tensor) and self.ids is None:  # Document(ids)
            object.__setattr__(self, "ids", self.inner)
            object.__setattr__(self, "inner", None)
        ok = self.inner is None or isinstance(self.inner, Pattern)
        self._require(ok, "inner", self.inner, "a pattern; ids are an integer tensor")
        self._require(self.ids is None or isinstance(self.ids, Tensor), "ids", self.ids, "an integer tensor")
        self._require(self.separator is None or is_int(self.separator, 0), "separator", self.separator, "a token id")
        self._require_one_source("ids", "separator")
        if self.ids is not None and self.ids.ndim == 1:
            object.__setattr__(self, "ids", self.ids[None])

    def bind(self, rows: RowData) -> Pattern:
        given = None if self.separator is not None else rows.per_token("document_ids", self.ids)
        documents = Groups.of(self._derived_ids(rows) if given is None else given)
        if not isinstance(self.inner, Pattern):
            return _BoundDocument(documents, may_return=given is not None)
        if documents.runs.most > 1:
            raise bad_argument(
                "document_ids",
                "an id that comes back after another",
                f"documents in one piece for {self!r}, whose positions count from a start",
                "Give every piece an id of its own.",
            )
        return _bound_inside(self.inner, documents, rows)

    def _derived_ids(self, rows: RowData) -> PerToken:
        """From separators or positions: they count up."""
        if self.separator is not None:
            return self._separated(rows, self.separator)
        positions = rows.per_token("position_ids")
        if positions is None:
            self._missing("document_ids", "Or say document(separator=TOKEN).")
        goes_on = positions.values.diff(prepend=positions.values[:1] - 1) == 1
        return positions.mapped((~goes_on).cumsum(0))

    @property
    def causal(self) -> bool:
        return isinstance(self.inner, Pattern) and self.inner.causal

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.inner,) if isinstance(self.inner, Pattern) else ()


@dataclass(frozen=True, eq=False)
class _BoundDocument(Bound):
    """`Document` with the documents of this forward; those that `may_return` can go on after another has begun."""

    word: ClassVar[str] = "document"
    documents: Groups
    may_return: bool

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return self.documents.ids[batch, q] == self.documents.ids[batch, k]

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if self.documents.runs.most > MANY_INTERVALS:
            return None
        return self.documents.same(q, length, batch)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        return None if self.may_return else self.documents.same(q, length, batch)

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor | None:
        return self.documents.rank.of_tokens(batch, q)


def _bound_inside(inner: Pattern, documents: Groups, rows: RowData) -> Pattern:
    """`inner` bound to each document as to a row of its own."""
    row, position = documents.ids.tokens
    start, end = documents.runs.start[0, :-1], documents.runs.end[0, :-1]
    owner = row.new_zeros(len(start)).index_put_((documents.group[row, position],), row)
    own_rows = DocumentRows(rows, owner, start, end - start)
    return _BoundInside(documents, inner.bind(own_rows), start, int((end - start).max()) if len(start) else 0)


@dataclass(frozen=True, eq=False)
class _BoundInside(Bound):
    """A pattern inside each document.

    Args:
        documents: their numbers are the rows of `inner`.
        inner: bound to the documents.
        start: position of each document's first token, int64 `(documents,)`.
        longest: tokens of the longest document.
    """

    word: ClassVar[str] = "document"
    documents: Groups
    inner: Pattern
    start: Tensor
    longest: int

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        document, other = self.documents.group[batch, q], self.documents.group[batch, k]
        start = self.start[document.clamp(max=len(self.start) - 1)]
        at = (q - start).clamp(min=0), (k - start).clamp(min=0)
        return (document == other) & self.inner.visible(*at, document.clamp(max=len(self.start) - 1), head)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if len(self.start) == 0:  # no row has a token
            return Ranges.single(q, q, length)
        group = self.documents.group[batch, q.clamp(min=0)]
        document = group.clamp(max=len(self.start) - 1)
        start = self.start[document]
        inner = self.inner.ranges(q - start, self.longest, document)
        return None if inner is None else inner.moved(start, length) & self.documents.runs.at(group, length)

    def lasting(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if len(self.start) == 0:
            return None
        document = self.documents.group[batch, q.clamp(min=0)].clamp(max=len(self.start) - 1)
        start, own = self.start[document], self.documents.same(q, length, batch)
        inner = self.inner.lasting(q - start, self.longest, document)
        return own if inner is None else inner.moved(start, length) & own

    def rotary(self, q: Tensor, batch: Tensor) -> Tensor:
        if len(self.start) == 0:  # no row has a token
            return q
        document = self.documents.group[batch, q.clamp(min=0)].clamp(max=len(self.start) - 1)
        at = q - self.start[document]
        inner = self.inner.rotary(at, document)
        return at if inner is None else inner

    @property
    def causal(self) -> bool:
        return self.inner.causal
