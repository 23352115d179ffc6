"""What a `GenerationConfig` says of masks is refused: nothing reads it there, and it swallows what a call says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from releases import FLOAT32
from small_models import make_model
from torch import Tensor

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.mask_patterns import Causal, Document, Pattern, SlidingWindow, use_mask_pattern


WINDOW = SlidingWindow(2)
REFUSED = r"`generation_config\.mask_pattern`: got .*; expected mask_pattern=\.\.\. as an argument of generate\(\)"
TINY = Path(__file__).resolve().parents[2] / "examples/tiny_qwen3/model"
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


def settings(**said: Any) -> GenerationConfig:
    return GenerationConfig(**GREEDY, **said)


def of_the_call(model: Any, said: dict[str, Any], tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    return model, {"generation_config": settings(**said)}


def of_the_model(model: Any, said: dict[str, Any], tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    for name, value in said.items():
        setattr(model.generation_config, name, value)
    return model, {}


def of_a_saved_model(model: Any, said: dict[str, Any], tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    model.save_pretrained(tmp_path)
    settings(**{name: value for name, value in said.items() if isinstance(value, str)}).save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path), {}


@pytest.mark.parametrize("call", [{}, {"mask_pattern": "causal"}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("route", [of_the_call, of_the_model, of_a_saved_model])
def test_generate_refuses_settings_with_a_pattern(
    route: Callable[..., Any], call: dict[str, Any], ids: Tensor, tmp_path: Path
) -> None:
    model, given = route(make_model(), {"mask_pattern": str(WINDOW)}, tmp_path)
    with pytest.raises(ValueError, match=REFUSED):
        model.generate(ids, **given, **call)


@pytest.mark.parametrize("route", [of_the_call, of_the_model])
def test_generate_refuses_settings_with_data(route: Callable[..., Any], ids: Tensor, tmp_path: Path) -> None:
    model, given = route(make_model(), {"mask_inputs": {"document_ids": ids}}, tmp_path)
    with pytest.raises(ValueError, match="`generation_config.mask_inputs`: got .* expected mask_inputs="):
        model.generate(ids, **given, mask_pattern="causal & document")


def test_a_model_that_takes_no_pattern_refuses_them_too(ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    with pytest.raises(ValueError, match=REFUSED):
        model.generate(ids, generation_config=settings(mask_pattern=WINDOW))


@pytest.mark.parametrize("route", [of_the_call, of_the_model])
@pytest.mark.parametrize(
    "entry",
    [
        lambda model, ids, **given: model.generate(ids, cache_implementation="paged", **given),
        lambda model, ids, **given: model.generate_batch(ids.tolist(), **given),
        lambda model, ids, **given: model.init_continuous_batching(**given),
    ],
    ids=["paged", "batch", "manager"],
)
def test_continuous_batching_refuses_them(
    entry: Callable[..., Any], route: Callable[..., Any], ids: Tensor, tmp_path: Path
) -> None:
    model, given = route(make_model(), {"mask_pattern": WINDOW}, tmp_path)
    with pytest.raises(ValueError, match=REFUSED):
        entry(model, ids, **given)


def test_other_settings_go_with_a_pattern_and_do_not_learn_it(ids: Tensor) -> None:
    model, given = make_model(), settings(my_own=3)
    before = (given.to_dict(), model.generation_config.to_dict())
    got = model.generate(ids, generation_config=given, mask_pattern=WINDOW)
    assert torch.equal(got, model.generate(ids, mask_pattern=WINDOW, **GREEDY))
    assert not torch.equal(got, model.generate(ids, **GREEDY))
    assert before == (given.to_dict(), model.generation_config.to_dict())


def test_an_empty_setting_does_not_swallow_the_call_s_pattern(ids: Tensor) -> None:
    model, given = make_model(), settings(mask_pattern=None)
    assert torch.equal(model.generate(ids, generation_config=given), model.generate(ids, **GREEDY))
    with pytest.raises(ValueError, match=REFUSED):
        model.generate(ids, generation_config=given, mask_pattern=WINDOW)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY, bos_token="<|endoftext|>", padding_side="left")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, **FLOAT32)


SAID = pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"mask_pattern": WINDOW}, "mask_pattern"),
        ({"mask_inputs": {"prefix_lengths": torch.tensor([2])}}, "mask_inputs"),
        ({"attention_mask": torch.ones(1, 1, 5, 5, dtype=torch.bool)}, "a whole attention_mask"),
        ({"attention_mask": torch.ones(1, 5, 5, dtype=torch.bool)}, "a whole attention_mask"),
    ],
    ids=str,
)


@SAID
def test_token_healing_refuses_masks_that_its_own_generation_would_not_have(
    call: dict[str, Any], named: str, tiny: Any, tokenizer: Any
) -> None:
    with pytest.raises(ValueError, match=f"`token_healing`: got True; expected a call without {named}, .*heal_tokens"):
        tiny.generate(torch.arange(5)[None], token_healing=True, tokenizer=tokenizer, **call, **GREEDY)


@pytest.mark.parametrize("where", ["config", "block"])
def test_token_healing_heals_under_a_pattern_that_it_can_see(where: str, tiny: Any, tokenizer: Any) -> None:
    batch = tokenizer("The attention mas", return_tensors="pt")
    with use_mask_pattern(tiny, WINDOW):
        healed = tiny.heal_tokens(batch.input_ids, tokenizer)
        want = tiny.generate(healed, attention_mask=batch.attention_mask, **GREEDY)
    native = tiny.generate(**batch, token_healing=True, tokenizer=tokenizer, **GREEDY)
    assert not torch.equal(want, native)
    heal = {"token_healing": True, "tokenizer": tokenizer, **GREEDY}
    if where == "block":
        with use_mask_pattern(tiny, WINDOW):
            assert torch.equal(tiny.generate(**batch, **heal), want)
    else:
        model = AutoModelForCausalLM.from_pretrained(TINY, **FLOAT32, mask_pattern=WINDOW)
        assert torch.equal(model.generate(**batch, **heal), want)


@SAID
def test_guidance_refuses_masks_that_its_other_forwards_would_not_have(call: dict[str, Any], named: str) -> None:
    refused = f"`guidance_scale`: got 2.0; expected a call without {named}, .* use_mask_pattern: they obey it"
    with pytest.raises(ValueError, match=refused):
        make_model().generate(torch.arange(5)[None], guidance_scale=2.0, **call, **GREEDY)
    assert make_model().generate(torch.arange(5)[None], guidance_scale=1, mask_pattern=WINDOW, **GREEDY).shape == (
        1,
        8,
    )


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("pattern", [WINDOW, Causal() & Document(separator=5)], ids=str)
def test_guidance_obeys_a_pattern_that_its_other_forwards_see(pattern: Pattern, use_cache: bool, ids: Tensor) -> None:
    model, plain, scale = make_model(mask_pattern=pattern), make_model(), 2.0
    asked = {"output_scores": True, "return_dict_in_generate": True, "eos_token_id": None}
    out = model.generate(ids, guidance_scale=scale, use_cache=use_cache, **(GREEDY | asked))

    def whole(ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = plain(ids, mask_pattern=pattern, use_cache=False).logits[:, -4:-1]
        return logits.log_softmax(-1)

    said, unsaid = whole(out.sequences), whole(out.sequences[:, 8:])  # the last token of the prompt, and what comes
    torch.testing.assert_close(torch.stack(out.scores, dim=1), scale * (said - unsaid) + unsaid, atol=3e-5, rtol=1e-4)
