"""Compiled forwards over a static cache: one graph for all tokens, without a break, and the same logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import make_model, static_cache
from torch import Tensor
from torch._dynamo.utils import counters

from transformers import CompileConfig
from transformers.mask_patterns import (
    Causal,
    Document,
    PerHead,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    use_mask_pattern,
)


NEW, SEPARATOR = 6, 5
IDS = torch.tensor([[6, 7, 5, 8, 9, 10, 3, 4, 7], [0, 0, 0, 9, 8, 5, 3, 7, 6]])
REAL = torch.ones_like(IDS)
REAL[1, :3] = 0
WINDOW = Sink(1) | SlidingWindow(3)
OWN = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [9, 9, 9, 0, 0, 0, 1, 1, 1]])
CALLS: dict[str, dict[str, Any]] = {
    "causal": {"mask_pattern": Causal()},
    "window": {"mask_pattern": WINDOW},
    "text": {"mask_pattern": "sink(1) | sliding_window(3)"},
    "per head": {"mask_pattern": PerHead({0: Causal(), 1: SlidingWindow(2)})},
    "per layer": {"mask_pattern": {"0": "causal", "default": "sliding_window(2)"}},
    "from tokens": {"mask_pattern": Causal() & Document(separator=SEPARATOR)},
    "bound data": {"mask_pattern": Causal() & Document(OWN)},
    "data": {"mask_pattern": Causal() & Document(), "mask_inputs": {"document_ids": OWN}},
}


@pytest.fixture(autouse=True)
def graphs() -> Iterator[Callable[[], int]]:
    """How many graphs were compiled since the test began."""
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


def compiling() -> CompileConfig:
    """Compile without generating code, on a CPU too, and fail at a graph break."""
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    return config


def generate(model: Any, ids: Tensor, **call: Any) -> Any:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "output_logits": True, "cache_implementation": "static"}
    return model.generate(ids, compile_config=compiling(), **settings, **call)


def check(out: Any, model: Any, real: Tensor, **call: Any) -> None:
    """Against one forward over the whole sequence."""
    if "mask_inputs" in call:
        call["mask_inputs"] = {"document_ids": torch.cat([OWN, OWN[:, -1:].expand(-1, NEW)], dim=1)}
    prompt = real.shape[1]
    real = torch.cat([real, real.new_ones(len(real), NEW)], dim=1)
    if getattr(call.get("mask_pattern"), "parts", ())[1:2] == (Document(OWN),):
        call["mask_pattern"] = Causal() & Document(torch.cat([OWN, OWN[:, -1:].expand(-1, NEW)], dim=1))
    with torch.no_grad():
        want = model(out.sequences, attention_mask=real, use_cache=False, **call).logits[:, prompt - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "sdpa") for name in CALLS), ("window", "eager"), ("per head", "eager")]
)
def test_generate_compiles_one_graph(name: str, backend: str, graphs: Callable[[], int]) -> None:
    model = make_model(attn_implementation=backend, num_hidden_layers=2 if name == "per layer" else 1)
    out = generate(model, IDS, attention_mask=REAL, **CALLS[name])
    assert graphs() == 1
    check(out, model, REAL, **CALLS[name])


def test_it_does_with_flex_attention(graphs: Callable[[], int]) -> None:
    model = make_model(attn_implementation="flex_attention", num_hidden_layers=1)
    out = generate(model, IDS, attention_mask=REAL, mask_pattern=WINDOW)
    assert graphs() == 1
    check(out, model, REAL, mask_pattern=WINDOW)


def test_it_does_with_experts_and_a_pattern_of_the_config(graphs: Callable[[], int]) -> None:
    model = make_model("qwen3_moe", mask_pattern="sink(1) | sliding_window(3)")
    out = generate(model, IDS, attention_mask=REAL)
    assert graphs() == 1
    check(out, model, REAL)


def test_it_does_under_use_mask_pattern(graphs: Callable[[], int]) -> None:
    model = make_model(num_hidden_layers=1)
    with use_mask_pattern(model, WINDOW):
        out = generate(model, IDS, attention_mask=REAL)
    assert graphs() == 1
    check(out, model, REAL, mask_pattern=WINDOW)


def test_it_does_behind_a_whole_mask(graphs: Callable[[], int]) -> None:
    model = make_model(num_hidden_layers=1)
    mask = torch.ones(2, 9, 9).tril().bool()
    mask[:, 4:, 1] = False
    out = generate(model, IDS, attention_mask=mask)
    assert graphs() == 1
    whole = torch.ones(2, 9 + NEW, 9 + NEW).tril().bool()
    whole[:, 4:, 1] = False
    with torch.no_grad():
        want = model(out.sequences, attention_mask=whole, use_cache=False).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), want, atol=2e-5, rtol=1e-4)


def tokens_by(step: Callable[[Any, Tensor, Tensor], Tensor], model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of each token behind a prompt in a static cache, and those of one whole forward."""
    ids = torch.randint(3, 64, (2, 9 + NEW), generator=torch.Generator().manual_seed(2))
    cache = static_cache(model.config, 32)
    with torch.no_grad():
        want = model(ids, mask_pattern=WINDOW, use_cache=False).logits
        model(ids[:, :9], mask_pattern=WINDOW, past_key_values=cache)
        for end in range(10, 10 + NEW):
            yield step(cache, ids[:, :end], torch.ones(2, end, dtype=torch.long)), want[:, end - 1]


