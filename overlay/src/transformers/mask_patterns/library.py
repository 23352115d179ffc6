"""The named patterns. Each says what it means in `visible`, and the same as key intervals in `ranges`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import bad_argument
from .pattern import Index, MaskMod, Pattern
from .positions import Rows
from .ranges import Ranges


MAX_INTEGER = 2**31 - 1  # of what a pattern says, so that every text can be read back and nothing overflows
_MANY_RUNS = 32  # documents split into more runs than this are lowered densely: intervals would cost more than a grid


@dataclass(frozen=True, eq=False, repr=False)
class _Named(Pattern):
    """A pattern with a word of its own in the text form."""

    def __repr__(self) -> str:
        from .grammar import python_form

        return python_form(self)

    def _require(self, ok: bool, argument: str, got: object, expected: str) -> None:
        if not ok:
            raise bad_argument(argument, repr(got), expected, f"Change it in {type(self).__name__}(...).")


@dataclass(frozen=True, eq=False, repr=False)
class Causal(_Named):
    """Each query sees itself and what came before it: `k <= q`. Upstream's default for decoders.

    length 4:

        1... 11.. 111. 1111
    """

    word: ClassVar[str] = "causal"

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return k <= q

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), q + 1, length)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Bidirectional(_Named):
    """Each query sees every key. Embeddings: LLM2Vec, arXiv:2404.05961; diffusion: Dream, arXiv:2508.15487.

    length 4:

        1111 1111 1111 1111
    """

    word: ClassVar[str] = "bidirectional"

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (q == q) & (k == k)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), torch.full_like(q, length), length)


@dataclass(frozen=True, eq=False, repr=False)
class SlidingWindow(_Named):
    """Each query sees the last `width` keys, itself included: `0 <= q - k < width`; symmetric: `|q - k| < width`.

    `width` counts keys, as upstream's `sliding_window` does. FlexAttention's post and attention-gym use
    `q - k <= width`, one key more; flash-attention takes `width - 1`. Source: Mistral 7B, arXiv:2310.06825.

    width 2, length 4:

        1... 11.. .11. ..11
    """

    word: ClassVar[str] = "sliding_window"
    width: int
    symmetric: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._require(_is_int(self.width, 1), "width", self.width, f"an integer from 1 to {MAX_INTEGER}")
        self._require(isinstance(self.symmetric, bool), "symmetric", self.symmetric, "True or False")

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        near = q - k < self.width
        return near & (k - q < self.width) if self.symmetric else near & (k <= q)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        ahead = self.width if self.symmetric else 1
        return Ranges.single(q - self.width + 1, q + ahead, length)

    @property
    def causal(self) -> bool:
        return not self.symmetric


@dataclass(frozen=True, eq=False, repr=False)
class Sink(_Named):
    """Each query sees the first `count` tokens of its row, as far as they are not later: `k <= q and k < count`.

    With a window it is StreamingLLM's mask (arXiv:2309.17453), `Sink(4) | SlidingWindow(1024)`: what is visible there,
    not its re-indexing of rotary positions.

    count 2, length 4:

        1... 11.. 11.. 11..
    """

    word: ClassVar[str] = "sink"
    count: int

    def __post_init__(self) -> None:
        self._require(_is_int(self.count, 0), "count", self.count, f"an integer from 0 to {MAX_INTEGER}")

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        return (k <= q) & (k < self.count)

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        return Ranges.single(torch.zeros_like(q), (q + 1).clamp(max=self.count), length)

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class PrefixLM(_Named):
    """Causal, but the first `length` tokens are seen by every query: `k <= q or k < length`. T5, arXiv:1910.10683.

    `length` is one number, or one per row as an integer tensor `(batch,)`; or `mask_inputs["prefix_lengths"]` says it;
    or it ends with the first `until` token of the row, included (no such token: causal). It does not grow in
    generation, and must lie within the first forward.

    length 2, 4 tokens:

        11.. 11.. 111. 1111
    """

    word: ClassVar[str] = "prefix_lm"
    length: int | Tensor | None = None
    until: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ok = self.length is None or isinstance(self.length, Tensor) or _is_int(self.length, 0)
        self._require(ok, "length", self.length, f"an integer from 0 to {MAX_INTEGER}, or an integer tensor (batch,)")
        self._require(self.until is None or _is_int(self.until, 0), "until", self.until, "a token id")
        both = self.length is not None and self.until is not None
        self._require(not both, "until", self.until, "either a length or until=TOKEN, not both")

    def bind(self, rows: Rows) -> Pattern:
        if isinstance(self.length, int):
            return self
        if self.until is not None:
            tokens = rows.per_token("input_ids")
            return PrefixLM(_first(_given(tokens, self, "input_ids") == self.until))
        lengths = rows.per_row("prefix_lengths", self.length)
        lengths = _given(lengths, self, "prefix_lengths", "Or say prefix_lm(P) or prefix_lm(until=TOKEN).")
        if bool((lengths < 0).any()):
            remedy = "A row without a prefix has length 0."
            raise bad_argument("prefix_lengths", lengths.tolist(), "numbers of at least 0", remedy)
        return PrefixLM(lengths)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        length = self._length()
        return (k <= q) | (k < (length[batch] if isinstance(length, Tensor) else length))

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges:
        prefix = self._length()
        prefix = prefix.to(q.device)[batch] if isinstance(prefix, Tensor) else torch.full_like(q, prefix)
        return Ranges.single(torch.zeros_like(q), torch.maximum(q + 1, prefix), length)

    def _length(self) -> int | Tensor:
        if self.length is None:
            raise bad_argument("prefix_lengths", "nothing", f"data for {self!r}", "Say PrefixLM(P), or bind it first.")
        return self.length

    @property
    def causal(self) -> bool:
        return isinstance(self.length, int) and self.length == 0


@dataclass(frozen=True, eq=False, repr=False)
class Document(_Named):
    """Each query sees its own document, in both directions: `id[q] == id[k]`. To pack texts: `Causal() & Document()`.

    The ids, integers `(batch, length)` shaped like `input_ids` (or `(length,)` for all rows), are bound here, or come
    as `mask_inputs["document_ids"]`, or follow from a `separator` token, which belongs to the document it ends, or
    from `position_ids` that start again. They need not be contiguous. New tokens go on with the last token's document.

    ids 0011, length 4:

        11.. 11.. ..11 ..11
    """

    word: ClassVar[str] = "document"
    ids: Tensor | None = field(default=None, metadata={"text": False})
    separator: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._require(self.ids is None or isinstance(self.ids, Tensor), "ids", self.ids, "an integer tensor")
        self._require(self.separator is None or _is_int(self.separator, 0), "separator", self.separator, "a token id")
        both = self.ids is not None and self.separator is not None
        self._require(not both, "separator", self.separator, "either ids or separator=TOKEN, not both")
        if self.ids is not None and self.ids.ndim == 1:
            object.__setattr__(self, "ids", self.ids[None])

    def bind(self, rows: Rows) -> Pattern:
        if self.separator is not None:
            ends = _given(rows.per_token("input_ids"), self, "input_ids") == self.separator
            return Document(ends.cumsum(-1) - ends.long())
        ids = rows.per_token("document_ids", self.ids)
        if ids is None:
            positions = _given(
                rows.per_token("position_ids"), self, "document_ids", "Or say document(separator=TOKEN)."
            )
            ids = (positions.diff(dim=-1, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
        return Document(ids)

    def visible(self, q: Index, k: Index, batch: Index = 0, head: Index = 0) -> Any:
        ids = self._ids()
        return ids[batch, q] == ids[batch, k]

    def ranges(self, q: Tensor, length: int, batch: Tensor) -> Ranges | None:
        if length == 0:  # no row has a token
            return Ranges.single(q, q, 0)
        runs = [_runs(row[:length], length) for row in self._ids()]
        most = max((len(starts) for _, starts, _ in runs), default=1)
        if most > _MANY_RUNS:
            return None
        q = q.expand(len(runs), -1)
        bounds = [_pad_runs(*row, queries, most, length) for row, queries in zip(runs, q, strict=True)]
        start, end = (torch.stack(side)[:, None] for side in zip(*bounds, strict=True))
        return Ranges(start, end, length)

    def _ids(self) -> Tensor:
        if self.ids is None:
            raise bad_argument(
                "document_ids", "nothing", "one id per token", "Bind them: Document(ids), or pass mask_inputs."
            )
        return self.ids


@dataclass(frozen=True, eq=False, repr=False)
class Function(_Named):
    """A user's own mask function; see `from_function`."""

    word: ClassVar[str] = "function"
    function: MaskMod
    name: str | None = None

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
    from .grammar import register

    if not callable(function):
        raise bad_argument(
            "function", repr(function), "a function (batch, head, q, k) -> bool", "Pass the function itself."
        )
    pattern = Function(function, name)
    if name is not None:
        register(name, pattern)
    return pattern


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_INTEGER


