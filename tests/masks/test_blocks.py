"""FlexAttention's block mask: the same mask, and no block left out that holds a visible key."""

from __future__ import annotations

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Real, Said, brute_force, inputs, padded, said_patterns, unpadded
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from transformers.mask_patterns import Causal, Document, Pattern, Sink, SlidingWindow, from_function
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.blocks import block_mask, grid_block_mask
from transformers.mask_patterns.lowering.dense import visible_grid
from transformers.mask_patterns.positions import Layout


BLOCK = 128


@st.composite
def said_in_padding(draw: st.DrawFn) -> tuple[Real, Said]:
    real = draw(padded(2, 6))
    return real, draw(said_patterns(real, depth=3))


def evaluated(mask: BlockMask, layout: Layout) -> Tensor:
    """What the kernel sees, one row, head, query and key after the other."""
    size = (layout.batch, HEADS, layout.q_length, layout.kv_length)
    flat = [bool(mask.mask_mod(*map(torch.tensor, place))) for place in product(*map(range, size))]
    return torch.tensor(flat).reshape(size)


def blocks_of(seen: Tensor) -> Tensor:
    """Which blocks of 128 by 128 hold a visible key."""
    queries, keys = seen.shape[2:]
    whole: Tensor = torch.nn.functional.pad(seen, (0, -keys % BLOCK, 0, -queries % BLOCK))
    blocks: Tensor = whole.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).any(5).any(3)
    return blocks


def check_blocks(mask: BlockMask, seen: Tensor) -> None:
    """No visible key is skipped, none is hidden where blocks are taken whole, and no empty block is computed."""
    needed = blocks_of(seen)
    computed = mask.to_dense().bool().expand(needed.shape)
    assert torch.equal(computed, needed)
    full = torch.zeros_like(needed)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    for b, h, q in product(*map(range, mask.full_kv_num_blocks.shape)):
        count = int(mask.full_kv_num_blocks[b, h, q])
        full[
            b, h if mask.full_kv_num_blocks.shape[1] > 1 else slice(None), q, mask.full_kv_indices[b, h, q, :count]
        ] = True
    assert not (full & blocks_of(~seen)).any()


@settings(max_examples=25)
@given(said_in_padding(), st.data())
def test_the_kernel_sees_what_the_pattern_means(case: tuple[Real, Said], data: st.DataObject) -> None:
    real, said = case
    slots = len(real[0])
    q_offset = data.draw(st.integers(0, slots - 1))
    kv_length = slots + data.draw(st.integers(0, 2))
    layout = Layout.of(
        len(real),
        slots - q_offset,
        real=torch.tensor(real),
        q_offset=q_offset,
        kv_length=kv_length,
        heads=HEADS,
        groups=GROUPS,
    )
    mask = block_mask(said.pattern.bind(Rows(layout, inputs(real))), layout)
    expected = brute_force(said, real, range(q_offset, slots), range(kv_length))
    assert torch.equal(evaluated(mask, layout), expected)
    check_blocks(mask, expected)


@settings(max_examples=8)
@given(said_patterns(unpadded(2, 300), depth=2))
def test_over_several_blocks_no_visible_key_is_skipped(said: Said) -> None:
    layout = Layout.of(2, 300, heads=HEADS, groups=GROUPS)
    bound = said.pattern.bind(Rows(layout, inputs(unpadded(2, 300))))
    seen = visible_grid(bound, layout).expand(2, HEADS, -1, -1)
    mask = block_mask(bound, layout)
    assert torch.equal(create_mask(mask.mask_mod, 2, HEADS, 300, 300, device="cpu"), seen)
    check_blocks(mask, seen)


def test_windows_and_documents_leave_blocks_out() -> None:
    layout = Layout.of(1, 1024, heads=HEADS)
    window = block_mask(Sink(4) | SlidingWindow(128), layout).to_dense()[0, 0]
    assert window.tolist() == [[int(k in (0, q - 1, q)) for k in range(8)] for q in range(8)]
    ids = torch.arange(1024) // 256
    documents = block_mask((Causal() & Document(ids)).bind(Rows(layout)), layout).to_dense()[0, 0]
    assert documents.tolist() == [[int(k <= q and k // 2 == q // 2) for k in range(8)] for q in range(8)]


def test_heads_have_their_own_blocks() -> None:
    far = torch.tensor([0, 200, 0, 100])
    pattern: Pattern = from_function(lambda b, h, q, k: (k <= q) & (q - k >= far[h]))
    layout = Layout.of(1, 300, heads=HEADS)
    mask = block_mask(pattern, layout)
    seen = visible_grid(pattern, layout)
    assert seen.shape[1] == HEADS
    assert torch.equal(create_mask(mask.mask_mod, 1, HEADS, 300, 300, device="cpu"), seen)
    check_blocks(mask, seen)


def test_left_padding_by_whole_blocks_is_skipped() -> None:
    real = torch.arange(300)[None] >= 140
    layout = Layout.of(1, 300, real=real, heads=HEADS)
    assert block_mask(Causal(), layout).to_dense()[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_a_whole_mask_given_for_one_row_and_head_stands_for_all() -> None:
    seen = torch.rand(1, 1, 150, 200, generator=torch.Generator().manual_seed(0)) < 0.01
    mask = grid_block_mask(seen, batch=3)
    whole = seen.expand(3, HEADS, -1, -1)
    assert torch.equal(create_mask(mask.mask_mod, 3, HEADS, 150, 200, device="cpu"), whole)
    check_blocks(mask, whole)