def test_a_loop_of_your_own_with_masks_made_ahead(graphs: Callable[[], int]) -> None:
    """`prepare_inputs_for_generation` is eager, and makes them."""
    model = make_model(num_hidden_layers=1)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)

    def step(cache: Any, ids: Tensor, mask: Tensor) -> Tensor:
        call: dict[str, Any] = {"past_key_values": cache, "attention_mask": mask, "mask_pattern": WINDOW}
        positions = torch.full((2, 1), ids.shape[1] - 1)
        call |= model.prepare_inputs_for_generation(ids, next_sequence_length=1, position_ids=positions, **call)
        call.pop("mask_pattern")
        logits: Tensor = compiled(**call).logits
        return logits[:, 0]

    for got, want in tokens_by(step, model):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert graphs() == 1


def test_a_loop_of_your_own_without(graphs: Callable[[], int]) -> None:
    """The pattern is asked in the forward, which breaks the graph there; but nothing is compiled anew per token."""
    model = make_model(num_hidden_layers=1)
    compiled: Any = torch.compile(model, backend="eager")
    counts = []

    def step(cache: Any, ids: Tensor, mask: Tensor) -> Tensor:
        call: dict[str, Any] = {"past_key_values": cache, "mask_pattern": WINDOW}
        positions = torch.full((2, 1), ids.shape[1] - 1)
        logits: Tensor = compiled(ids[:, -1:], attention_mask=mask, position_ids=positions, **call).logits
        counts.append(graphs())
        return logits[:, 0]

    for got, want in tokens_by(step, model):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert counts[2] == counts[-1]


def test_masks_made_ahead_go_with_no_other_pattern() -> None:
    model = make_model()
    cache = static_cache(model.config, 16)
    call: dict[str, Any] = {"past_key_values": cache, "attention_mask": REAL, "mask_pattern": WINDOW}
    ready = model.prepare_inputs_for_generation(IDS, **call)
    with pytest.raises(UnsupportedMaskError, match="masks prepared ahead"):
        model(**ready, mask_pattern=Causal())
    with pytest.raises(ValueError, match=r"document_ids.* beside masks made ahead"):
        model(**ready, mask_inputs={"document_ids": OWN})
    with torch.no_grad():
        got = model(**ready).logits[:, -1]
        want = model(IDS, attention_mask=REAL, mask_pattern=WINDOW).logits[:, -1]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
