"""Upstream's own mask functions and our patterns, side by side: where they count differently is said here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from transformers import masking_utils as upstream
from transformers.mask_patterns import Bidirectional, Causal, Chunked, Document, Pattern, SlidingWindow, from_function
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import visible_grid
from transformers.mask_patterns.positions import Layout


if not hasattr(upstream, "blockwise_overlay"):
    pytest.skip("this release has not all of the mask functions that are compared here", allow_module_level=True)

LENGTH = 9
UNPADDED = torch.zeros(2, dtype=torch.long)
IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 4, 4, 4, 4, 4, 3, 3]])
MaskMod = Callable[[Any, Any, Any, Any], Any]

SAME: list[Any] = [
    pytest.param(upstream.causal_mask_function, Causal(), id="causal"),
    pytest.param(upstream.bidirectional_mask_function, Bidirectional(), id="bidirectional"),
    # in a causal window upstream counts keys, as we do
    pytest.param(upstream.sliding_window_causal_mask_function(3), SlidingWindow(3), id="window"),
    pytest.param(upstream.sliding_window_causal_mask_function(1), SlidingWindow(1), id="window of one"),
    # in a bidirectional one how far to look: its 2 is our 3
    pytest.param(
        upstream.sliding_window_bidirectional_mask_function(2), SlidingWindow(3, symmetric=True), id="symmetric window"
    ),
    pytest.param(upstream.chunked_causal_mask_function(4, UNPADDED), Chunked(4), id="chunks"),
    pytest.param(upstream.packed_sequence_mask_function(IDS), Document(IDS), id="packed sequences"),
    pytest.param(
        upstream.and_masks(upstream.causal_mask_function, upstream.packed_sequence_mask_function(IDS)),
        Causal() & Document(IDS),
        id="packed and causal",
    ),
    # its blocks of images see each other, beside causal text, whose id is -1
    pytest.param(upstream.blockwise_overlay(IDS), Document(IDS), id="blocks"),
    pytest.param(
        upstream.or_masks(upstream.causal_mask_function, upstream.blockwise_overlay(IDS)),
        Causal() | Document(IDS),
        id="blocks in causal text",
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME)
def test_upstream_means_the_same(theirs: MaskMod, ours: Pattern) -> None:
    expected = create_mask(theirs, 2, 1, LENGTH, LENGTH, device="cpu")
    assert torch.equal(ours.dense(LENGTH).expand(2, -1, -1, -1), expected)
    again = from_function(theirs)  # and serves as a pattern as it is
    assert torch.equal(visible_grid(again, Layout.of(2, LENGTH)).expand(2, 1, -1, -1), expected)


def test_text_outside_upstreams_blocks_is_a_document_per_token() -> None:
    blocks = torch.tensor([[-1, 0, 0, -1, -1, 1, 1, 1, -1]])
    theirs = upstream.or_masks(upstream.causal_mask_function, upstream.blockwise_overlay(blocks))
    alone = torch.where(blocks < 0, 100 + torch.arange(LENGTH), blocks)
    expected = create_mask(theirs, 1, 1, LENGTH, LENGTH, device="cpu")
    assert torch.equal((Causal() | Document(alone)).dense(LENGTH), expected)


@given(st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1), st.integers(1, LENGTH + 1))
def test_in_left_padding_upstream_counts_chunks_from_the_first_token_as_we_do(a: int, b: int, size: int) -> None:
    padding = torch.tensor([a, b])
    real = torch.arange(LENGTH) >= padding[:, None]
    theirs = upstream.and_masks(
        upstream.chunked_causal_mask_function(size, padding), upstream.padding_mask_function(real)
    )
    expected = create_mask(theirs, 2, 1, LENGTH, LENGTH, device="cpu") & real[:, None, :, None]
    layout = Layout.of(2, LENGTH, real=real)
    assert torch.equal(visible_grid(Chunked(size), layout).expand(2, 1, -1, -1), expected)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_upstream_finds_the_same_documents_in_position_ids(lengths: list[int]) -> None:
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = upstream.find_packed_sequence_indices(positions)
    layout = Layout.of(1, positions.shape[1])
    ours = visible_grid(Document().bind(Rows(layout, {"position_ids": positions})), layout)[0, 0]
    if ids is None:  # upstream: nothing is packed
        assert len(lengths) == 1
        assert ours.all()
    else:
        same: Tensor = ids[0, :, None] == ids[0]
        assert torch.equal(ours, same)


def test_a_cached_forward_is_upstreams_with_its_offsets() -> None:
    theirs = upstream.add_offsets_to_mask_function(upstream.sliding_window_causal_mask_function(3), 6, 4)
    expected = create_mask(theirs, 1, 1, 3, 5, device="cpu")
    layout = Layout.of(1, 3, q_offset=6, kv_offset=4, kv_length=5)
    assert torch.equal(visible_grid(SlidingWindow(3), layout), expected)
