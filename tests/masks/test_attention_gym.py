"""attention-gym's masks and ours, side by side: where the numbers in them are counted differently is said here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attn_gym.masks
import pytest
import torch
from attn_gym.masks.document_mask import length_to_offsets
from torch.nn.attention.flex_attention import create_mask

from transformers.mask_patterns import Causal, Document, Pattern, PrefixLM, SlidingWindow, from_function


LENGTH = 6
MaskMod = Callable[[Any, Any, Any, Any], Any]

GYM = [
    pytest.param(attn_gym.masks.causal_mask, Causal(), id="causal"),
    # attention-gym counts how far back, we count keys: its 2 is our 3
    pytest.param(attn_gym.masks.generate_sliding_window(2), SlidingWindow(3), id="sliding window"),
    pytest.param(attn_gym.masks.generate_prefix_lm_mask(3), PrefixLM(3), id="prefix"),
    # a radius in tokens on both sides, every one of them with dilation 1
    pytest.param(
        attn_gym.masks.generate_dilated_sliding_window(2, 1), SlidingWindow(3, symmetric=True), id="symmetric"
    ),
    pytest.param(
        attn_gym.masks.generate_doc_mask_mod(attn_gym.masks.causal_mask, length_to_offsets([2, 3, 1], "cpu")),
        Causal() & Document(torch.tensor([0, 0, 1, 1, 1, 2])),
        id="documents",
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), GYM)
def test_attention_gym_means_the_same(theirs: MaskMod, ours: Pattern) -> None:
    expected = create_mask(theirs, 1, 1, LENGTH, LENGTH, device="cpu")
    assert torch.equal(from_function(theirs).dense(LENGTH), expected)
    assert torch.equal(ours.dense(LENGTH), expected)
