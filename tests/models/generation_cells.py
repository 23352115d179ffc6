"""How a mask is said, times how it is decoded: a cell of the product says what one forward would say, or raises."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from decoding import (
    ASSISTANTS,
    PROMPT,
    SEPARATOR,
    Batch,
    Decoded,
    Keys,
    Way,
    decode,
    first_line,
    forget_models,
    mask_until,
    shared_model,
)
from releases import REORDERS_QUANTIZED
from torch import Tensor

from transformers import mask_patterns
from transformers.mask_patterns import Causal, Document, PrefixLM, from_function, masked_cache, use_mask_pattern


OWN = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [9, 9, 9, 0, 0, 1, 1, 2, 2]])  # by slot; row 1 may be padded
FIRST = torch.tensor([4, 2])
PLACES = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2, 0, 1, 2]])
COUNTS = torch.tensor([3, 2])  # of the last tokens that a row sees
LIBRARY = Path(mask_patterns.__file__).parent


class Data(Enum):
    """What the mask is, and where its data comes from."""

    WINDOW = "`sliding_window(4)`"
    SINKS = "`sink(1) | sliding_window(3)`"
    TOKENS = "derived from tokens: `document(separator=5)`"
    BOUND = "bound tensor: `Document(ids)`"
    INPUTS = "`mask_inputs`: `shared_prefix`"
    POSITIONS = "`position_ids` that start again: `document`"
    PREFIX = "a prefix for each row: `PrefixLM(lengths)`"
    UNTIL = "a prefix up to a token: `prefix_lm(until=5)`"
    LAYERS = "per layer"
    HEADS = "per head: `PerHead`"
    FUNCTION = "a function: `from_function`"
    WHOLE = "4D mask of the prompt"


REPRESENTATIVE = Data.TOKENS


class Outcome(Enum):
    """What became of a cell."""

    EQUAL = "every logit is that of one forward"
    REFUSED = "one of our errors"
    UPSTREAM = "an error that is not ours"
    WRONG = "another logit"


@dataclass(frozen=True)
class Cell:
    """One call."""

    backend: str
    family: str
    batch: Batch
    keys: Keys
    way: Way
    data: Data


@dataclass(frozen=True)
class Result:
    """What became of a cell, and what it said."""

    outcome: Outcome
    said: str = ""


@dataclass(frozen=True)
class Limit:
    """Why some cells raise.

    Args:
        outcome: who refuses.
        message: a regular expression that the error begins with.
        where: cells that may.
        why: for the reader of the page.
    """

    outcome: Outcome
    message: str
    where: Callable[[Cell], bool]
    why: str


GUESSING = {*ASSISTANTS, Way.LOOKUP, Way.EARLY_EXIT}
BEAMS = {Way.BEAMS, Way.SAMPLED_BEAMS}
REORDERING = {*ASSISTANTS, Way.LOOKUP, Way.CANDIDATES, *(() if REORDERS_QUANTIZED else BEAMS)}
FROM_TOKENS = {Data.TOKENS, Data.UNTIL, Data.LAYERS, Data.HEADS}
OF_ROWS = {Data.BOUND, Data.INPUTS, Data.PREFIX, Data.UNTIL, Data.FUNCTION}
LIMITS = {
    "a": Limit(
        Outcome.UPSTREAM,
        "ValueError: assisted generate requires `use_cache=True`",
        lambda cell: cell.way in GUESSING and cell.keys is Keys.NONE,
        "upstream: what was guessed wrong is taken back from a cache, so there must be one",
    ),
    "b": Limit(
        Outcome.UPSTREAM,
        "ValueError: assisted generate is not supported with Static cache classes",
        lambda cell: cell.way in GUESSING and cell.keys.is_static,
        "upstream: a static cache takes nothing back",
    ),
    "c": Limit(
        Outcome.UPSTREAM,
        "ValueError: Cannot use prefill chunking without a cache",
        lambda cell: cell.way is Way.CHUNKS and cell.keys is Keys.NONE,
        "upstream: the chunks meet in a cache",
    ),
    "d": Limit(
        Outcome.UPSTREAM,
        "KeyError: 'past_key_values'|AttributeError: 'Static.*' object has no attribute 'batch_repeat_interleave'",
        lambda cell: cell.way is Way.CANDIDATES and (cell.keys is Keys.NONE or cell.keys.is_static),
        "upstream: candidates share a cache whose rows can be copied",
    ),
    "e": Limit(
        Outcome.UPSTREAM,
        "IndexError: (index out of range|too many indices)|RuntimeError: Sizes of tensors must match",
        lambda cell: cell.keys is Keys.QUANTIZED and cell.way in REORDERING,
        "upstream: a quantized cache cannot copy, reorder or take back what it has quantized: the prompt and, every "
        "`residual_length` tokens, what came since",
    ),
    "f": Limit(
        Outcome.REFUSED,
        "ValueError: `input_ids`: got nothing; expected data for",
        lambda cell: cell.way is Way.EMBEDS and cell.data in FROM_TOKENS,
        "embeddings do not say which tokens they are; patterns that do not ask run, and all do with the prompt's "
        "tokens in `mask_inputs={'input_ids': ids}`",
    ),
    "g": Limit(
        Outcome.REFUSED,
        "UnsupportedMaskError: .* shows keys that the cache has dropped",
        lambda cell: cell.keys.is_sliding and cell.data is not Data.WINDOW,
        "the pattern shows, or comes to show, keys that left the window of the cache; what stays inside runs, and so "
        "does a `DynamicCache()` without a config, and `MaskedCache()`",
    ),
    "h": Limit(
        Outcome.REFUSED,
        "UnsupportedMaskError: .* is not cache-safe here",
        lambda cell: cell.way is Way.CHUNKS and cell.data in (Data.PREFIX, Data.UNTIL),
        "the prefix sees itself, so it must come in one forward: a chunk as long as the longest prefix runs",
    ),
    "i": Limit(
        Outcome.REFUSED,
        "ValueError: `(document_ids|segment_ids|prefix_lengths)`: got shape|UnsupportedMaskError: generate.* decodes",
        lambda cell: cell.way is Way.CANDIDATES and cell.data in OF_ROWS and len(cell.batch.rows) > 1,
        "a loop that copies rows by itself does not say which are copies of which; with one prompt at a time it runs",
    ),
    "j": Limit(
        Outcome.REFUSED,
        "ValueError: `attention_mask`: got shape",
        lambda cell: (
            cell.way in (Way.FORWARD, Way.STEPS)
            and cell.data is Data.WHOLE
            and (cell.keys.is_static or cell.keys.is_sliding)
        ),
        "in a forward of one's own a 4D mask covers the keys that every layer's cache hands out, unfilled ones too",
    ),
    "k": Limit(
        Outcome.REFUSED,
        "ValueError: `attention_mask`: got a 4D mask beside mask_pattern",
        lambda cell: cell.way is Way.ASSISTED_OWN and cell.data is Data.WHOLE,
        "the assistant gets the 4D mask too, and has a whole mask of its own already",
    ),
}


def limit(cell: Cell, result: Result) -> str:
    """Which of the limits a cell ran into.

    Raises:
        LookupError: none that is known.
    """
    for letter, one in LIMITS.items():
        if one.outcome is result.outcome and one.where(cell) and re.match(one.message, result.said):
            return letter
    raise LookupError(f"{cell}: {result}")


def is_valid(cell: Cell) -> bool:
    """Whether there is such a call: assistants take one row, and who generates from padding asks for nothing."""
    if cell.batch is Batch.RIGHT and cell.way is not Way.FORWARD:
        return False
    return len(cell.batch.rows) == 1 or not cell.way.one_row


def said(data: Data, rows: list[int], own: Tensor) -> dict[str, Any]:
    """How a call says a mask for these rows of the tables; `own` is `OWN` of the rows, as long as it has to be."""
    documents = Document(separator=SEPARATOR)
    counts = COUNTS[rows]
    match data:
        case Data.WINDOW:
            return {"mask_pattern": "sliding_window(4)"}
        case Data.SINKS:
            return {"mask_pattern": "sink(1) | sliding_window(3)"}
        case Data.TOKENS:
            return {"mask_pattern": f"sliding_window(4) & document(separator={SEPARATOR})"}
        case Data.BOUND:
            return {"mask_pattern": Causal() & Document(own)}
        case Data.INPUTS:
            return {"mask_pattern": "shared_prefix", "mask_inputs": {"segment_ids": own}}
        case Data.POSITIONS:
            return {"mask_pattern": "causal & document"}
        case Data.PREFIX:
            return {"mask_pattern": PrefixLM(FIRST[rows])}
        case Data.UNTIL:
            return {"mask_pattern": f"prefix_lm(until={SEPARATOR})"}
        case Data.LAYERS:
            return {"mask_pattern": {"0": Causal() & documents, "default": "sliding_window(3)"}}
        case Data.HEADS:
            return {"mask_pattern": f"per_head(0: sliding_window(3), 1: causal & document(separator={SEPARATOR}))"}
        case Data.FUNCTION:
            return {"mask_pattern": Causal() & from_function(lambda b, h, q, k: q - k < counts[b])}
    raise AssertionError(f"{data} is no pattern")


def whole(length: int) -> Tensor:
    """A 4D mask of the prompt and what its rule makes of it for more tokens, bool `(1, 1, length, length)`."""
    q, k = torch.arange(length)[:, None], torch.arange(length)
    row = q.clamp(max=PROMPT - 1)
    prompt = (k <= row) & (((row + k) % 3 != 1) | (row == k))
    return torch.where(k < PROMPT, prompt, k <= q)[None, None]


def until(own: Tensor, length: int) -> Tensor:
    """Data per token for so many slots: what is new goes on as the last."""
    return torch.cat([own, own[:, -1:].expand(-1, max(length - own.shape[1], 0))], dim=1)[:, :length]


def places(data: Data, rows: list[int], end: int, begin: int = 0) -> dict[str, Tensor]:
    """The `position_ids` of some slots, where they are the data."""
    if data is not Data.POSITIONS:
        return {}
    new = torch.arange(1, max(end - PROMPT, 0) + 1)
    return {"position_ids": torch.cat([PLACES[rows], PLACES[rows, -1:] + new], dim=1)[:, begin:end]}


@cache
def run(cell: Cell) -> Result:
    """Run a cell, and compare every logit with one forward of each row alone: no cache, no padding, eager."""
    model = shared_model(cell.backend, cell.family, cell.keys)
    try:
        with dropping_early(), scope(cell, model) as arguments:
            decoded = decode(cell.way, cell.keys, model, cell.batch, arguments)
    except Exception as error:
        forget_models()
        return Result(Outcome.REFUSED if is_ours(error) else Outcome.UPSTREAM, first_line(error))
    wrong = difference(cell, model, decoded)
    return Result(Outcome.WRONG, wrong) if wrong else Result(Outcome.EQUAL)


@contextmanager
def dropping_early() -> Iterator[None]:
    """Let a `MaskedCache` drop keys from the start, so that short sequences show what it does."""
    with mock.patch.object(masked_cache, "BLOCK", 1):
        yield


@contextmanager
def scope(cell: Cell, model: Any) -> Iterator[Any]:
    """What goes with a call's tokens; where the assistant is not to hear of it, the mask is said around the call."""
    rows = cell.batch.rows
    is_around = cell.way in (Way.ASSISTED_OWN, Way.ASSISTED_PLAIN) and cell.data is not Data.WHOLE

    def mask(end: int) -> dict[str, Any]:
        return said(cell.data, rows, until(OWN[rows], end))

    def arguments(begin: int, end: int) -> dict[str, Any]:
        real = mask_until(cell.batch, end)
        if cell.data is not Data.WHOLE:
            return {"attention_mask": real, **({} if is_around else mask(end)), **places(cell.data, rows, end, begin)}
        seen = real.bool()
        return {"attention_mask": (whole(end) & seen[:, None, None] & seen[:, None, :, None])[:, :, begin:]}

    with use_mask_pattern(model, *mask(PROMPT).values()) if is_around else nullcontext():
        yield arguments


