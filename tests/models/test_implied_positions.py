"""What a mask and its `position_ids` are for: packed tokens compute what they do in rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import BACKENDS, make_model
from torch import Tensor

from transformers.mask_patterns import (
    BlockDiffusion,
    Causal,
    Document,
    ParallelContext,
    Pattern,
    SharedPrefix,
    Tree,
    UnsupportedMaskError,
)


every_backend = pytest.mark.parametrize("backend", BACKENDS)
SEGMENTS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


def packed(model: Any, ids: Tensor, pattern: Pattern) -> Tensor:
    with torch.no_grad():
        positions = pattern.position_ids(ids.shape[1])
        found: Tensor = model(ids, mask_pattern=pattern, position_ids=positions, use_cache=False).logits[0]
    return found


def alone(model: Any, ids: Tensor, places: list[int], pattern: Any = "causal") -> Tensor:
    """Logits of the tokens at these places, in a row of their own."""
    with torch.no_grad():
        found: Tensor = model(ids[:, places], mask_pattern=pattern, use_cache=False).logits[0]
    return found


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@every_backend
def test_each_answer_of_a_shared_question_is_as_if_it_were_alone(backend: str, ids: Tensor) -> None:
    model, ids = make_model(attn_implementation=backend), ids[:1]
    together = packed(model, ids, SharedPrefix(SEGMENTS))
    for answer in ([3, 4], [5, 6, 7, 8]):
        close(together[[0, 1, 2, *answer]], alone(model, ids, [0, 1, 2, *answer]))


@every_backend
def test_each_parallel_context_is_as_if_it_were_alone(backend: str, ids: Tensor) -> None:
    model, ids = make_model(attn_implementation=backend), ids[:1]
    together = packed(model, ids, ParallelContext(SEGMENTS))
    for context in ([0, 1, 2], [3, 4]):
        close(together[context], alone(model, ids, context))
    task, two = [5, 6, 7, 8], torch.tensor([0, 0, 0, 1, 1, 1, 1])  # and with one context, behind it
    one_context = packed(model, ids[:, [0, 1, 2, *task]], ParallelContext(two))
    close(one_context, alone(model, ids, [0, 1, 2, *task]))


@every_backend
def test_each_node_of_a_tree_is_as_at_the_end_of_its_path(backend: str, ids: Tensor) -> None:
    model, ids, parents = make_model(attn_implementation=backend), ids[:1], [-1, 0, 0, 1, -1, 2]
    together = packed(model, ids, Tree(3, parents))
    for node in range(len(parents)):
        path: list[int] = []
        at = node
        while at >= 0:
            path, at = [3 + at, *path], parents[at]
        close(together[[0, 1, 2, *path]], alone(model, ids, [0, 1, 2, *path]))


@every_backend
def test_each_document_under_block_diffusion_is_as_if_it_were_alone(backend: str, ids: Tensor) -> None:
    model, ids = make_model(attn_implementation=backend), ids[:1, :8]
    documents = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    together = packed(model, ids, Document(BlockDiffusion(2), documents))
    for places in ([0, 1, 2, 3, 4, 5], [6, 7]):
        close(together[places], packed(model, ids[:, places], BlockDiffusion(2)))


@every_backend
def test_the_clean_half_of_block_diffusion_with_blocks_of_one_is_a_causal_model(backend: str, ids: Tensor) -> None:
    model, ids = make_model(attn_implementation=backend), ids[:1, :8]
    close(packed(model, ids, BlockDiffusion(1))[4:], alone(model, ids, [4, 5, 6, 7]))
    noisy = packed(model, ids, BlockDiffusion(1))[2]  # sees the clean tokens before it, and itself
    close(noisy, alone(model, ids, [4, 5, 2])[2])


@every_backend
def test_what_stands_in_documents_is_as_in_rows_padded_or_not(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    segments = torch.tensor([[9, 9, 0, 1, 1, 0, 0, 1, 2], [0, 0, 1, 0, 1, 2, 9, 9, 9]])
    documents = torch.tensor([[9, 9, 4, 4, 4, 5, 5, 5, 5], [4, 4, 4, 6, 6, 6, 9, 9, 9]])
    real = documents != 9
    pattern = Document(SharedPrefix(segments), documents)
    positions = pattern.position_ids(9, attention_mask=real)
    with torch.no_grad():
        got = model(ids, attention_mask=real, position_ids=positions, mask_pattern=pattern, use_cache=False).logits
    for row, paths in ((0, ([2, 3, 4], [5, 6, 7], [5, 6, 8])), (1, ([0, 1, 2], [3, 4], [3, 5]))):
        for path in paths:
            close(got[row, path], alone(model, ids[row : row + 1], list(path)))


@every_backend
@pytest.mark.parametrize(
    ("pattern", "data", "later"),
    [
        ("gist", {"gist_mask": [0, 1, 0, 0, 0, 0]}, {"gist_mask": [0, 1, 0, 0, 0, 0, 1, 0]}),
        ("parallel_context", {"segment_ids": [0, 0, 1, 1, 1, 1]}, {"segment_ids": [0, 0, 1, 1, 1, 1, 2, 2]}),
        ("block_diffusion(1)", {}, {}),
    ],
)
def test_tokens_that_change_what_cached_ones_should_have_seen_are_refused(
    pattern: str, data: dict[str, list[int]], later: dict[str, list[int]], backend: str, ids: Tensor
) -> None:
    model = make_model(attn_implementation=backend)

    def tensors(said: dict[str, list[int]]) -> dict[str, Tensor]:
        return {name: torch.tensor([row, row]) for name, row in said.items()}

    with torch.no_grad():
        cache = model(ids[:, :6], mask_pattern=pattern, mask_inputs=tensors(data), use_cache=True).past_key_values
        with pytest.raises(UnsupportedMaskError, match=r"not cache-safe here: .*position \d.*Pass use_cache=False"):
            model(ids[:, 6:8], mask_pattern=pattern, mask_inputs=tensors(later), past_key_values=cache)


@every_backend
@pytest.mark.parametrize(
    ("pattern", "data"),
    [
        ("gist", {"gist_mask": [0, 1, 1, 0, 0, 0, 0, 0, 0]}),
        ("parallel_context", {"segment_ids": [0, 0, 1, 1, 2, 2, 2, 2, 2]}),
        ("shared_prefix", {"segment_ids": [0, 0, 1, 1, 2, 2, 2, 2, 2]}),
        ("causal & (global_tokens | sliding_window(2))", {"global_attention_mask": [1, 0, 0, 1, 0, 0, 0, 0, 0]}),
    ],
)
def test_tokens_that_go_on_are_as_in_one_forward(
    pattern: str, data: dict[str, list[int]], backend: str, ids: Tensor
) -> None:
    """Data of the prompt is passed again with every new token, as `generate` does."""
    model = make_model(attn_implementation=backend)
    ((name, row),) = data.items()
    prompt = {name: torch.tensor([row[:6]] * 2)}
    with torch.no_grad():
        whole = model(ids, mask_pattern=pattern, mask_inputs={name: torch.tensor([row] * 2)}, use_cache=False).logits
        out = model(ids[:, :6], mask_pattern=pattern, mask_inputs=prompt, use_cache=True)
        parts = [out.logits]
        for i in range(6, 9):
            out = model(
                ids[:, i : i + 1], mask_pattern=pattern, mask_inputs=prompt, past_key_values=out.past_key_values
            )
            parts.append(out.logits)
        causal = model(ids, mask_pattern=Causal(), use_cache=False).logits
    close(torch.cat(parts, dim=1), whole)
    assert not torch.allclose(whole, causal, atol=1e-2)


def test_a_tree_does_not_go_on_in_generate(ids: Tensor) -> None:
    tree = {"mask_pattern": Tree(7, [-1, -1]), "do_sample": False, "pad_token_id": 0}
    with pytest.raises(ValueError, match="A tree is for one forward"):
        make_model().generate(ids, max_new_tokens=3, **tree)
