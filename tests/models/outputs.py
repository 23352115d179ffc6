"""Run as a script: every output that must not change, saved to a file. It runs on the fork and on upstream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import transformers
from transformers import (
    GenerationMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LAYERS: dict[str, dict[str, Any]] = {
    "full": {},
    "sliding": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "mlp_only_layers": [0],
    "head_dim": 8,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, EXPERTS),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, EXPERTS),
}
if hasattr(GenerationMixin, "_prefill_chunking"):  # Qwen2-MoE fails in these before transformers 5, and is not patched
    del FAMILIES["qwen2_moe"]
MASKS = {"none": None, "left": [[1] * 9, [0] * 3 + [1] * 6], "right": [[1] * 9, [1] * 6 + [0] * 3]}


def models() -> Iterator[tuple[str, Any]]:
    for kind, layers in LAYERS.items():
        for family, (config, model, own) in FAMILIES.items():
            for dtype in (torch.float32,) if own is EXPERTS else (torch.float32, torch.bfloat16):
                torch.manual_seed(0)
                yield f"{family} {kind} {dtype}", model(config(**SIZES | layers | own)).to(dtype)


def training(model: Any, ids: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """Logits at every slot, padding too, loss and gradients."""
    model.train().zero_grad()
    out = model(ids, attention_mask=mask, labels=ids)
    out.loss.backward()
    yield from (out.logits, out.loss, *(p.grad for p in model.parameters()))


def cached(model: Any, ids: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """Logits of a forward in three parts, and greedy and sampled tokens, with and without a cache."""
    model.eval()
    cache = None
    for first, last in ((0, 5), (5, 8), (8, 9)):
        part = None if mask is None else mask[:, :last]
        out = model(ids[:, first:last], attention_mask=part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        yield out.logits
    ways: list[dict[str, Any]] = [{"use_cache": True}, {"use_cache": False}, {"num_beams": 2}]
    if getattr(model, "_supports_static_cache", True):  # not Qwen3-MoE before transformers 4.53
        ways.append({"cache_implementation": "static"})
    for settings in ways:
        yield model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0, **settings)


def switch(model: Any, backend: str) -> None:
    """The same on every release: before transformers 4.53 models have no method for it."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(backend)
    else:
        model.config._attn_implementation = backend


def flex(model: Any, ids: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """Logits of one forward and of one that goes on from its cache, as far as torch compiles them here."""
    model.eval()
    yield model(ids, attention_mask=mask, use_cache=False).logits
    out = model(ids[:, :8], attention_mask=None if mask is None else mask[:, :8], use_cache=True)
    yield out.logits
    yield model(ids[:, 8:], attention_mask=mask, past_key_values=out.past_key_values).logits


def outputs() -> Iterator[tuple[str, Tensor]]:
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    for name, model in models():
        for kind, rows in MASKS.items():
            mask = None if rows is None else torch.tensor(rows)
            for backend in ("eager", "sdpa"):
                switch(model, backend)
                for run in (training, cached):
                    for i, tensor in enumerate(run(model, ids, mask)):
                        yield f"{name} {kind} {backend} {run.__name__} {i}", tensor
            dense = "moe" not in name
            if dense and "full torch.float32" in name and kind != "right":  # each shape takes seconds to compile
                yield from flexible(f"{name} {kind} flex", model, ids, mask)


def flexible(name: str, model: Any, ids: Tensor, mask: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    switch(model, "flex_attention")
    steps = flex(model, ids, mask)
    with torch.no_grad():
        for i in range(3):
            try:
                yield f"{name} {i}", next(steps)
            except Exception as error:  # torch fails to compile some shapes on CPU: it must fail alike on both sides
                yield f"{name} {i} {type(error).__name__}", torch.zeros(0)
                return


if __name__ == "__main__":
    torch.set_num_threads(1)
    expected, target = Path(sys.argv[1]), sys.argv[2]
    assert Path(transformers.__file__).resolve().is_relative_to(expected.resolve()), transformers.__file__
    said = {name: torch.zeros(0) if tensor is None else tensor.detach().clone() for name, tensor in outputs()}
    torch.save(said, target)
