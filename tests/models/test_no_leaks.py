"""Nothing of a pattern or its data outlives its call: the oracle is a fresh model that never heard of it."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from small_models import make_model, static_cache
from torch import Tensor

from transformers import AutoModelForCausalLM, Qwen3ForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.mask_patterns import (
    Causal,
    Document,
    MaskedCache,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
    use_mask_pattern,
)


STREAMING = Sink(1) | SlidingWindow(3)
WINDOW = SlidingWindow(2)
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [1] * 7])
WHOLE = (torch.ones(2, 1, 9, 9).tril() * torch.ones(9, 9).triu(-2)).bool()
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "text": lambda: {"mask_pattern": str(STREAMING)},
    "per layer": lambda: {"mask_pattern": {0: STREAMING, "default": "native"}},
    "bound data": lambda: {"mask_pattern": Causal() & Document(DOCUMENTS.clone())},
    "data": lambda: {"mask_pattern": Causal() & Document(), "mask_inputs": {"document_ids": DOCUMENTS.clone()}},
    "prefix": lambda: {"mask_pattern": PrefixLM(), "mask_inputs": {"prefix_lengths": torch.tensor([4, 2])}},
    "function": lambda: {"mask_pattern": Causal() & from_function(lambda b, h, q, k: q - k < 3)},
    "whole mask": lambda: {"attention_mask": WHOLE.clone()},
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
    "in chunks": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 2, "eos_token_id": 64},  # that never comes
}
every_call = pytest.mark.parametrize("name", CALLS)


def logits(model: Any, ids: Tensor, **call: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, **call).logits
    return found


def everything_said(model: Any) -> dict[str, Any]:
    """All that a model would save."""
    return {
        "config": model.config.to_dict(),
        "file": model.config.to_json_string(),
        "generation config": model.generation_config.to_dict(),
        "weights": list(model.state_dict()),
        "attributes": sorted(model.__dict__),
        "attributes of the base": sorted(model.model.__dict__),
        "attributes of attention": [sorted(layer.self_attn.__dict__) for layer in model.model.layers],
    }


@pytest.mark.parametrize("way", WAYS)
@every_call
def test_the_next_call_is_that_of_a_fresh_model(name: str, way: str, ids: Tensor) -> None:
    model, fresh = make_model(), make_model()
    rows = ids if way != "prompt lookup" else ids[:1]
    call = CALLS[name]()
    if way == "prompt lookup" and name in ("bound data", "data", "prefix", "whole mask"):
        call = {"mask_pattern": STREAMING}  # one row only
    got = model.generate(rows, **call, **(GREEDY | WAYS[way]))
    plain = fresh.generate(rows, **(GREEDY | WAYS[way]))
    assert not torch.equal(got, plain)
    assert everything_said(model) == everything_said(fresh)
    assert torch.equal(model.generate(rows, **(GREEDY | WAYS[way])), plain)
    assert torch.equal(logits(model, ids), logits(fresh, ids))


@every_call
def test_the_next_forward_and_backward_are_those_of_a_fresh_model(name: str, ids: Tensor) -> None:
    model, fresh = make_model().train(), make_model().train()
    model(ids, labels=ids, **CALLS[name]()).loss.backward()
    model.zero_grad()
    for one in (model, fresh):
        one(ids, labels=ids).loss.backward()
    for got, want in zip(model.parameters(), fresh.parameters(), strict=True):
        assert got.grad is not None
        assert torch.equal(got.grad, want.grad)


@every_call
def test_a_saved_copied_or_pickled_model_says_nothing_of_a_call(name: str, ids: Tensor, tmp_path: Path) -> None:
    model, fresh = make_model(), make_model()
    model.generate(ids, **CALLS[name](), **GREEDY)
    model(ids, **CALLS[name]())
    model.save_pretrained(tmp_path / "used")
    fresh.save_pretrained(tmp_path / "fresh")
    for file in (tmp_path / "fresh").iterdir():
        assert file.read_bytes() == (tmp_path / "used" / file.name).read_bytes()
    assert len(pickle.dumps(model)) == len(pickle.dumps(fresh))
    for twin in twins(model):
        assert everything_said(twin) == everything_said(model)
        assert torch.equal(logits(twin, ids), logits(fresh, ids))


def twins(model: Any) -> list[Any]:
    """Copies of a model in every way but a folder."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]


def test_copies_of_a_model_part_ways(ids: Tensor) -> None:
    model, fresh = make_model(mask_pattern=STREAMING), make_model()
    for twin in twins(model):
        assert torch.equal(logits(twin, ids), logits(fresh, ids, mask_pattern=STREAMING))
        twin.config.mask_pattern = WINDOW
        with use_mask_pattern(twin, "causal & ~sink(1)"):
            assert torch.equal(logits(model, ids), logits(fresh, ids, mask_pattern=STREAMING))
        assert torch.equal(logits(twin, ids), logits(fresh, ids, mask_pattern=WINDOW))
        assert torch.equal(model.generate(ids, **GREEDY), fresh.generate(ids, mask_pattern=STREAMING, **GREEDY))


