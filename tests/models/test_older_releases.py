"""What releases before transformers 5 cannot do is refused there."""

from __future__ import annotations

from pathlib import Path

import pytest
from releases import EXPORTS
from small_models import EXPERTS, make_model
from torch import Tensor

from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
from transformers.mask_patterns import UnsupportedMaskError
from transformers.mask_patterns.export import export_for_stock


@pytest.mark.skipif(EXPORTS, reason="this release exports: test_export")
def test_models_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMaskError, match="export it in the fork of transformers 5"):
        export_for_stock(make_model(mask_pattern="sink(1)"), tmp_path)


@pytest.mark.skipif("qwen2_moe" in EXPERTS, reason="Qwen2-MoE takes masks in this release: test_experts")
def test_qwen2_moe_refuses_a_pattern(ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64, "num_experts": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes)).eval()
    with pytest.raises(TypeError, match="mask_pattern"):
        model.model(ids, mask_pattern="sink(1)")
    with pytest.raises(UnsupportedMaskError, match="Qwen2MoeForCausalLM does not take one"):
        model.generate(ids, mask_pattern="sink(1)", max_new_tokens=2, pad_token_id=0)
    with pytest.raises(UnsupportedMaskError, match="Qwen2MoeConfig: mask_pattern='sink.1.' would be ignored"):
        Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, mask_pattern="sink(1)"))
