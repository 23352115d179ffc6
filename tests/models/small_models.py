"""Small random Qwen models."""

from __future__ import annotations

import os
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.generation.utils import GenerationMixin
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.models.qwen2_moe import modeling_qwen2_moe
from transformers.utils import generic


TREE = Path(os.environ.get("FORK_TREE", Path(__file__).resolve().parents[2] / "transformers"))
BACKENDS = ("eager", "sdpa", "flex_attention")
# Without a pattern upstream compiles flex_attention, and torch 2.13 quotes no path when it links what it compiled.
CANNOT_LINK = pytest.mark.skipif(
    " " in torch.__file__, reason=f"torch cannot link in a path with a space: {torch.__file__}"
)
UPSTREAM_BACKENDS = ("eager", "sdpa", pytest.param("flex_attention", marks=CANNOT_LINK))
DENSE = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
# Before transformers 5, Qwen2-MoE has attention classes of its own, and takes no masks of ours.
HAS_OWN_ATTENTION = hasattr(modeling_qwen2_moe, "QWEN2MOE_ATTENTION_CLASSES")
EXPERTS = {
    **({} if HAS_OWN_ATTENTION else {"qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM)}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}
FAMILIES = DENSE | EXPERTS
ROUTING: dict[str, dict[str, Any]] = {  # a dense layer, then one of experts
    "qwen2_moe": {"shared_expert_intermediate_size": 16, "norm_topk_prob": False},
    "qwen3_moe": {"norm_topk_prob": True},
}


# What the release under test does, by its features; what it lacks is left out with the reason, or refused.
NEEDS_POSITIONS_IN_CHUNKS = pytest.mark.skipif(
    hasattr(GenerationMixin, "_prefill_chunking"),
    reason="before transformers 5, generate() numbers padded rows by slots where it reads in chunks",
)
GOES_ON_FROM_NEW_TOKENS = not hasattr(GenerationMixin, "_get_initial_cache_position")  # else from all tokens only
COPIES_KEYS_PER_HEAD = hasattr(GenerationMixin, "_prefill_chunking")  # SDPA with a mask: other sums than ours
EXPORTS = hasattr(generic, "merge_with_config_defaults")
FLEX_TAKES_A_BIAS = "position_bias" in signature(flex_attention_forward).parameters


def ways(names: Iterable[str]) -> list[Any]:
    """The names of ways to generate, as a parameter; what this release cannot do is left out, with the reason."""
    return [pytest.param(n, marks=NEEDS_POSITIONS_IN_CHUNKS) if "in chunks" in n else n for n in names]


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
