"""`get_mask_pattern` says the mask, in whichever model the base model stands, and however it came there."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from small_models import FAMILIES, make_model
from torch import Tensor

from transformers import Qwen3ForCausalLM, Qwen3Model, Qwen3MoeForCausalLM
from transformers.mask_patterns import Pattern, Sink, SlidingWindow, UnsupportedMaskError


STREAMING = Sink(1) | SlidingWindow(3)


def get_mask_pattern(self: Any, input_ids: Tensor, **inputs: Any) -> Pattern | None:
    """A mask that depends on the tokens."""
    return STREAMING if int(input_ids[0, 0]) != 2 else None


class Subclassed(Qwen3ForCausalLM):
    """A model that says its mask."""

    get_mask_pattern = get_mask_pattern


class SubclassedExperts(Qwen3MoeForCausalLM):
    """The same with experts."""

    get_mask_pattern = get_mask_pattern


class SubclassedBase(Qwen3Model):
    """The same, one level down."""

    get_mask_pattern = get_mask_pattern


def subclassed(plain: Any, kind: Any = Subclassed) -> Any:
    """A model of this class with the weights of another."""
    model = kind(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    return model


def logits(model: Any, ids: Tensor, **call: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, **call).logits
    return found


@pytest.fixture
def plain() -> Any:
    return make_model()


@pytest.fixture
def said(plain: Any, ids: Tensor) -> Tensor:
    """The logits that `STREAMING` gives."""
    found = logits(plain, ids, mask_pattern=STREAMING)
    assert not torch.allclose(found, logits(plain, ids), atol=1e-2)
    return found


@pytest.mark.parametrize(("family", "kind"), [("qwen3", Subclassed), ("qwen3_moe", SubclassedExperts)])
def test_a_subclass_says_the_mask_by_overriding_one_method(family: str, kind: Any, ids: Tensor) -> None:
    plain = make_model(family)
    model = subclassed(plain, kind)
    assert torch.equal(logits(model, ids), logits(plain, ids, mask_pattern=STREAMING))
    assert torch.equal(logits(model, ids, mask_pattern="native"), logits(plain, ids))
    ids = ids.index_fill(1, torch.tensor([0]), 2)
    assert torch.equal(logits(model, ids), logits(plain, ids))


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_generate_obeys_a_subclass(kind: str, plain: Any, ids: Tensor) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "cache_implementation": kind}
    plain.get_mask_pattern = lambda *_, **__: STREAMING
    got = plain.generate(ids, **settings)
    del plain.get_mask_pattern
    assert torch.equal(got, plain.generate(ids, mask_pattern=STREAMING, **settings))
    assert not torch.equal(got, plain.generate(ids, **settings))


def test_a_subclass_of_the_base_model_says_the_mask(plain: Any, said: Tensor, ids: Tensor) -> None:
    base = SubclassedBase(plain.config).eval()
    base.load_state_dict(plain.model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.lm_head(base(ids).last_hidden_state), said)


def test_an_owner_is_asked_where_its_base_model_is_called_alone(plain: Any, said: Tensor, ids: Tensor) -> None:
    model = subclassed(plain)
    with torch.no_grad():
        assert torch.equal(model.lm_head(model.model(ids).last_hidden_state), said)
        assert torch.equal(model.lm_head(model.model.forward(ids).last_hidden_state), said)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_set_on_an_instance_is_asked_from_then_on(family: str, ids: Tensor) -> None:
    model = make_model(family)
    native, said = logits(model, ids), logits(model, ids, mask_pattern=STREAMING)
    model.get_mask_pattern = lambda input_ids, **inputs: STREAMING
    assert torch.equal(logits(model, ids), said)
    del model.get_mask_pattern
    assert torch.equal(logits(model, ids), native)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_asks_the_owner_that_was_copied_with_it(twin_of: Any, plain: Any, said: Tensor, ids: Tensor) -> None:
    model = subclassed(plain)
    twin = twin_of(model)
    model.get_mask_pattern = lambda input_ids, **inputs: None
    assert torch.equal(logits(twin, ids), said)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    assert set(twin.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_method_set_on_a_copy_is_asked(twin_of: Any, plain: Any, said: Tensor, ids: Tensor) -> None:
    twin = twin_of(twin_of(plain))
    twin.get_mask_pattern = lambda input_ids, **inputs: STREAMING
    assert torch.equal(logits(twin, ids), said)
    assert torch.equal(logits(plain, ids), logits(plain, ids, mask_pattern="native"))


def test_a_base_model_put_into_another_model_asks_that_one(plain: Any, said: Tensor, ids: Tensor) -> None:
    model = subclassed(plain)
    model.model = Qwen3Model(plain.config).eval()
    model.model.load_state_dict(plain.model.state_dict())
    assert torch.equal(logits(model, ids), said)
    native = logits(plain, ids)
    plain.model = model.model
    del model
    assert torch.equal(logits(plain, ids), native)


def test_two_models_that_share_a_base_model_are_refused_where_one_says_a_mask(plain: Any, ids: Tensor) -> None:
    model, native = subclassed(plain), logits(plain, ids)
    said = logits(model, ids)
    plain.model = model.model
    for shared in (model, plain, model.model):
        with pytest.raises(UnsupportedMaskError, match="a Subclassed and a Qwen3ForCausalLM share this base model"):
            shared(ids)
    assert torch.equal(logits(model, ids, mask_pattern=STREAMING), said)
    plain.model = copy.deepcopy(model.model)
    assert torch.equal(logits(model, ids), said)  # it was put into another one, and taken out of there
    assert torch.equal(logits(plain, ids), native)


def test_two_models_that_say_nothing_share_a_base_model_as_upstream_does(plain: Any, ids: Tensor) -> None:
    other, native = copy.deepcopy(plain), logits(plain, ids)
    other.model = plain.model
    assert torch.equal(logits(plain, ids), native)
    assert torch.equal(logits(other, ids), native)
    plain.get_mask_pattern = lambda input_ids, **inputs: STREAMING
    with pytest.raises(UnsupportedMaskError, match="which of them is running is not known"):
        other(ids)


def test_a_wrapped_base_model_still_asks(plain: Any, said: Tensor, ids: Tensor) -> None:
    class Wrapper(torch.nn.Module):
        """What adapters do: a module of their own in the place of the base model, around it."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    model = subclassed(plain)
    model.model = Wrapper(model.model)
    assert torch.equal(logits(model, ids), said)


