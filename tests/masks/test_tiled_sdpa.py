"""Attention tile by tile: outputs and gradients are those of a plain softmax over the whole mask, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, brute_force, inputs, padded, said_patterns
from torch import Tensor

from transformers.mask_patterns import Causal, Document, Pattern, PerHead, PrefixLM, Sink, SlidingWindow
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import visible_grid
from transformers.mask_patterns.lowering.tile_plan import tile_plan
from transformers.mask_patterns.positions import Layout
from transformers.mask_patterns.tiled_sdpa import tiled_sdpa


PATTERNS: dict[str, Pattern] = {
    "window": SlidingWindow(150),
    "sink and window": Sink(4) | SlidingWindow(70),
    "causal": Causal(),
    "prefix": PrefixLM(130),
    "heads": PerHead({0: Causal(), 1: Sink(2) | SlidingWindow(33)}),
    "some see nothing": Causal() & ~SlidingWindow(90),
    "documents": Causal() & Document(torch.arange(300) // 200),
}


def plain(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`(batch, queries, heads, head_dim)`; a query that sees nothing gets 0."""
    served = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(served, 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -1e30)
    weights = scores.softmax(-1).masked_fill(~seen, 0)
    return (weights @ v).transpose(1, 2)


def tensors(layout: Layout, dtype: torch.dtype, head_dim: int = 8) -> list[Tensor]:
    """Queries, keys and values as a model makes them: heads behind tokens in memory."""
    random = torch.Generator().manual_seed(layout.q_length)
    sizes = ((layout.q_length, layout.heads), (layout.kv_length, layout.groups), (layout.kv_length, layout.groups))
    made = [torch.randn(layout.batch, *size, head_dim, generator=random).to(dtype).transpose(1, 2) for size in sizes]
    return [x.requires_grad_() for x in made]


def deviations(pattern: Pattern, layout: Layout, seen: Tensor, dtype: torch.dtype, size: int) -> list[float]:
    """How far output and gradients are from those of plain attention, of the largest of its values."""
    plan = tile_plan(pattern, layout, always=True, size=size)
    assert plan is not None
    given, scale = tensors(layout, dtype), 0.9 / math.sqrt(8)
    exact = [x.detach().double().requires_grad_() for x in given]
    (q, k, v), (exact_q, exact_k, exact_v) = given, exact
    got, want = tiled_sdpa(q, k, v, plan, scale), plain(exact_q, exact_k, exact_v, seen, scale)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got_grads = torch.autograd.grad(got, given, grad)
    want_grads = torch.autograd.grad(want, exact, grad.double())
    assert [x.dtype for x in (got, *got_grads)] == [dtype] * 4
    pairs = zip((got, *got_grads), (want, *want_grads), strict=True)
    return [float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1)) for a, b in pairs]


@settings(max_examples=60)
@given(st.data())
def test_random_patterns_paddings_and_offsets(data: st.DataObject) -> None:
    real = data.draw(padded())
    said = data.draw(said_patterns(real, depth=3, functions=False))
    slots = len(real[0])
    q_offset = data.draw(st.integers(0, slots - 1))
    layout = Layout.of(
        len(real), slots - q_offset, real=torch.tensor(real), q_offset=q_offset, heads=HEADS, groups=GROUPS
    )
    bound = said.pattern.bind(Rows(layout, inputs(real)))
    if tile_plan(bound, layout, always=True) is None:
        return
    seen = brute_force(said, real, range(q_offset, slots), range(slots))
    assert max(deviations(bound, layout, seen, torch.float32, data.draw(st.sampled_from([1, 3, 16])))) < 1e-5


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("size", [0, 32])
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-6), (torch.float16, 2**-9)],
    ids=str,
)
def test_longer_rows_in_every_dtype(name: str, size: int, dtype: torch.dtype, most: float) -> None:
    layout = Layout.of(2, 300, heads=HEADS, groups=GROUPS)
    bound = PATTERNS[name].bind(Rows(layout))
    assert max(deviations(bound, layout, visible_grid(bound, layout), dtype, size)) < most


def test_chunks_behind_a_cache() -> None:
    layout = Layout.of(2, 130, q_offset=170, heads=HEADS, groups=GROUPS)
    bound = PATTERNS["sink and window"]
    assert max(deviations(bound, layout, visible_grid(bound, layout), torch.float32, 64)) < 1e-5


@pytest.mark.parametrize(
    ("heads", "groups", "rows", "dtype"),
    [(8, 2, 2, torch.float32), (7, 1, 1, torch.float32), (4, 4, 2, torch.float32), (8, 2, 1, torch.bfloat16)],
)
@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "heads"])
def test_heads_and_tiles_that_share_their_keys(
    name: str, heads: int, groups: int, rows: int, dtype: torch.dtype
) -> None:
    """Whichever way they go into the kernel, which tests of `Arrangement` tell; rows are long enough for all ways."""
    layout = Layout.of(rows, 300, heads=heads, groups=groups)
    bound = PATTERNS[name].bind(Rows(layout))
    most = 1e-5 if dtype == torch.float32 else 2**-6
    assert max(deviations(bound, layout, visible_grid(bound, layout), dtype, 48)) < most


def test_queries_that_see_nothing_pass_no_gradient_on() -> None:
    layout = Layout.of(1, 40, real=torch.arange(40)[None] >= 25, heads=2, groups=1)
    plan = tile_plan(Causal(), layout, always=True, size=16)
    assert plan is not None
    q, k, v = tensors(layout, torch.float32)
    output = tiled_sdpa(q, k, v, plan)
    assert (output[:, :25] == 0).all()
    output.sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert (x.grad[:, :, :25] == 0).all()
        assert (x.grad[:, :, 25:] != 0).any()


def test_it_agrees_with_autocast() -> None:
    layout = Layout.of(1, 100, heads=2, groups=1)
    plan = tile_plan(SlidingWindow(20), layout, always=True)
    assert plan is not None
    q, k, v = tensors(layout, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = tiled_sdpa(q, k, v.bfloat16(), plan)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, tiled_sdpa(q.bfloat16(), k.bfloat16(), v.bfloat16(), plan))
