"""Qwen2-MoE, Qwen3-MoE and what is generated from them: what can differ from the dense models."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import plain_reference
import pytest
import torch
from small_models import BACKENDS, EXPERTS, make_model, static_cache
from torch import Tensor

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.mask_patterns import Causal, Document, Sink, SlidingWindow, UnsupportedMaskError, hooks


STREAMING = Sink(1) | SlidingWindow(3)
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 2}
every_family = pytest.mark.parametrize("family", EXPERTS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def expected(model: Any, ids: Tensor, visible: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return plain_reference.logits(model, ids, visible.expand(len(ids), 4, -1, -1), positions)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-5)


def random_mask() -> Tensor:
    """Future keys among the visible, and a row that sees nothing."""
    mask = torch.rand(2, 4, 9, 9, generator=torch.Generator().manual_seed(4)) < 0.4
    mask[:, :, 3] = False
    return mask


@every_family
@every_backend
@pytest.mark.parametrize("form", ["bool", "additive", "3D"])
def test_a_whole_mask_is_obeyed(family: str, backend: str, form: str, ids: Tensor) -> None:
    model, mask = make_model(family, attn_implementation=backend), random_mask()
    given = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if form == "additive" else mask
    if form == "3D":
        mask, given = mask[:, :1], mask[:, 0]
    with torch.no_grad():
        close(model(ids, attention_mask=given).logits, expected(model, ids, mask))


@every_family
@every_backend
def test_a_pattern_replaces_the_window_of_every_layer(family: str, backend: str, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend, **WINDOW)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        close(model(ids, mask_pattern=Causal(), use_cache=False).logits, expected(model, ids, causal))


@every_family
@every_backend
def test_a_cache_of_windows_lacks_what_another_pattern_shows(family: str, backend: str, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend, **WINDOW)
    with torch.no_grad():
        cache = model(ids[:, :6], mask_pattern=SlidingWindow(2), use_cache=True).past_key_values
        with pytest.raises(UnsupportedMaskError, match="shows keys that the cache has dropped"):
            model(ids[:, 6:], past_key_values=cache, mask_pattern=STREAMING)


@every_backend
def test_a_native_layer_of_a_model_of_one_mask_keeps_its_window(backend: str, ids: Tensor) -> None:
    model = make_model("qwen3_moe", attn_implementation=backend, **WINDOW)
    windowed = {"mask_pattern": {"sliding_attention": SlidingWindow(2)}}
    mixed = {"mask_pattern": {0: "native", 1: Causal()}}
    with torch.no_grad():
        got = model(ids, use_cache=False, **mixed).logits
        want = model(ids, use_cache=False, mask_pattern={0: SlidingWindow(2), 1: Causal()}).logits
        torch.testing.assert_close(got, want)
        plain = make_model("qwen3_moe", attn_implementation="sdpa", **WINDOW)(ids, use_cache=False).logits
        torch.testing.assert_close(model(ids, use_cache=False, **windowed).logits, plain, atol=2e-5, rtol=1e-5)


def test_plain_causal_flash_attention_does_not_stand_for_a_window(ids: Tensor) -> None:
    model = make_model("qwen3_moe", **WINDOW)
    model.config._attn_implementation = "flash_attention_4"  # its package needs a GPU
    with pytest.raises(UnsupportedMaskError, match="cannot obey mask_pattern='causal'"):
        model(ids, mask_pattern=Causal())


@every_backend
def test_a_callers_4d_mask_over_a_static_cache_is_not_taken_for_a_prepared_one(backend: str, ids: Tensor) -> None:
    model = make_model("qwen3_moe", attn_implementation=backend)
    cache = static_cache(model.config, 16)
    everything = torch.ones(2, 1, 9, 16, dtype=torch.bool)  # slots too that are not filled
    with torch.no_grad():
        got = model(ids, attention_mask=everything, past_key_values=cache).logits
    close(got, expected(model, ids, everything[..., :9]))


def test_masks_that_generate_prepares_reach_the_layers_as_upstream_made_them(ids: Tensor) -> None:
    model, prepared = make_model("qwen3_moe"), torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    made = hooks.mask_preparation(model, lambda **_: prepared, {}, {})(attention_mask=torch.ones(2, 9))
    function = hooks.mask_function(model.model, lambda **_: pytest.fail("made again"), ids, {})
    embeds = model.model.embed_tokens(ids)
    assert function(attention_mask=made, inputs_embeds=embeds, position_ids=None, past_key_values=None) is prepared


def test_two_masks_for_layers_that_share_one_are_refused(ids: Tensor) -> None:
    two = {kind: torch.zeros(2, 1, 9, 9) for kind in ("full_attention", "sliding_attention")}
    with pytest.raises(ValueError, match="expected one for all layers"):
        make_model("qwen3_moe", attn_implementation="eager")(ids, attention_mask=two)


@every_family
def test_the_loss_that_balances_experts_counts_tokens_beside_a_pattern_and_refuses_whole_masks(
    family: str, ids: Tensor
) -> None:
    model = make_model(family, mlp_only_layers=[])
    real = torch.ones_like(ids)
    real[1, :3] = 0
    call = {"labels": ids, "output_router_logits": True}
    causal = real.bool()[:, None, None] & torch.ones(9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        want, got = (model(ids, attention_mask=real, mask_pattern=p, **call).aux_loss for p in (None, Causal()))
        torch.testing.assert_close(got, want)
        assert not torch.allclose(got, model(ids, mask_pattern=Causal(), **call).aux_loss)
    with pytest.raises(ValueError, match="expected a 2D mask beside output_router_logits=True"):
        model(ids, attention_mask=causal, **call)


@every_family
def test_experts_train_under_a_pattern(family: str, ids: Tensor) -> None:
    gradients = []
    for backend in ("eager", "sdpa"):
        model = make_model(family, attn_implementation=backend, mlp_only_layers=[]).train()
        model(ids, labels=ids, mask_pattern=STREAMING, output_router_logits=True).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_of_one_mask_without_a_pattern_still_compiles_to_one_graph(ids: Tensor) -> None:
    model = make_model("qwen3_moe")
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)


@pytest.fixture
def fresh_compiler() -> None:
    """Nothing compiled before, so that no limit on recompiling is met."""
    torch.compiler.reset()


@pytest.mark.parametrize("family", ["mixtral", *(["phimoe"] if "qwen2_moe" in EXPERTS else [])])
def test_models_generated_from_mixtral_take_a_pattern(family: str, ids: Tensor) -> None:
    model = small(family)
    with torch.no_grad():
        got = model(ids, mask_pattern=Causal() & Document(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]))).logits
        alone = model(ids[:, 4:]).logits
    torch.testing.assert_close(got[:, 4:], alone, atol=1e-4, rtol=1e-4)


def test_doge_asks_where_mixtral_does_from_which_it_is_generated() -> None:
    """So upstream's converter writes it, and its check fails where the two differ."""
    for family in ("mixtral", "doge"):
        forward = unwrap(type(small(family).model).forward)
        assert "mask_patterns" in forward.__code__.co_names, family


def test_doge_computes_with_its_mask_and_refuses_patterns(ids: Tensor) -> None:
    model, mask = small("doge"), random_mask()[:, :1]
    with pytest.raises(UnsupportedMaskError, match="DogeAttention belongs to a model that does not take one"):
        model(ids, mask_pattern=STREAMING)
    with pytest.raises(UnsupportedMaskError, match="DogeForCausalLM does not take one"):
        model.generate(ids, mask_pattern=STREAMING)
    with pytest.raises(UnsupportedMaskError, match="DogeConfig: mask_pattern='causal' would be ignored"):
        small("doge", mask_pattern="causal")
    with torch.no_grad():
        got = model(ids, attention_mask=torch.zeros(2, 1, 9, 9).masked_fill(~mask, -10000.0)).logits
        torch.testing.assert_close(got, model(ids, attention_mask=mask).logits)
        assert not torch.allclose(got, model(ids).logits, atol=1e-2)


def small(family: str, **settings: Any) -> Any:
    """A small random model of another family."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "num_local_experts": 4}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads, **settings)).eval()
