"""Continuous batching makes its own batches in a thread of its own: what it would drop, it refuses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from small_models import make_model

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.mask_patterns import SlidingWindow, UnsupportedMaskError, use_mask_pattern


WINDOW = SlidingWindow(2)
IDS = torch.tensor([[3, 7, 5, 9, 8, 4]])
REFUSED = r"continuous batching .* cannot obey it\. Use generate\(\) with another cache"


def paged(model: Any, **call: Any) -> Any:
    return model.generate(IDS, cache_implementation="paged", do_sample=False, max_new_tokens=4, **call)


def batch(model: Any, **call: Any) -> Any:
    return model.generate_batch(IDS.tolist(), max_new_tokens=4, **call)


def manager(model: Any) -> Any:
    return model.init_continuous_batching()


def say(model: Any, where: str) -> AbstractContextManager[None]:
    """Say a pattern elsewhere than in the call."""
    if where == "block":
        return use_mask_pattern(model, WINDOW)
    if where == "config":
        model.config.mask_pattern = WINDOW
    else:
        model.get_mask_pattern = lambda *_, **__: WINDOW
    return nullcontext()


@pytest.mark.parametrize("where", ["block", "config", "method"])
@pytest.mark.parametrize("entry", [paged, batch, manager])
def test_a_pattern_of_the_model_is_refused(entry: Callable[..., Any], where: str) -> None:
    model = make_model()
    with say(model, where), pytest.raises(UnsupportedMaskError, match=f"^mask_pattern: {REFUSED}"):
        entry(model)


@pytest.mark.parametrize("entry", [paged, batch])
@pytest.mark.parametrize(
    ("call", "what"),
    [
        ({"mask_pattern": WINDOW}, r"mask_pattern='sliding_window\(2\)'"),
        ({"mask_inputs": {"document_ids": IDS}}, "mask_inputs"),
        ({"attention_mask": torch.ones(1, 6, 6, dtype=torch.bool)}, "a whole attention_mask"),
        ({"attention_mask": torch.ones(1, 1, 6, 6, dtype=torch.bool)}, "a whole attention_mask"),
    ],
    ids=str,
)
def test_what_the_call_says_is_refused(entry: Callable[..., Any], call: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedMaskError, match=f"^{what}: {REFUSED}"):
        entry(make_model(), **call)


def test_native_in_the_call_does_not_reach_a_config_s_pattern() -> None:
    with pytest.raises(UnsupportedMaskError, match=REFUSED):
        paged(make_model(mask_pattern=WINDOW), mask_pattern="native")


def test_models_that_take_no_pattern_refuse_it_too() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    with pytest.raises(UnsupportedMaskError, match=REFUSED):
        paged(model, mask_pattern=WINDOW)


def test_without_a_pattern_its_entries_are_open() -> None:
    model = make_model(mask_pattern=None)
    with use_mask_pattern(model, "native"):
        assert isinstance(manager(model), ContinuousBatchingManager)
        assert len(model.generate_batch([], mask_pattern="native", attention_mask=torch.ones_like(IDS))) == 0


def test_a_manager_refuses_requests_once_there_is_a_pattern() -> None:
    model = make_model()
    running = manager(model)
    for where in ("block", "config", "method"):
        with say(model, where), pytest.raises(UnsupportedMaskError, match=f"^mask_pattern: {REFUSED}"):
            running.add_request([3, 7, 5])
        model.config.mask_pattern = None
    del model.get_mask_pattern
    assert running.add_request([3, 7, 5]) == "req_0"