def test_a_base_model_whose_owner_is_gone_says_so(plain: Any, ids: Tensor) -> None:
    base = subclassed(plain).model
    with pytest.raises(UnsupportedMaskError, match="the Subclassed around this model, whose get_mask_pattern says it"):
        base(ids)
    alone = copy.deepcopy(plain).model  # its owner said nothing
    with torch.no_grad():
        native = plain.model(ids).last_hidden_state
        assert torch.equal(base(ids, mask_pattern="native").last_hidden_state, native)
        assert torch.equal(alone(ids).last_hidden_state, native)


def test_a_base_model_whose_owner_is_gone_remembers_a_method_of_the_instance(ids: Tensor) -> None:
    model = make_model()
    model.get_mask_pattern = lambda input_ids, **inputs: STREAMING
    base = model.model
    base(ids)
    del model
    with pytest.raises(UnsupportedMaskError, match="the Qwen3ForCausalLM around this model"):
        base(ids)


def test_a_model_is_freed_when_it_is_dropped() -> None:
    model = subclassed(make_model())
    gone = weakref.ref(model.model)
    gc.disable()  # nothing may wait for it: the weights of a model fill a device
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_base_model_saved_alone_is_saved_as_upstream_saves_it(plain: Any) -> None:
    saved = pickle.dumps(plain.model)
    assert b"Qwen3ForCausalLM" not in saved
    assert b"mask_patterns" not in saved


def test_a_base_model_saved_without_the_owner_that_says_its_mask_says_so(plain: Any, ids: Tensor) -> None:
    model = subclassed(plain)
    saved = pickle.dumps(model.model)
    assert b"lm_head" not in saved
    base = pickle.loads(saved)
    with pytest.raises(UnsupportedMaskError, match="the Subclassed around this model, whose get_mask_pattern says it"):
        base(ids)
    model.model = base
    assert torch.equal(logits(model, ids), logits(plain, ids, mask_pattern=STREAMING))
