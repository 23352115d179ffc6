"""Small random Qwen models."""

from __future__ import annotations

import os
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from releases import QWEN2_MOE_TAKES_MASKS

from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    StaticCache,
)


TREE = Path(os.environ.get("FORK_TREE", Path(__file__).resolve().parents[2] / "transformers"))
BACKENDS = ("eager", "sdpa", "flex_attention")
# Without a pattern upstream compiles flex_attention, and torch 2.13 quotes no path when it links what it compiled.
CANNOT_LINK = pytest.mark.skipif(
    " " in torch.__file__, reason=f"torch cannot link in a path with a space: {torch.__file__}"
)
UPSTREAM_BACKENDS = ("eager", "sdpa", pytest.param("flex_attention", marks=CANNOT_LINK))
DENSE = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
EXPERTS = {
    **({"qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM)} if QWEN2_MOE_TAKES_MASKS else {}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}
FAMILIES = DENSE | EXPERTS
ROUTING: dict[str, dict[str, Any]] = {  # a dense layer, then one of experts
    "qwen2_moe": {"shared_expert_intermediate_size": 16, "norm_topk_prob": False},
    "qwen3_moe": {"norm_topk_prob": True},
}


def make_model(family: str = "qwen3", dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A small random model whose logits depend on the mask by far more than rounding: 4 query heads in 2 groups."""
    torch.manual_seed(0)
    config_class, model_class = FAMILIES[family]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}
    routing = experts | ROUTING[family] if family in EXPERTS else {}
    config = config_class(**{**sizes, **heads, **routing, "initializer_range": 0.2, **settings})
    return model_class(config).to(dtype).eval()


def static_cache(config: Any, length: int, rows: int = 2, **settings: Any) -> Any:
    """A static cache; before transformers 4.54 it has to know how many rows there will be."""
    known = signature(StaticCache.__init__).parameters
    sizes = {"max_batch_size": rows} if "max_batch_size" in known else {}
    return StaticCache(config=config, max_cache_len=length, **sizes, **settings)
