"""attention-gym's masks and ours, side by side: where the numbers in them are counted differently is said here.

Its other masks are no patterns of this library: flamingo's has keys that are no tokens of the row; those of images and
videos (natten, sta, svg, vsa) are of two and three dimensions, and stay functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attn_gym.masks as gym
import pytest
import torch
from attn_gym.masks.document_mask import length_to_offsets
from torch.nn.attention.flex_attention import and_masks, create_mask

from transformers.mask_patterns import (
    BlockDiffusion,
    Causal,
    Chunked,
    Dilated,
    Document,
    GlobalTokens,
    Pattern,
    PrefixLM,
    SharedPrefix,
    SlidingWindow,
    Tree,
    from_function,
)


LENGTH = 12
MaskMod = Callable[[Any, Any, Any, Any], Any]
IDS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4])
OFFSETS = length_to_offsets([3, 2, 4, 2, 1], "cpu")
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 3]
MARKED = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0], dtype=torch.bool)


def back_only(theirs: MaskMod) -> MaskMod:
    """Theirs looks both ways."""
    return and_masks(theirs, gym.causal_mask)


def behind_prefix(theirs: MaskMod, prefix: int) -> MaskMod:
    """Theirs counts queries from the first node of the tree, keys from that of the prefix, which asks nothing."""
    return lambda b, h, q, k: torch.where(q < prefix, k <= q, theirs(b, h, (q - prefix).clamp(min=0), k))


GYM = [
    pytest.param(gym.causal_mask, Causal(), id="causal"),
    # attention-gym counts how far back, we count keys: its 2 is our 3
    pytest.param(gym.generate_sliding_window(2), SlidingWindow(3), id="sliding window"),
    pytest.param(gym.generate_prefix_lm_mask(3), PrefixLM(3), id="prefix"),
    # a radius in tokens on both sides, every one of them with dilation 1
    pytest.param(gym.generate_dilated_sliding_window(2, 1), SlidingWindow(3, symmetric=True), id="symmetric window"),
    # its radius of 4 tokens with every second of them is our 3 keys: 0, 2 and 4 back
    pytest.param(back_only(gym.generate_dilated_sliding_window(4, 2)), Dilated(3, 2), id="dilated"),
    # and so is a radius of 5, which ends between two of them
    pytest.param(back_only(gym.generate_dilated_sliding_window(5, 2)), Dilated(3, 2), id="dilated, odd radius"),
    pytest.param(
        gym.generate_global_sliding_window(2, MARKED),
        GlobalTokens(MARKED[None]) | SlidingWindow(3, symmetric=True),
        id="global tokens and window",
    ),
    pytest.param(
        back_only(gym.generate_global_sliding_window(2, torch.arange(LENGTH) < 2)),
        Causal() & (GlobalTokens(2) | SlidingWindow(3)),
        id="first tokens global, in a decoder",
    ),
    pytest.param(gym.generate_doc_mask_mod(gym.causal_mask, OFFSETS), Causal() & Document(IDS), id="documents"),
    pytest.param(gym.generate_packed_causal_doc_mask_mod(OFFSETS), Document(Causal(), IDS), id="packed documents"),
    pytest.param(
        gym.generate_doc_mask_mod(gym.generate_prefix_lm_mask(2), OFFSETS),
        Document(PrefixLM(2), IDS),
        id="prefix in each document",
    ),
    pytest.param(
        gym.generate_doc_mask_mod(gym.generate_sliding_window(1), OFFSETS),
        Document(SlidingWindow(2), IDS),
        id="window in each document",
    ),
    pytest.param(gym.batchify_mask_mod(gym.causal_mask, 5), Chunked(5), id="chunks"),
    pytest.param(
        gym.batchify_mask_mod(gym.generate_prefix_lm_mask(2), 5),
        Document(PrefixLM(2), torch.arange(LENGTH) // 5),
        id="prefix in each chunk",
    ),
    # its documents say whose answer they are; ours are answers to document 0
    pytest.param(
        gym.generate_shared_prefix_mask_mod(OFFSETS, torch.zeros(5, dtype=torch.long)),
        SharedPrefix(IDS),
        id="shared prefix",
    ),
    # several questions in a row, documents 0 and 2 with their answers, are several documents with a question each
    pytest.param(
        gym.generate_shared_prefix_mask_mod(OFFSETS, torch.tensor([0, 0, 2, 2, 2])),
        Document(SharedPrefix(torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 2])), (IDS >= 2).long()),
        id="several shared prefixes",
    ),
    # it is told the length of the clean text, half of the row
    pytest.param(gym.generate_block_diffusion_mask(6, 2), BlockDiffusion(2), id="block diffusion"),
    pytest.param(gym.generate_block_diffusion_mask(6, 4), BlockDiffusion(4), id="block diffusion, uneven"),
    pytest.param(
        behind_prefix(
            gym.generate_jetspec_tree_causal_mask_mod(4, gym.build_tree_ancestor_matrix(PARENTS, device="cpu")), 4
        ),
        Tree(4, PARENTS),
        id="tree",
    ),
    # blocks behind a prefix, each a chain, are a tree of chains
    pytest.param(
        behind_prefix(gym.generate_jetspec_training_mask_mod(3, 3), 3),
        Tree(3, [-1, 0, 1, -1, 3, 4, -1, 6, 7]),
        id="blocks behind a prefix",
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), GYM)
def test_attention_gym_means_the_same(theirs: MaskMod, ours: Pattern) -> None:
    expected = create_mask(theirs, 1, 1, LENGTH, LENGTH, device="cpu")
    assert torch.equal(from_function(theirs).dense(LENGTH), expected)
    assert torch.equal(ours.dense(LENGTH), expected)
