"""FlexAttention's block mask: the same mask, and no block left out that holds a visible key."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Real, Said, brute_force, inputs, padded, said_patterns, unpadded
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention

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
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    full = torch.zeros(mask.full_kv_indices.shape, dtype=torch.bool)
    for b, h, q in product(*map(range, mask.full_kv_num_blocks.shape)):
        full[b, h, q, mask.full_kv_indices[b, h, q, : int(mask.full_kv_num_blocks[b, h, q])]] = True
    beyond = torch.nn.functional.pad(~seen, (0, -seen.shape[3] % BLOCK, 0, -seen.shape[2] % BLOCK), value=True)
    assert torch.equal(full.expand(needed.shape), ~blocks_of(beyond))


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


@pytest.mark.parametrize("q_offset", [0, 290, 399])
def test_padding_anywhere_and_places_not_filled_yet(q_offset: int) -> None:
    real = torch.rand(3, 400, generator=torch.Generator().manual_seed(0)) < 0.9
    real[0, :150], real[1, 300:], real[2, 128:256] = False, False, True
    layout = Layout.of(3, 400 - q_offset, real=real, q_offset=q_offset, kv_length=530, heads=HEADS)
    ids = torch.arange(400) // 90
    for pattern in (Causal(), Sink(4) | SlidingWindow(30), ~SlidingWindow(200), Causal() & Document(ids)):
        bound = pattern.bind(Rows(layout))
        check_blocks(block_mask(bound, layout), visible_grid(bound, layout).expand(3, HEADS, -1, -1))


def test_one_kernel_serves_patterns_batches_and_tokens_alike() -> None:
    """Bounds are tensors, so nothing is compiled anew: `aot_eager` compiles as much as decides that."""
    torch.compiler.reset()
    counters.clear()
    attention = torch.compile(flex_attention, backend="aot_eager", dynamic=True, fullgraph=True)
    torch.manual_seed(0)

    def attend(pattern: Pattern, layout: Layout) -> None:
        q, kv = torch.randn(5, HEADS, layout.q_length, 16), torch.randn(5, HEADS, layout.kv_length, 16)
        bound = pattern.bind(Rows(layout))
        seen = visible_grid(bound, layout).expand(5, HEADS, -1, -1)
        want = torch.nn.functional.scaled_dot_product_attention(q, kv, kv, attn_mask=seen)
        torch.testing.assert_close(attention(q, kv, kv, block_mask=block_mask(bound, layout)), want)

    with torch.no_grad():
        for pattern in (Causal(), SlidingWindow(7), Causal() & Document(torch.arange(200) // 50)):
            attend(pattern, Layout.of(5, 200, heads=HEADS))
        assert counters["stats"]["unique_graphs"] == 1
        for length in (201, 250, 300):
            attend(SlidingWindow(7), Layout.of(5, length, heads=HEADS))
        longer = counters["stats"]["unique_graphs"]
        for slot in range(300, 304):
            attend(SlidingWindow(7), Layout.of(5, 1, q_offset=slot, heads=HEADS))
        tokens = counters["stats"]["unique_graphs"]
    torch.compiler.reset()
    assert (longer, tokens) == (1, 2)
