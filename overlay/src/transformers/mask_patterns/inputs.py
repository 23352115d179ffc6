"""Per-sample data: what the caller passed beside the tokens, looked up by name, checked, and put in positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UnsupportedMaskError, bad_argument
from .positions import Layout


_GIVEN_ANYWAY = {"input_ids", "position_ids"}  # every forward has them, whether or not the pattern looks
_GO_ON = {"document_ids", "segment_ids"}  # new tokens take the last token's
_END = {"gist_mask", "global_attention_mask"}  # new tokens have none
PER_TOKEN = _GO_ON | _END
PER_ROW = {"prefix_lengths", "tree_prefix"}


@dataclass(frozen=True, eq=False)
class PerToken:
    """One integer per token: `data[row, position]`.

    Rows lie one behind the other in `values`, so that a document within a row is a row of its own without a copy.

    Args:
        values: int64 `(any,)`; the last is no token's.
        starts: int64 `(rows,)`, where each row begins in `values`.
        counts: int64 `(rows,)`, tokens per row.
    """

    values: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, data: Tensor, counts: Tensor) -> PerToken:
        """From `(rows, length)`, by position; `counts` as above."""
        starts = torch.arange(len(data), device=data.device) * data.shape[1]
        return cls(torch.cat([data.flatten(), data.new_tensor([-1])]), starts, counts.expand(len(data)))

    def of_tokens(self, batch: Tensor, q: Tensor) -> Tensor:
        """By row and position, int64 as the two together; what is said at -1, padding, means nothing."""
        found: Tensor = self[batch, q.clamp(min=0)]
        return found

    def __getitem__(self, place: tuple[Any, Any]) -> Any:
        row, position = place
        return self.values[(self.starts[row] + position).clamp(0, len(self.values) - 1)]

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Row and position of every token there is, row by row, int64 `(tokens,)` each."""
        rows = torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)
        before = self.counts.cumsum(0) - self.counts
        return rows, torch.arange(len(rows), device=rows.device) - before[rows]

    def mapped(self, values: Tensor) -> PerToken:
        """The same tokens with other values."""
        return replace(self, values=values)

    def equal_to(self, value: int) -> PerToken:
        """1 at the tokens that are `value`, 0 at the others."""
        return self.mapped((self.values == value).long())

    def first(self) -> Tensor:
        """Per row the first position whose value is not 0; the row's count where there is none: int64 `(rows,)`."""
        rows, positions = self.tokens
        found = self[rows, positions] != 0
        return self.counts.clone().scatter_reduce_(0, rows[found], positions[found], "amin")

    def last(self) -> Tensor:
        """Per row the last position whose value is not 0; -1 where there is none: int64 `(rows,)`."""
        rows, positions = self.tokens
        found = self[rows, positions] != 0
        return torch.full_like(self.counts, -1).scatter_reduce_(0, rows[found], positions[found], "amax")


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The rows that `generate()` started from.

    Args:
        counts: real tokens per row, int64 `(batch,)`.
        slots: per row, padding included.
        copies: rows, one behind the other, that each row of the caller's batch became: beams, returned sequences.
        tokens: int64 `(rows, slots)`, where all of them are known.
        guessed: the token that upstream took for padding wherever it stood, as the caller did not say which is.
    """

    counts: Tensor
    slots: int
    copies: int
    tokens: Tensor | None = None
    guessed: int | None = None

    def tokens_of(self, begin: int, end: int) -> Tensor | None:
        """The tokens in these slots, if they are known."""
        return None if self.tokens is None or end > self.slots else self.tokens[:, begin:end]

    def repeated(self, name: str, data: Tensor) -> Tensor:
        """Data for the rows of the caller's batch, with a line for every row that they became."""
        callers = len(self.counts) // self.copies
        if self.copies == 1 or data.ndim == 0 or len(data) == 1:
            return data
        if len(data) != callers:
            expected = f"data for the {callers} rows that generate() was given"
            raise bad_argument(name, f"data for {len(data)} rows", expected, "It follows the rows by itself.")
        return data.repeat_interleave(self.copies, dim=0)

    def of_rows(self, batch: int, device: torch.device) -> Tensor:
        """Which of these rows each row of a forward is, or is a copy of: int64 `(batch,)`.

        Raises:
            UnsupportedMaskError: a loop of the user's own has copied or dropped rows, and nobody says which.
        """
        if batch == len(self.counts):
            return torch.arange(batch, device=device)
        if len(self.counts) == self.copies:  # all are copies of one row
            return torch.zeros(batch, dtype=torch.long, device=device)
        raise UnsupportedMaskError(
            f"generate() decodes {len(self.counts)} rows, and this forward has {batch}: whose prompt each of them "
            "goes on from is not known. Decode one row at a time, or pass a pattern that needs no data of its row."
        )


