"""Caches that keep keys elsewhere, or in another form: offloaded to the processor's memory, and quantized.

Offloading asks CUDA for streams, which a processor neither has nor needs: stand-ins take their place, so that the
cache's own steps run. The quantizer here is exact, so that what a pattern says is all that could differ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from small_models import make_model
from torch import Tensor

from transformers import DynamicCache
from transformers.cache_utils import Cache, QuantizedLayer
from transformers.mask_patterns import Causal, Document, Sink, SlidingWindow, UnsupportedMaskError


SEPARATOR = 5
PATTERNS: dict[str, Any] = {
    "streaming": Sink(1) | SlidingWindow(3),
    "documents": Causal() & Document(separator=SEPARATOR),
    "per layer": {0: SlidingWindow(4), 1: "causal & ~sink(1)"},
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "in chunks": {"prefill_chunk_size": 4},
    "beams": {"num_beams": 3},
    "samples": {"num_return_sequences": 2, "do_sample": True},
}
WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
IDS = torch.randint(3, 12, (2, 9), generator=torch.Generator().manual_seed(1))
every_pattern = pytest.mark.parametrize("name", PATTERNS)


def generate(model: Any, **call: Any) -> Tensor:
    torch.manual_seed(0)
    settings = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None, "do_sample": False} | call
    found: Tensor = model.generate(IDS, **settings)
    return found


class NoStream:
    """A stream of a device that has none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...


@pytest.fixture
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", NoStream)


@pytest.mark.usefixtures("no_streams")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static", "object"])
@pytest.mark.parametrize("way", WAYS)
@every_pattern
def test_offloaded_caches(name: str, way: str, kind: str) -> None:
    model, call = make_model(vocab_size=12), {"mask_pattern": PATTERNS[name], **WAYS[way]}
    cache = {"past_key_values": DynamicCache(offloading=True)} if kind == "object" else {"cache_implementation": kind}
    want = generate(model, **call)
    assert not torch.equal(want, generate(model, **WAYS[way]))
    assert torch.equal(generate(model, **cache, **call), want)


@pytest.mark.usefixtures("no_streams")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloaded_caches_of_sliding_layers(kind: str) -> None:
    model = make_model(vocab_size=12, **WINDOWS)
    call = {"mask_pattern": SlidingWindow(3) & Document(separator=SEPARATOR)}
    assert torch.equal(generate(model, cache_implementation=kind, **call), generate(model, **call))
    with pytest.raises(UnsupportedMaskError, match="shows keys that the cache has dropped"):
        generate(model, cache_implementation=kind, mask_pattern=PATTERNS["streaming"])


class Exact(QuantizedLayer):
    """Quantized without loss."""

    def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.clone()

    def _dequantize(self, q_tensor: Tensor) -> Tensor:
        return q_tensor


@pytest.mark.parametrize("way", ["greedy", "in chunks", "samples"])
@every_pattern
def test_quantized_caches(name: str, way: str) -> None:
    """Not with beams or candidates: upstream reorders and crops only what is not quantized yet, and breaks."""
    model, call = make_model(vocab_size=12), {"mask_pattern": PATTERNS[name], **WAYS[way]}
    cache = Cache(layer_class_to_replicate=partial(Exact, residual_length=4))
    assert torch.equal(generate(model, past_key_values=cache, **call), generate(model, **call))
