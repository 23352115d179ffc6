"""What releases before transformers 5 cannot do is refused there; the tests that they are not up to: `releases`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import releases
import torch
from releases import CACHES_HAVE_LAYERS, EXPORTS, MAKES_MASKS_IN_ONE_PLACE, TELLS_FLASH
from small_models import EXPERTS, make_model
from torch import Tensor

from transformers import DynamicCache, Qwen2ForSequenceClassification, Qwen2MoeConfig, Qwen2MoeForCausalLM
from transformers.mask_patterns import Bidirectional, MaskedCache, UnsupportedMaskError, use_mask_pattern
from transformers.mask_patterns.export import export_for_stock


FOLDER = Path(__file__).parent
before_4_53 = pytest.mark.skipif(MAKES_MASKS_IN_ONE_PLACE, reason="this release has one place for masks")


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


def test_what_is_left_out_is_there() -> None:
    written = {
        f"{file.name}::{line.split('(')[0].removeprefix('def ')}"
        for file in FOLDER.glob("test_*.py")
        for line in file.read_text().splitlines()
        if line.startswith("def test_")
    }
    for name in releases.left_out(everything=True):
        if name.endswith(".py"):
            assert (FOLDER / name).exists(), name
        elif "::" in name:
            start = name.split("*")[0]
            assert any(known.startswith(start) or fnmatchcase(known, name) for known in written), name


@pytest.mark.skipif(CACHES_HAVE_LAYERS, reason="this release has a MaskedCache: test_masked_cache")
def test_there_is_no_masked_cache() -> None:
    with pytest.raises(UnsupportedMaskError, match="MaskedCache: .* Use a DynamicCache"):
        MaskedCache()


@pytest.mark.skipif(TELLS_FLASH, reason="this release tells FlashAttention of masks: test_flash_attention")
def test_flash_attention_takes_no_pattern(ids: Tensor) -> None:
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"  # its package is not needed to refuse it
    with pytest.raises(UnsupportedMaskError, match="'flash_attention_2' cannot obey mask_pattern='sink.1.'"):
        model(ids, mask_pattern="sink(1)")


@before_4_53
def test_a_head_that_knows_no_such_argument_obeys_a_block(ids: Tensor) -> None:
    plain = make_model("qwen2")
    classifier = Qwen2ForSequenceClassification(plain.config).eval()
    classifier.model.load_state_dict(plain.model.state_dict())
    with pytest.raises(TypeError, match="mask_pattern"):
        classifier(ids[:1], mask_pattern=Bidirectional())
    with torch.no_grad(), use_mask_pattern(classifier.model, Bidirectional()):
        got = classifier(ids[:1]).logits
    hidden = plain.model(ids[:1], mask_pattern=Bidirectional()).last_hidden_state
    torch.testing.assert_close(got, classifier.score(hidden[:, -1]))


@before_4_53
def test_experts_refuse_native_in_a_call_beside_a_pattern_of_the_config(ids: Tensor) -> None:
    model = make_model("qwen3_moe", mask_pattern="sink(1)")
    with pytest.raises(UnsupportedMaskError, match="Set config.mask_pattern = None for upstream's own mask"):
        model(ids, mask_pattern="native")


@before_4_53
def test_a_wrong_call_is_upstreams_to_refuse(ids: Tensor) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model.model(mask_pattern="sink(1)")
    with pytest.raises(ValueError, match="should be either a `Cache` object or `None`"):
        model.model(ids, past_key_values=((ids, ids),), mask_pattern="sink(1)")


@before_4_53
@pytest.mark.parametrize("use_cache", [None, True, False])
def test_a_forward_makes_the_cache_that_it_made(use_cache: bool | None, ids: Tensor) -> None:
    model = make_model()
    for call in ({}, {"mask_pattern": "sink(1) | sliding_window(2)"}):
        cache = model(ids, use_cache=use_cache, **call).past_key_values
        assert cache is None if use_cache is False else type(cache) is DynamicCache
        assert cache is None or cache.get_seq_length() == ids.shape[1]
    model.train()
    model.gradient_checkpointing_enable()
    assert model(ids, use_cache=use_cache, mask_pattern="sink(1)").past_key_values is None