class RowData(Protocol):
    """What a pattern may ask of one forward when its data is bound: about rows of a batch, or documents in them."""

    @property
    def counts(self) -> Tensor:
        """Tokens per row so far, int64 `(rows,)`."""

    @property
    def prompt_counts(self) -> Tensor:
        """How many of them were there before `generate()` added its own, int64 `(rows,)`; elsewhere all."""

    @property
    def layout(self) -> Layout:
        """Of the forward."""

    @property
    def origin(self) -> Tensor:
        """The row of the caller's batch that each row here lies in, or is a copy of, int64 `(rows,)`."""

    def per_row(self, name: str, own: Tensor | None = None) -> Tensor | None:
        """One integer per row, int64 `(rows,)`, from the pattern itself or from `mask_inputs`; None if neither."""

    def per_token(self, name: str, own: Tensor | None = None) -> PerToken | None:
        """Integers by position, from the pattern itself or from `mask_inputs`; None if neither."""

    def table(self, name: str, own: Tensor | None = None) -> Tensor | None:
        """Several integers per row, int64 `(rows, any)`, from the pattern itself or from `mask_inputs`."""

    def marked(self, token: int) -> PerToken | None:
        """1 at the tokens that are `token`, 0 at the others; None if tokens are not known."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch and their data.

    Args:
        layout: where the tokens lie.
        inputs: `mask_inputs` of the call: `document_ids`, `segment_ids`, `gist_mask`, `global_attention_mask` and
            `input_ids`, integers `(batch, slots)`; `position_ids`, integers `(batch, slots)`; `prefix_lengths` and
            `tree_prefix`, integers `(batch,)`; `tree_parents`, integers `(batch, nodes)`.
        seen: per-token data of earlier forwards of the same cache. Only such data may be shorter than the row by
            now: new tokens then go on as the last one. Data of the wrong size is never stretched.
        read: names of `inputs` that a pattern has asked for.
        looked_for: tokens that a pattern has asked for.
        later: slots that per-token data may cover beyond those of the layout, and that are not looked at.
        prompt: in `generate()`, what it started from. Per-token data of that size goes on as seen data does, and may
            be longer than the row by now, where a prompt is read in chunks.
    """

    layout: Layout
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    looked_for: set[int] = field(default_factory=set)
    later: int = 0
    prompt: PromptRows | None = None

    @property
    def counts(self) -> Tensor:
        return self.layout.counts.expand(self.layout.batch)

    @property
    def prompt_counts(self) -> Tensor:
        device = self.counts.device
        if self.prompt is None:
            return self.counts
        return self.prompt.counts.to(device)[self.prompt.of_rows(self.layout.batch, device)]

    @property
    def are_callers(self) -> bool:
        """Whether the rows are those of the caller's batch, one for one."""
        return self.prompt is None or (self.prompt.copies == 1 and len(self.prompt.counts) == self.layout.batch)

    @property
    def origin(self) -> Tensor:
        batch, device = self.layout.batch, self.layout.positions.device
        if self.prompt is None:
            return torch.arange(batch, device=device)
        return self.prompt.of_rows(batch, device) // self.prompt.copies

    def before(self) -> Rows:
        """The same rows as they were known when the cache was filled, without the tokens of this forward."""
        past = self.layout.q_offset
        known = replace(
            self.layout, positions=self.layout.positions[:, :past], q_offset=0, kv_offset=0, kv_length=past, held=None
        )
        later = self.layout.q_length
        return Rows(known, self.inputs, self.copy_of_seen(), later=later, prompt=self.prompt)

    def copy_of_seen(self) -> dict[str, list[Tensor]]:
        """What was seen, for rows that are looked at beside those of the cache."""
        return {name: [*data] for name, data in self.seen.items()}

    def require_all_read(self, pattern: object) -> None:
        """Refuse data that no part of the pattern has read: misspelled, or meant for a pattern that is not there.

        Raises:
            ValueError: names the data and the pattern.
        """
        unread = sorted(set(self.inputs) - self.read - _GIVEN_ANYWAY)
        if unread:
            expected = "data that the pattern reads, by its name: document_ids, segment_ids, prefix_lengths, ..."
            remedy = f"mask_pattern={str(pattern)!r} does not: spell it right, add its pattern, or leave it out."
            raise bad_argument("mask_inputs", unread, expected, remedy)

    def per_row(self, name: str, own: Tensor | None = None) -> Tensor | None:
        data = self._find(name, own)
        if data is None:
            return None
        if data.ndim != 1 or len(data) not in (1, self.layout.batch):
            expected = f"shape ({self.layout.batch},), one number per row"
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, "Give each row of the batch its own.")
        return data.expand(self.layout.batch)

    def table(self, name: str, own: Tensor | None = None) -> Tensor | None:
        data = self._find(name, own)
        if data is None:
            return None
        _require_lines(name, data)
        if len(data) not in (1, self.layout.batch):
            expected = f"shape ({self.layout.batch}, any), a line per row"
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, "Give each row of the batch its own.")
        return data.expand(self.layout.batch, -1)

    def marked(self, token: int) -> PerToken | None:
        if self.prompt is not None and self.prompt.guessed == token:
            expected = f"a mask that says which {token} are padding, as the pattern looks for that token"
            remedy = "Pass the tokenizer's, or torch.ones_like(input_ids) where none is."
            raise bad_argument("attention_mask", f"nothing, and pad_token_id={token}", expected, remedy)
        self.looked_for.add(token)
        tokens = self.per_token("input_ids")
        return None if tokens is None else tokens.equal_to(token)

    def per_token(self, name: str, own: Tensor | None = None) -> PerToken | None:
        data = self._find(name, own)
        if data is None:
            return None
        _require_lines(name, data)
        slots = self.layout.slots
        if slots < data.shape[1] in (slots + self.later, self.prompt and self.prompt.slots):
            data = data[:, :slots]
        if len(data) not in (1, self.layout.batch):
            expected = f"shape ({self.layout.batch}, {slots}), shaped like input_ids"
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, "Give every row its own line.")
        if data.shape[1] < slots and name in PER_TOKEN and self._is_known(name, data):
            return PerToken.of(self._go_on(name, data), self.counts)
        if data.shape[1] != slots:
            expected = f"shape ({self.layout.batch}, {slots})"
            remedy = "It covers everything so far, cached tokens and padding too, as attention_mask does."
            raise bad_argument(name, f"shape {tuple(data.shape)}", expected, remedy)
        self._remember(name, data)
        return PerToken.of(self.layout.by_position(data), self.counts)

    def _find(self, name: str, own: Tensor | None) -> Tensor | None:
        if own is None:
            self.read.add(name)
        data = own if own is not None else self.inputs.get(name)
        if data is None:
            return None
        if isinstance(data, Tensor) and data.dtype == torch.bool and name in _END:
            data = data.long()
        if not isinstance(data, Tensor) or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            got = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
            raise bad_argument(
                name, got, "a tensor of integers", f"Pass torch.tensor(..., dtype=torch.long) as {name}."
            )
        data = data.to(self.layout.positions.device, torch.int64)
        return data if own is None or self.prompt is None else self.prompt.repeated(name, data)

    def _is_known(self, name: str, data: Tensor) -> bool:
        if self.prompt is not None and data.shape[1] == self.prompt.slots:
            return True
        return any(data.shape == seen.shape and torch.equal(data, seen) for seen in self.seen.get(name, ()))

    def _remember(self, name: str, data: Tensor) -> None:
        """Note what is said of tokens that stay in the cache, or refuse what contradicts it, as far as that is known.

        What the caller later writes into the data was not seen.
        """
        seen = self.seen.get(name, [])
        if self.layout.q_offset == 0:
            if not any(torch.equal(before, data) for before in seen):
                self.seen[name] = [*seen, data.clone()]
            return
        agreeing = [i for i, before in enumerate(seen) if self._is_continued(name, before, data)]
        if seen and not agreeing:
            got, expected = "other data for tokens in the cache", "what it was when they came"
            raise bad_argument(name, got, expected, "Pass use_cache=False, or begin with an empty cache.")
        for i in agreeing:
            seen[i] = data.clone()

    def _is_continued(self, name: str, before: Tensor, data: Tensor) -> bool:
        past = self.layout.q_offset
        positions = self.layout.positions[:, :past]
        if before.shape[1] < past and name in PER_TOKEN:  # what came since went on by the rule
            gone_on = self._go_on(name, before)
            before = gone_on.gather(1, positions.clamp(min=0).expand(len(gone_on), -1))
        slots = min(before.shape[1], past)
        differs = before[:, :slots] != data[:, :slots]
        return not bool((differs & (positions[:, :slots] >= 0)).any())

    def _go_on(self, name: str, data: Tensor) -> Tensor:
        """Data of the prompt, by position, with the last token's value, or 0, for all tokens since."""
        known = self.layout.positions[:, : data.shape[1]]
        prompt = Layout(known, self.layout.batch, 0, 0, known.shape[1])
        by_position = prompt.by_position(data)
        steps = torch.arange(self.layout.length, device=data.device)
        last = (prompt.counts - 1).clamp(min=0)[:, None]
        index = torch.minimum(steps[None], last).expand(len(by_position), -1)
        gone_on = by_position.gather(1, index)
        return gone_on if name in _GO_ON else gone_on.where(steps[None] <= last, 0)


