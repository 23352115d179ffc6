"""How a mask reaches the model: per call, through heads and `generate`; and what is refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from small_models import BACKENDS, DENSE, EXPERTS, make_model
from torch import Tensor

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2ForSequenceClassification,
)
from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    hooks,
)


STREAMING = Sink(1) | SlidingWindow(3)


def greedy(model: Any, ids: Tensor, steps: int, pattern: Any, mask: Tensor | None = None) -> Tensor:
    """Greedy decoding without `generate` and without a cache: one whole forward per token."""
    for _ in range(steps):
        with torch.no_grad():
            last = model(ids, attention_mask=mask, mask_pattern=pattern, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids


@pytest.mark.parametrize(
    ("family", "pattern"),
    [*product(DENSE, [STREAMING, PrefixLM(4), Causal() & ~SlidingWindow(1)]), *product(EXPERTS, [STREAMING])],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_generate_obeys(family: str, pattern: Pattern, backend: str, use_cache: bool, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    got = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        use_cache=use_cache,
        mask_pattern=pattern,
        pad_token_id=0,
    )
    assert torch.equal(got, greedy(model, ids, 6, pattern, mask))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_generate_obeys_the_config(family: str, kind: str, ids: Tensor) -> None:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "cache_implementation": kind}
    plain, model = make_model(family), make_model(family, mask_pattern=STREAMING)
    got = model.generate(ids, **settings)
    assert torch.equal(got, greedy(plain, ids, 6, STREAMING))
    assert torch.equal(got, plain.generate(ids, mask_pattern=STREAMING, **settings))
    native = plain.generate(ids, **settings)
    assert not torch.equal(got, native)
    assert torch.equal(model.generate(ids, mask_pattern="native", **settings), native)


def test_generate_goes_on_with_the_documents_of_the_prompt(ids: Tensor) -> None:
    model = make_model()
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 2, 2, 2, 2]])
    given = {"document_ids": documents}
    got = model.generate(
        ids, max_new_tokens=4, do_sample=False, mask_pattern=Causal() & Document(), mask_inputs=given, pad_token_id=0
    )
    for row, start in ((0, 4), (1, 5)):
        alone = model.generate(ids[row : row + 1, start:], max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(got[row, start:], alone[0])


def test_generate_refuses_what_a_cache_cannot_hold_and_runs_without_one(ids: Tensor) -> None:
    model = make_model()
    settings = {"max_new_tokens": 3, "do_sample": False, "mask_pattern": Bidirectional(), "pad_token_id": 0}
    with pytest.raises(UnsupportedMaskError, match=r"'bidirectional' is not cache-safe.*Pass use_cache=False"):
        model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, use_cache=False, **settings), greedy(model, ids, 3, Bidirectional()))


def test_other_heads_and_the_base_model_take_a_pattern(ids: Tensor) -> None:
    plain = make_model("qwen2")
    classifier = Qwen2ForSequenceClassification(plain.config).eval()
    classifier.model.load_state_dict(plain.model.state_dict())
    with torch.no_grad():
        hidden = plain.model(ids, mask_pattern=Bidirectional()).last_hidden_state
        got = classifier(ids[:1], mask_pattern=Bidirectional()).logits
    torch.testing.assert_close(got, classifier.score(hidden[:1, -1]))


def test_models_generated_from_qwen2_take_a_pattern(ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model("smollm3", **sizes, num_attention_heads=4, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        got = model(ids, mask_pattern=Document(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])) & Causal()).logits
        alone = model(ids[:, 4:]).logits  # the second document, which plain causal attention would not keep apart
    torch.testing.assert_close(got[:, 4:], alone)


@pytest.mark.parametrize("call", [{"mask_pattern": STREAMING}, {"mask_inputs": {"document_ids": torch.zeros(2, 9)}}])
@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "mamba"])
def test_generate_refuses_a_pattern_that_the_model_would_drop(family: str, call: dict[str, Any], ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    config = AutoConfig.for_model(family, **sizes, num_attention_heads=4, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedMaskError, match=rf"`{next(iter(call))}`: {type(model).__name__} does not take one"):
        model.generate(ids, max_new_tokens=2, pad_token_id=0, **call)


def test_a_model_that_does_not_take_a_pattern_refuses_it(ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval()
    for call in ({"mask_pattern": STREAMING}, {"mask_inputs": {"document_ids": torch.zeros_like(ids)}}):
        with pytest.raises(UnsupportedMaskError, match="LlamaAttention belongs to a model that does not take one"):
            model(ids, **call)


def test_a_config_of_a_model_that_does_not_take_a_pattern_refuses_it() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    config = LlamaConfig(**sizes, num_attention_heads=4, mask_pattern="sink(4)")
    with pytest.raises(UnsupportedMaskError, match=r"LlamaConfig: mask_pattern='sink\(4\)' would be ignored"):
        LlamaForCausalLM(config)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_pattern_set_later_in_the_config_of_a_model_that_does_not_take_one_is_refused(
    backend: str, ids: Tensor
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, attn_implementation=backend)).eval()
    with torch.no_grad():
        native = model(ids).logits
        model.config.mask_pattern = STREAMING
        for part in (model, model.model):
            with pytest.raises(UnsupportedMaskError, match=r"LlamaAttention .* did not read 'sink\(1\) \| sliding"):
                part(ids)
        model.config.mask_pattern = None
        assert torch.equal(model(ids).logits, native)


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "mamba"])
def test_generate_refuses_a_pattern_set_later_in_the_config_of_such_a_model(family: str, ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    config = AutoConfig.for_model(family, **sizes, num_attention_heads=4, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    model.config.mask_pattern = STREAMING
    with pytest.raises(
        UnsupportedMaskError, match=rf"`config.mask_pattern`: {type(model).__name__} does not take one"
    ):
        model.generate(ids, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("family", [*DENSE, *EXPERTS])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_call_with_upstreams_mask_is_not_taken_for_one_that_ignores_the_config(
    family: str, checkpointing: bool, ids: Tensor
) -> None:
    for backend in ("eager", "sdpa"):
        model = make_model(family, attn_implementation=backend, mask_pattern=STREAMING).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(ids, labels=ids, mask_pattern="native").loss
        loss.backward()
        model.config.mask_pattern = None
        torch.testing.assert_close(loss, model(ids, labels=ids).loss)


def test_plain_causal_flash_attention_is_not_taken_for_one_that_ignores_the_config(ids: Tensor) -> None:
    model, kwargs = make_model(mask_pattern="causal"), dict[str, Any]()
    model.config._attn_implementation = "flash_attention_2"
    assert hooks.masks(model.model, None, ids, model.model.embed_tokens(ids), None, None, kwargs) is None

    def function(*_: Any, **given: Any) -> Any:
        return given

    wrapped: Any = hooks.attention_function(function)
    assert wrapped(model.model.layers[0].self_attn, 1, 2, 3, None, scaling=4, **kwargs) == {"scaling": 4}


def test_attention_functions_take_their_arguments_as_before() -> None:
    def function(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float = 1) -> Any:
        return module, query, key, value, attention_mask, scaling

    wrapped: Any = hooks.attention_function(function)
    assert wrapped(0, 1, 2, 3, 4, 5) == (0, 1, 2, 3, 4, 5)
    assert wrapped(0, query=1, key=2, value=3, attention_mask=4, scaling=5) == (0, 1, 2, 3, 4, 5)
    assert wrapped(module=0, query=1, key=2, value=3, attention_mask=None) == (0, 1, 2, 3, None, 1)


@pytest.mark.parametrize("backend", ["paged|sdpa", "paged|eager"])
def test_masks_of_continuous_batching_are_left_alone(backend: str, ids: Tensor) -> None:
    model, mask = make_model(), torch.zeros(1, 1, 9, 12)
    model.config._attn_implementation = backend
    assert hooks.masks(model.model, mask, ids, model.model.embed_tokens(ids), None, None, {}) is mask


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_gradient_checkpointing_changes_nothing(backend: str, ids: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(attn_implementation=backend).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids, mask_pattern=PrefixLM(3)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)


def test_a_pattern_and_a_whole_mask_are_refused_together(ids: Tensor) -> None:
    model, mask = make_model(mask_pattern=STREAMING), torch.ones(2, 1, 9, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`attention_mask`: got a 4D mask beside mask_pattern='sink\(1\)"):
        model(ids, attention_mask=mask)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, mask_pattern="native").logits
        torch.testing.assert_close(whole, make_model()(ids, mask_pattern=Bidirectional()).logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mask_pattern": torch.ones(9, 9)}, "`mask_pattern`: got Tensor; expected a pattern"),
        ({"mask_pattern": "sink(4) |"}, "expected a pattern"),
        ({"mask_inputs": {"document_ids": torch.zeros(2, 9)}}, "`mask_inputs`: got .'document_ids'.; expected a mask"),
        (
            {"mask_pattern": Causal(), "mask_inputs": {"document_ids": torch.zeros(2, 9).long()}},
            "'causal' does not: spell",
        ),
        (
            {"mask_pattern": PrefixLM(), "mask_inputs": {"prefix_length": torch.ones(2).long()}},
            "`prefix_lengths`: got noth",
        ),
        (
            {"mask_pattern": PrefixLM(2), "mask_inputs": {"prefix_lengths": torch.ones(2).long()}},
            r"'prefix_lm\(2\)' does not",
        ),
        (
            {"mask_pattern": Document(), "mask_inputs": {"document_ids": None}},
            r"`mask_inputs`: got None for \['document_ids'",
        ),
        ({"mask_pattern": Document()}, None),
        ({"mask_pattern": PrefixLM()}, "`prefix_lengths`: got nothing; expected data for PrefixLM"),
        (
            {"mask_pattern": PrefixLM(torch.tensor([1, 2, 3]))},
            r"`prefix_lengths`: got shape \(3,\); expected shape \(2,\)",
        ),
        (
            {"mask_pattern": PrefixLM(torch.tensor([1.0, 2.0]))},
            "`prefix_lengths`: got torch.float32; expected a tensor of int",
        ),
        (
            {"mask_pattern": PrefixLM(torch.tensor([1, -2]))},
            r"`prefix_lengths`: got \[1, -2\]; expected numbers of at least 0",
        ),
        (
            {"mask_pattern": Document(torch.zeros(2, 5, dtype=torch.long))},
            r"`document_ids`: got shape \(2, 5\); expected shape",
        ),
        (
            {"mask_pattern": Causal(), "attention_mask": torch.ones(2, 5)},
            r"`attention_mask`: got shape \(2, 5\); expected",
        ),
        (
            {"mask_pattern": Causal(), "attention_mask": torch.full((2, 9), 2)},
            "values other than 0 and 1; expected 1 at real",
        ),
    ],
)
def test_a_malformed_call_is_refused(call: dict[str, Any], message: str | None, ids: Tensor) -> None:
    model = make_model()
    if message is None:  # without data, documents follow from position_ids: here there is one document
        with torch.no_grad():
            torch.testing.assert_close(model(ids, **call).logits, model(ids, mask_pattern=Bidirectional()).logits)
        return
    with pytest.raises(ValueError, match=message):
        model(ids, **call)


def test_masks_prepared_by_hand_that_upstream_would_misread_are_refused(ids: Tensor) -> None:
    model = make_model(attn_implementation="eager")
    with pytest.raises(ValueError, match=r"`attention_mask\['full_attention'\]`: got a torch.bool tensor"):
        model(ids, attention_mask={"full_attention": torch.ones(2, 1, 9, 9, dtype=torch.bool)})


@pytest.fixture
def fresh_compiler() -> None:
    """Nothing compiled before, so that no limit on recompiling is met."""
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_model_without_a_pattern_still_compiles_to_one_graph(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(ids).logits, model(ids).logits)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_obeys(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend, num_hidden_layers=1)
    compiled: Any = torch.compile(model, backend="eager")
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([0, 1]), 0)
    with torch.no_grad():
        for pattern in (STREAMING, PrefixLM(3), Causal() & Document(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]))):
            call = {"attention_mask": mask, "mask_pattern": pattern}
            torch.testing.assert_close(compiled(ids, **call).logits, model(ids, **call).logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"document_ids": None}, "`document_ids`: got an argument of its own; expected it within mask_inputs"),
        ({"prefix_lengths": None}, "`prefix_lengths`: got an argument of its own"),
        ({"mask_patterns": "causal"}, "`mask_patterns`: got an unknown argument; expected mask_pattern"),
        ({"mask_input": {}}, "`mask_input`: got an unknown argument"),
    ],
)
def test_arguments_that_can_only_mean_masks_are_not_passed_over(
    call: dict[str, Any], message: str, ids: Tensor
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model()(ids, mask_pattern="causal & document", **call)


def test_layers_that_stand_elsewhere_than_they_say_are_refused(ids: Tensor) -> None:
    model = make_model()
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))
    with pytest.raises(UnsupportedMaskError, match="layer 0 of Qwen3Model says that it is layer 1"):
        model(ids, mask_pattern={0: "causal", 1: "sink(2)"})
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    assert model(ids, mask_pattern={0: "causal", 1: "sink(2)"}).logits.isfinite().all()