class Windowed(Qwen3ForCausalLM):
    """A subclass that can be pickled."""

    def get_mask_pattern(self, input_ids: Tensor | None, **inputs: Any) -> Any:
        return self.width and SlidingWindow(self.width)

    width: int | None = 2


def test_copies_of_a_subclass_part_ways(ids: Tensor) -> None:
    fresh = make_model()
    model = Windowed(fresh.config).eval()
    model.load_state_dict(fresh.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.width = 4
        for one, width in ((model, 2), (twin, 4)):
            want = SlidingWindow(width)
            assert torch.equal(logits(one, ids), logits(fresh, ids, mask_pattern=want))
            assert torch.equal(one.generate(ids, **GREEDY), fresh.generate(ids, mask_pattern=want, **GREEDY))


CACHES: dict[str, Callable[[Any], Any]] = {  # a DynamicCache keeps its length when it is reset
    "static": lambda config: static_cache(config, 20),
    "masked": lambda _: MaskedCache(),
}


@pytest.mark.parametrize("kind", CACHES)
@every_call
def test_a_cache_forgets_what_it_is_told_to_forget(name: str, kind: str, ids: Tensor) -> None:
    model, fresh = make_model(), make_model()
    call = CALLS[name]()
    if kind == "masked" and name in ("whole mask", "per layer"):
        call = {"mask_pattern": STREAMING}
    cache = CACHES[kind](model.config)
    first = model.generate(ids, past_key_values=cache, **call, **GREEDY)
    for after in ({"mask_pattern": WINDOW}, {"mask_pattern": "causal & document(separator=5)"}, {}):
        cache.reset()
        got = model.generate(ids.flip(1), past_key_values=cache, **after, **GREEDY)
        own = CACHES[kind](model.config)
        assert torch.equal(got, fresh.generate(ids.flip(1), past_key_values=own, **after, **GREEDY))
    cache.reset()
    assert torch.equal(model.generate(ids, past_key_values=cache, **call, **GREEDY), first)


class Meeting(BaseStreamer):
    """A streamer at which threads meet before every token, so that their forwards mix."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier = barrier

    def put(self, value: Any) -> None:
        self.barrier.wait()

    def end(self) -> None:
        pass


@pytest.mark.parametrize("where", ["call", "block"])
@pytest.mark.parametrize("way", ["greedy", "static"])
def test_threads_generate_from_one_model_each_under_its_own_pattern(where: str, way: str, ids: Tensor) -> None:
    model, fresh = make_model(), make_model()
    ids = ids[:1]
    documents = {"document_ids": DOCUMENTS[:1]}
    said: list[tuple[Any, Any]] = [(STREAMING, None), (WINDOW, None), (Causal() & Document(), documents), (None, None)]
    barrier = Barrier(len(said), timeout=60)
    call = {**(GREEDY | WAYS[way])}

    def run(pattern: Any, inputs: Any) -> Tensor:
        streamer = Meeting(barrier)
        if where == "call" or pattern is None:
            found = model.generate(ids, streamer=streamer, mask_pattern=pattern, mask_inputs=inputs, **call)
        else:
            with use_mask_pattern(model, pattern, inputs):
                found = model.generate(ids, streamer=streamer, **call)
        assert isinstance(found, Tensor)
        return found

    with ThreadPoolExecutor(len(said)) as pool:
        found = list(pool.map(run, *zip(*said, strict=True)))
    want = [fresh.generate(ids, mask_pattern=pattern, mask_inputs=inputs, **call) for pattern, inputs in said]
    assert len({tuple(row[0].tolist()) for row in want}) == len(want)
    for got, row in zip(found, want, strict=True):
        assert torch.equal(got, row)


@pytest.mark.parametrize("training", [False, True])
def test_the_data_of_a_call_is_freed_with_it(training: bool, ids: Tensor) -> None:
    model = make_model().train(training)
    bound, given, whole = DOCUMENTS.clone(), DOCUMENTS.clone(), WHOLE.clone()
    held = [weakref.ref(tensor) for tensor in (bound, given, whole)]
    model(ids, labels=ids, mask_pattern=Document(bound))
    model(ids, labels=ids, mask_pattern=Document(), mask_inputs={"document_ids": given})
    model.eval().generate(ids, attention_mask=whole, **GREEDY)
    model.generate(ids, mask_pattern=Causal() & Document(bound), **GREEDY)
    with use_mask_pattern(model, Causal() & Document(), {"document_ids": given}):
        model.generate(ids, **GREEDY)
    del bound, given, whole
    gc.collect()
    assert [tensor() for tensor in held] == [None] * 3


def test_a_pattern_given_to_from_pretrained_stays_out_of_the_folder(ids: Tensor, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, mask_pattern=STREAMING)
    model.generate(ids, mask_pattern=WINDOW, **GREEDY)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.mask_pattern is None
    assert torch.equal(logits(again, ids), logits(make_model(), ids))
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["mask_pattern"] == str(STREAMING)
    assert "mask" not in (tmp_path / "saved/generation_config.json").read_text()