def _require_lines(name: str, data: Tensor) -> None:
    """Refuse data of which it is not plain what are its rows."""
    if data.ndim != 2:
        remedy = f"One line for all rows is {name}[None]."
        raise bad_argument(name, f"shape {tuple(data.shape)}", "two dimensions, with a line for each row", remedy)


@dataclass(frozen=True, eq=False)
class DocumentRows:
    """The documents in other rows, each a row of its own.

    Args:
        parent: the rows that they lie in.
        row: of the parent that each document lies in, int64 `(documents,)`.
        start: position of each document's first token in that row, int64 `(documents,)`.
        counts: tokens per document, int64 `(documents,)`.
    """

    parent: RowData
    row: Tensor
    start: Tensor
    counts: Tensor

    @property
    def layout(self) -> Layout:
        return self.parent.layout

    @property
    def prompt_counts(self) -> Tensor:
        return torch.minimum((self.parent.prompt_counts[self.row] - self.start).clamp(min=0), self.counts)

    @property
    def origin(self) -> Tensor:
        return self.parent.origin[self.row]

    def per_row(self, name: str, own: Tensor | None = None) -> Tensor | None:
        expected = "a pattern inside document(...) that says the same for every document, or derives it from tokens"
        raise bad_argument(name, "data per row", expected, f"A document has no {name} of its own.")

    table = per_row

    def per_token(self, name: str, own: Tensor | None = None) -> PerToken | None:
        return self._of_documents(self.parent.per_token(name, own))

    def marked(self, token: int) -> PerToken | None:
        return self._of_documents(self.parent.marked(token))

    def _of_documents(self, data: PerToken | None) -> PerToken | None:
        return None if data is None else PerToken(data.values, data.starts[self.row] + self.start, self.counts)
