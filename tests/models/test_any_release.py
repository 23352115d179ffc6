"""What `make releases` asks of every release of transformers that a series was carried to: three patterns, obeyed.

The reference reads weights and knows no library; what is visible is written down here a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plain_reference
import pytest
import torch
from small_models import DENSE, make_model
from torch import Tensor


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2], [7, 7, 7, 7, 7, 4, 4, 4, 4]])
PADDING, NEW = 2, 4  # of the second row, to its left; and tokens to generate


@dataclass(frozen=True)
class Mask:
    """A pattern, the data that goes beside the batch, and the same mask in plain words: `(row, q, k)`."""

    pattern: str
    inputs: dict[str, Tensor]
    visible: Callable[[int, int, int], bool]

    def grid(self, row: int, length: int) -> Tensor:
        """Bool `(1, heads, length, length)` over the real tokens of a row."""
        places = range(length)
        seen = torch.tensor([[self.visible(row, q, k) for k in places] for q in places])
        return seen.expand(1, 4, length, length)


def _document(row: int, position: int) -> int:
    """What a token belongs to; a generated one goes on with the last."""
    return int(DOCUMENTS[row, min(position + starts(row), DOCUMENTS.shape[1] - 1)])


MASKS = (
    Mask("sink(1) | sliding_window(2)", {}, lambda row, q, k: k <= q and (k < 1 or q - k < 2)),
    Mask("prefix_lm(3)", {}, lambda row, q, k: k <= q or k < 3),
    Mask("causal & document", {"document_ids": DOCUMENTS},
         lambda row, q, k: k <= q and _document(row, q) == _document(row, k)),
)  # fmt: skip
every_mask = pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.pattern)
every_family = pytest.mark.parametrize("family", DENSE)
every_backend = pytest.mark.parametrize("backend", ["eager", "sdpa"])


def starts(row: int) -> int:
    """The slot of a row's first real token."""
    return PADDING * row


def padded(ids: Tensor) -> Tensor:
    """The 2D mask: real tokens are 1."""
    return torch.stack([(torch.arange(ids.shape[1]) >= starts(row)).long() for row in range(len(ids))])


def expected(model: Any, mask: Mask, row: int, tokens: Tensor) -> Tensor:
    """The reference's logits of one row's real tokens, `(length, vocabulary)`."""
    positions = torch.arange(len(tokens))[None]
    return plain_reference.logits(model, tokens[None], mask.grid(row, len(tokens)), positions)[0]


@every_mask
@every_backend
@every_family
def test_a_forward_obeys(family: str, backend: str, mask: Mask, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend)
    with torch.no_grad():
        logits = model(ids, padded(ids), mask_pattern=mask.pattern, mask_inputs=mask.inputs).logits
    for row, tokens in enumerate(ids):
        first = starts(row)
        torch.testing.assert_close(
            logits[row, first:].double(), expected(model, mask, row, tokens[first:]), rtol=1e-4, atol=1e-4
        )


@every_mask
@every_backend
@every_family
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_generated_tokens_obey(family: str, backend: str, mask: Mask, ids: Tensor, use_cache: bool) -> None:
    model = make_model(family, attn_implementation=backend)
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    generated = model.generate(
        ids, attention_mask=padded(ids), mask_pattern=mask.pattern, mask_inputs=mask.inputs, use_cache=use_cache,
        **settings,
    )  # fmt: skip
    for row in range(len(ids)):
        tokens = ids[row, starts(row) :]
        for _ in range(NEW):
            tokens = torch.cat([tokens, expected(model, mask, row, tokens)[-1].argmax()[None]])
        assert generated[row, starts(row) :].tolist() == tokens.tolist()


@every_family
def test_a_saved_pattern_is_obeyed(family: str, ids: Tensor, tmp_path: Path) -> None:
    mask = MASKS[0]
    make_model(family, mask_pattern=mask.pattern).save_pretrained(tmp_path)
    model = DENSE[family][1].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(ids[:1]).logits[0]
    torch.testing.assert_close(logits.double(), expected(model, mask, 0, ids[0]), rtol=1e-4, atol=1e-4)