def _given(data: Tensor | None, pattern: Pattern, name: str, otherwise: str = "") -> Tensor:
    if data is None:
        raise bad_argument(
            name, "nothing", f"data for {pattern!r}", f"Pass mask_inputs={{{name!r}: ...}}. {otherwise}".strip()
        )
    return data


def _first(found: Tensor) -> Tensor:
    """Per row how many places lead up to the first True, itself included; 0 where there is none."""
    if found.shape[1] == 0:  # no row has a token
        return found.new_zeros(len(found), dtype=torch.long)
    return torch.where(found.any(-1), found.long().argmax(-1) + 1, 0)


def _runs(ids: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The runs of equal ids in one row, grouped by id: per position its group, and per run and group start and end.

    Returns:
        group `(length,)`; starts and ends `(most runs of one id, groups)`, unused ones `length`.
    """
    groups, group = ids.unique(return_inverse=True)
    changes = torch.cat([ids.new_ones(1, dtype=torch.bool), group[1:] != group[:-1]])
    start = changes.nonzero()[:, 0]
    end = torch.cat([start[1:], start.new_tensor([len(ids)])])
    owner = group[start]
    order = owner.argsort(stable=True)
    counts = owner.bincount(minlength=len(groups))
    rank = torch.arange(len(start), device=ids.device) - (counts.cumsum(0) - counts)[owner[order]]
    starts = start.new_full((int(counts.max()), len(groups)), length)
    ends = starts.clone()
    starts[rank, owner[order]], ends[rank, owner[order]] = start[order], end[order]
    return group, starts, ends


def _pad_runs(group: Tensor, starts: Tensor, ends: Tensor, q: Tensor, most: int, length: int) -> tuple[Tensor, Tensor]:
    """The runs of each query's own group, `(most, queries)` each."""
    own = group[q.clamp(0, len(group) - 1)]
    missing = (0, 0, 0, most - len(starts))
    pad = torch.nn.functional.pad
    return pad(starts[:, own], missing, value=length), pad(ends[:, own], missing, value=length)
