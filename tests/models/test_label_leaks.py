"""Label leaks in real models: gradients agree with the check, and training under a leaking pattern warns once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_models import FAMILIES, make_model
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PerHead,
    PerLayer,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)
from transformers.mask_patterns.report import Report
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging


LENGTH, LAYERS, HEADS = 9, 3, 4
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 2, 2]])
JUMP = from_function(lambda b, h, q, k: (q == 2) & (k == 5))
PATTERNS: dict[str, Pattern | PerLayer] = {
    "causal": Causal(),
    "bidirectional": Bidirectional(),
    "window to both sides": SlidingWindow(2, symmetric=True),
    "sink, or window to both sides": Sink(1) | SlidingWindow(2, symmetric=True),
    "prefix": PrefixLM(4),
    "documents": Document(DOCUMENTS),
    "prefix in documents": PrefixLM(5) & Document(DOCUMENTS),
    "a jump ahead and steps back": from_function(lambda b, h, q, k: (k == q + 3) | (k == q - 1)),
    "another in each head": from_function(lambda b, h, q, k: (k == q + h) | ((h == 1) & (k == q - 1))),
    "nothing": ~Bidirectional(),
    "another for each head group": PerHead({0: Causal(), 1: JUMP}),
    "a jump in the first layer": PerLayer({0: JUMP, "default": SlidingWindow(2)}),
    "a jump in the last layer": PerLayer({2: JUMP, "default": SlidingWindow(2)}),
    "a layer of upstream's": PerLayer({0: "native", 1: PrefixLM(4), 2: SlidingWindow(2, symmetric=True)}),
    "layers, heads and documents": PerLayer({0: {"per_head": {0: "causal", 1: JUMP}}, "default": Document(DOCUMENTS)}),
}
every_pattern = pytest.mark.parametrize("name", PATTERNS)


def reachable(masks: Pattern | PerLayer) -> Tensor:
    """From the definition: bool `(1, length, length)`, whether output i depends on token j."""
    layers = masks.resolve(LAYERS) if isinstance(masks, PerLayer) else (masks,) * LAYERS
    paths = torch.eye(LENGTH)
    for pattern in layers:
        paths = (pattern.dense(LENGTH, heads=HEADS).any(1).float() + torch.eye(LENGTH)) @ paths
    return paths > 0


def gradients(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    """Bool `(batch, length, length)`: whether the gradient of output i with respect to token j is other than 0."""
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, use_cache=False, **kwargs).logits.double().square().sum((0, 2))
    rows = [torch.autograd.grad(output, embeds, retain_graph=True)[0].abs().sum(-1) for output in logits]
    return torch.stack(rows, dim=1) > 0


@every_pattern
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_have_a_gradient_exactly_where_a_path_leads(family: str, name: str, ids: Tensor) -> None:
    pattern = PATTERNS[name]
    model = make_model(family, num_hidden_layers=LAYERS, attn_implementation="eager")
    found = gradients(model, ids, mask_pattern=pattern)
    assert torch.equal(found, reachable(pattern).expand(len(ids), -1, -1))
    leaks = pattern.check(LENGTH, layers=LAYERS, heads=HEADS).leaks
    assert torch.equal(found.diagonal(1, 1, 2), leaks[:, 1:].expand(len(ids), -1))


@every_pattern
def test_perturbing_a_token_changes_exactly_the_outputs_that_reach_it(name: str, ids: Tensor) -> None:
    pattern = PATTERNS[name]
    model = make_model(num_hidden_layers=LAYERS, attn_implementation="sdpa")
    ids = ids[:1]
    with torch.no_grad():
        before = model(ids, mask_pattern=pattern).logits
        for token in range(LENGTH):
            other = ids.clone()
            other[0, token] = 1
            changed = (model(other, mask_pattern=pattern).logits != before).any(-1)
            assert torch.equal(changed[0], reachable(pattern)[0, :, token])


def test_padding_neither_leaks_nor_is_leaked_to(ids: Tensor) -> None:
    model = make_model("qwen3", num_hidden_layers=LAYERS, attn_implementation="eager")
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[1, -2:] = 0
    found = gradients(model, ids, mask_pattern=Bidirectional(), attention_mask=mask)
    leaks = Bidirectional().check(LENGTH, layers=LAYERS, attention_mask=mask).leaks
    assert torch.equal(found.diagonal(1, 1, 2), leaks[:, 1:])


@pytest.fixture
def model() -> Any:
    return make_model(num_hidden_layers=LAYERS).train()


def warnings_of(model: Any, **batch: Any) -> str:
    """What one step of training says."""
    with CaptureLogger(logging.get_logger("transformers.mask_patterns.training")) as log:
        model(use_cache=False, **batch).loss.backward()
    return str(log.out)


def test_training_under_a_leaking_pattern_warns_once(model: Any, ids: Tensor) -> None:
    leaking = {"input_ids": ids, "labels": ids, "mask_pattern": PrefixLM(5)}
    said = warnings_of(model, **leaking)
    assert "mask_pattern='prefix_lm(5)': 8 of 16 targets can be read from the input through 3 layers" in said
    assert "Set their labels to -100, as Pattern.check(length, labels=labels, ...).labels does" in said
    assert [warnings_of(model, **leaking) for _ in range(4)] == [""] * 4
    assert "16 of 16" in warnings_of(model, input_ids=ids, labels=ids, mask_pattern=Bidirectional())  # another


def test_the_remedies_that_the_warning_names_silence_it(model: Any, ids: Tensor) -> None:
    pattern = PrefixLM(5)
    report: Report = pattern.check(LENGTH, layers=LAYERS, labels=ids)
    assert int(report.leaks.sum()) == 8
    assert warnings_of(model, input_ids=ids, labels=report.labels, mask_pattern=pattern) == ""
    assert warnings_of(model, input_ids=ids, labels=ids, mask_pattern=pattern & Causal()) == ""


def test_only_targets_that_count_are_counted(model: Any, ids: Tensor) -> None:
    labels = ids.clone()
    labels[:, :4] = -100
    mask = torch.ones_like(ids)
    mask[1, :5] = 0  # row 1 has four tokens, all in the prefix; its first is predicted from padding
    said = warnings_of(model, input_ids=ids, labels=labels, attention_mask=mask, mask_pattern=PrefixLM(5))
    assert "4 of 10 targets" in said


def test_shifted_labels_are_those_that_count(model: Any, ids: Tensor) -> None:
    shifted = torch.full_like(ids, -100)
    shifted[:, 2] = ids[:, 3]
    said = warnings_of(model, input_ids=ids, labels=ids, shift_labels=shifted, mask_pattern=PrefixLM(5))
    assert "2 of 2 targets" in said


def test_a_later_batch_that_leaks_is_found(model: Any, ids: Tensor) -> None:
    """The pattern reads its data from each batch: it leaks where there is a prefix."""
    said = [
        warnings_of(
            model, input_ids=ids, labels=ids, mask_pattern="prefix_lm", mask_inputs={"prefix_lengths": lengths}
        )
        for lengths in (torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([3, 3]))
    ]
    assert said[:3] == ["", "", ""]  # the third is not looked at, the fourth is
    assert "4 of 16 targets" in said[3]


@pytest.mark.parametrize("pattern", [Causal(), Sink(2) | SlidingWindow(3), "native", None], ids=str)
def test_training_that_cannot_leak_has_the_loss_of_upstream_itself(model: Any, pattern: Any, ids: Tensor) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    assert warnings_of(model, input_ids=ids, labels=ids, mask_pattern=pattern) == ""
    model(ids, use_cache=False, mask_pattern=pattern)
    assert model.loss_function is ForCausalLMLoss


def test_evaluation_and_other_losses_say_nothing(model: Any, ids: Tensor) -> None:
    model.eval()
    assert warnings_of(model, input_ids=ids, labels=ids, mask_pattern=Bidirectional()) == ""
    model.train()
    model.loss_function = lambda logits, labels, **kwargs: logits.sum()
    assert warnings_of(model, input_ids=ids, labels=ids, mask_pattern=Bidirectional()) == ""


def test_the_pattern_of_the_config_is_watched_and_the_loss_stays_as_it_is(ids: Tensor) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    model = make_model(num_hidden_layers=LAYERS, mask_pattern="bidirectional").train()
    with CaptureLogger(logging.get_logger("transformers.mask_patterns.training")) as log:
        output = model(ids, labels=ids, use_cache=False)
    assert "mask_pattern='bidirectional': 16 of 16" in log.out
    assert torch.equal(output.loss, ForCausalLMLoss(output.logits, ids, model.config.vocab_size))


def test_a_model_can_be_copied_and_pickled_between_forward_and_loss(model: Any, ids: Tensor) -> None:
    model.model(ids, use_cache=False, mask_pattern=PATTERNS["a jump ahead and steps back"])  # holds a lambda
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert "16 of 16" in warnings_of(other, input_ids=ids, labels=ids, mask_pattern=Bidirectional())


@pytest.fixture
def _fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_training_without_a_pattern_still_compiles_to_one_graph(model: Any, ids: Tensor) -> None:
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    loss = model(ids, labels=ids, use_cache=False).loss
    assert torch.allclose(compiled(ids, labels=ids, use_cache=False).loss, loss)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_training_warns_too(model: Any, ids: Tensor) -> None:
    compiled: Any = torch.compile(model, backend="eager")
    assert "8 of 16" in warnings_of(compiled, input_ids=ids, labels=ids, mask_pattern=PrefixLM(5))


def test_what_an_earlier_forward_ran_is_not_held_against_a_native_one(ids: Tensor) -> None:
    model = make_model().train()
    with CaptureLogger(logging.get_logger("transformers.mask_patterns.training")) as log:
        model(ids, mask_pattern=Bidirectional())
        model(ids, labels=ids, mask_pattern="native")
    assert not log.out
