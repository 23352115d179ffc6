"""FlexAttention's kernel is compiled once for all patterns alike, in every layer, batch and decode step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from small_models import make_model
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from transformers import DynamicCache
from transformers.integrations.flex_attention import WrappedFlexAttention
from transformers.mask_patterns import Causal, Document, Pattern, Sink, SlidingWindow, attention


SEPARATOR = 5
ALIKE: tuple[Pattern, ...] = (Causal(), SlidingWindow(7), SlidingWindow(9), Causal() & Document(separator=SEPARATOR))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many graphs were compiled; `aot_eager` compiles as much as decides that, and generates no code."""
    torch.compiler.reset()
    tiny = torch.zeros(1, 1, 1, 8)
    flex_attention(tiny, tiny, tiny, return_lse=True)  # as old releases do: torch warns once, and compiles anew then
    counters.clear()
    kernel = torch.compile(flex_attention, backend="aot_eager")
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)  # it keeps what earlier tests have compiled
    monkeypatch.setattr(WrappedFlexAttention, "_compiled_flex_attention", staticmethod(kernel))
    monkeypatch.setattr(WrappedFlexAttention, "_is_flex_compiled", True)
    monkeypatch.setattr(WrappedFlexAttention, "training", False, raising=False)
    monkeypatch.setattr(attention, "_WORTH_COMPILING", 0)
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


def ids_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def test_patterns_and_batches(graphs: Callable[[], int]) -> None:
    model = make_model(attn_implementation="flex_attention")
    for pattern in ALIKE:
        model(ids_of(2, 40), mask_pattern=pattern, use_cache=False)
    assert graphs() == 1
    model(ids_of(3, 50), mask_pattern=ALIKE[0], use_cache=False)
    assert graphs() == 2  # torch learns that sizes vary
    for batch, length in ((4, 60), (2, 70)):
        for pattern in ALIKE:
            model(ids_of(batch, length), mask_pattern=pattern, use_cache=False)
    assert graphs() == 2
    model(ids_of(2, 70), mask_pattern=Sink(1) | SlidingWindow(7), use_cache=False)
    assert graphs() == 3  # two intervals a query are of another shape class


@torch.no_grad()
@pytest.mark.parametrize("pattern", [SlidingWindow(7), Causal() & Document(separator=SEPARATOR)], ids=str)
def test_decode_steps(pattern: Pattern, graphs: Callable[[], int]) -> None:
    model, eager = make_model(attn_implementation="flex_attention"), make_model(attn_implementation="eager")
    ids, cache, counted = ids_of(2, 48), DynamicCache(), []
    got = [model(ids[:, :40], mask_pattern=pattern, past_key_values=cache).logits]
    for end in range(41, 49):
        got.append(model(ids[:, end - 1 : end], mask_pattern=pattern, past_key_values=cache).logits)
        counted.append(graphs())
    assert counted[1] == counted[-1]
    want = eager(ids, mask_pattern=pattern, use_cache=False).logits
    torch.testing.assert_close(torch.cat(got, 1), want, atol=3e-5, rtol=1e-4)
