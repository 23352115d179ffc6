"""Small random Qwen models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM


TREE = Path(os.environ.get("FORK_TREE", Path(__file__).resolve().parents[2] / "transformers"))
BACKENDS = ("eager", "sdpa", "flex_attention")
# Without a pattern upstream compiles flex_attention, and torch 2.13 quotes no path when it links what it compiled.
CANNOT_LINK = pytest.mark.skipif(
    " " in torch.__file__, reason=f"torch cannot link in a path with a space: {torch.__file__}"
)
UPSTREAM_BACKENDS = ("eager", "sdpa", pytest.param("flex_attention", marks=CANNOT_LINK))
FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def make_model(family: str = "qwen3", dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A small random model whose logits depend on the mask by far more than rounding: 4 query heads in 2 groups."""
    torch.manual_seed(0)
    config_class, model_class = FAMILIES[family]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = config_class(**{**sizes, **heads, "initializer_range": 0.2, **settings})
    return model_class(config).to(dtype).eval()