def is_ours(error: Exception) -> bool:
    """Whether it is a `ValueError` that our library raised itself."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError) and LIBRARY in raised_in.parents


def difference(cell: Cell, model: Any, decoded: Decoded) -> str:
    """What is wrong with the logits; nothing if they are right."""
    model.set_attn_implementation("eager")
    length = decoded.sequences.shape[1]
    copies = len(decoded.sequences) // len(cell.batch.rows)
    atol = 1e-3 if cell.keys is Keys.QUANTIZED else 3e-5
    for i, (row, real) in enumerate(zip(cell.batch.rows, mask_until(cell.batch, length).bool(), strict=True)):
        these = slice(i * copies, (i + 1) * copies)
        got = decoded.logits[these]
        want = torch.zeros(copies, length, got.shape[-1])
        want[:, real] = alone(cell.data, model, decoded.sequences[these], row, real)
        compared = slice(decoded.first, decoded.first + got.shape[1])
        off = float((got - want[:, compared])[:, real[compared]].abs().max())
        if not off < atol:
            return f"row {i}: logits off by {off:.2g}"
    return ""


@torch.no_grad()
def alone(data: Data, model: Any, sequences: Tensor, row: int, real: Tensor) -> Tensor:
    """The logits of the real tokens of what one row became, from one forward over them alone."""
    mask: dict[str, Any]
    length, rows = len(real), [row] * len(sequences)
    if data is Data.WHOLE:
        mask = {"attention_mask": whole(length)[:, :, real][..., real].expand(len(rows), -1, -1, -1)}
    else:
        mask = said(data, rows, until(OWN[rows], length)[:, real])
        mask |= {name: ids[:, real] for name, ids in places(data, rows, length).items()}
    logits: Tensor = model(sequences[:, real], use_cache=False, **mask).logits
    return logits
