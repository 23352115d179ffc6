"""What is known of the tokens in a cache follows what is done to the cache, or is known no more."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_model, static_cache
from torch import Tensor

from transformers import DynamicCache
from transformers.mask_patterns import Causal, Document, ParallelContext, Pattern, PrefixLM, UnsupportedMaskError


SEPARATOR = 5
PATTERN = Causal() & Document(separator=SEPARATOR)
TOKENS = st.sampled_from([SEPARATOR, 6, 7])
CHANGES = ["nothing", "reorder", "repeat", "select", "crop", "empty", "copy", "pickle"]
UNKNOWN = "`input_ids`: got nothing"


def whole(model: Any, rows: list[list[int]], pattern: Pattern = PATTERN, **call: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor(rows), mask_pattern=pattern, use_cache=False, **call).logits
    return logits


def forward(model: Any, tokens: list[list[int]], cache: Any, pattern: Any = PATTERN, **call: Any) -> Tensor:
    with torch.no_grad():
        out = model(torch.tensor(tokens), past_key_values=cache, mask_pattern=pattern, **call)
    logits: Tensor = out.logits
    return logits


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)


@given(data=st.data())
@settings(max_examples=60)
def test_tokens_follow_whatever_is_done_to_the_cache(data: st.DataObject) -> None:
    """A plain list of lists is the oracle of which tokens the cache holds."""
    model, cache, rows = make_model(), DynamicCache(), [[], []]  # type: ignore[var-annotated]
    for _ in range(data.draw(st.integers(2, 6))):
        new = [data.draw(st.lists(TOKENS, min_size=2, max_size=2)) for _ in rows]
        rows = [row + more for row, more in zip(rows, new, strict=True)]
        close(forward(model, new, cache), whole(model, rows)[:, -2:])
        match data.draw(st.sampled_from(CHANGES)):
            case "reorder":
                order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=len(rows), max_size=len(rows)))
                cache.reorder_cache(torch.tensor(order))
                rows = [rows[i] for i in order]
            case "repeat":
                cache.batch_repeat_interleave(repeats=2)
                rows = [row for row in rows for _ in range(2)]
            case "select":
                chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3))
                cache.batch_select_indices(torch.tensor(chosen))
                rows = [rows[i] for i in chosen]
            case "crop":
                gone = data.draw(st.integers(1, len(rows[0]) - 1))
                cache.crop(-gone)
                rows = [row[:-gone] for row in rows]
            case "empty":
                cache, rows = DynamicCache(), [[] for _ in rows]
            case "copy":
                cache = copy.deepcopy(cache)
            case "pickle":
                cache = pickle.loads(pickle.dumps(cache))


@pytest.mark.parametrize("kind", ["static", "sliding"])
def test_other_caches_are_followed_too(kind: str) -> None:
    sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    model = make_model(**(sliding if kind == "sliding" else {}))
    pattern = Document(separator=SEPARATOR) & Pattern.parse("sliding_window(3)")
    static = static_cache(model.config, 16)
    cache = static if kind == "static" else DynamicCache(config=model.config)
    rows = [[6, 5, 7, 8], [9, 6, 5, 5]]
    close(forward(model, rows, cache, pattern), whole(model, rows, pattern))
    cache.reorder_cache(torch.tensor([1, 0]))
    rows = [[*rows[1], 7], [*rows[0], 5]]
    close(forward(model, [[7], [5]], cache, pattern), whole(model, rows, pattern)[:, -1:])
    close(forward(model, [[6], [6]], cache, pattern), whole(model, [[*row, 6] for row in rows], pattern)[:, -1:])
    if kind == "static":
        cache.reset()
        close(forward(model, rows, cache, pattern), whole(model, rows, pattern))


class OwnCache(DynamicCache):
    """Has methods of its own, of which one goes through another."""

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)


def test_a_cache_class_of_one_s_own_is_told_once() -> None:
    model, cache = make_model(), OwnCache()
    forward(model, [[6, 5], [7, 8], [5, 9]], cache)
    cache.batch_select_indices(torch.tensor([2, 0, 1]))  # not its own inverse: twice would show
    got = forward(model, [[7], [7], [7]], cache)
    close(got, whole(model, [[5, 9, 7], [6, 5, 7], [7, 8, 7]])[:, -1:])


def _native(model: Any, cache: Any) -> None:
    forward(model, [[6], [6]], cache, "native")


def _embeds(model: Any, cache: Any) -> None:
    with torch.no_grad():
        model(inputs_embeds=torch.randn(2, 1, 32), past_key_values=cache, mask_pattern=Causal())


def _cut_and_filled(model: Any, cache: Any) -> None:
    cache.crop(-1)
    _native(model, cache)


def _reset_and_filled(model: Any, cache: Any) -> None:
    cache.reset()
    for layer in cache.layers:
        if layer.keys is not None:  # some releases zero them, some drop them
            layer.keys, layer.values = layer.keys[..., :0, :], layer.values[..., :0, :]
    forward(model, [[9, 9, 9], [9, 9, 9]], cache, "native")


@pytest.mark.parametrize("meanwhile", [_native, _embeds, _cut_and_filled, _reset_and_filled])
def test_tokens_that_were_not_seen_are_not_guessed(meanwhile: Any) -> None:
    model, cache = make_model(), DynamicCache()
    forward(model, [[6, 5, 7], [7, 5, 8]], cache)
    meanwhile(model, cache)
    with pytest.raises(ValueError, match=UNKNOWN):
        forward(model, [[7], [7]], cache)


def test_tokens_that_are_not_known_can_be_passed() -> None:
    model, cache, rows = make_model(), DynamicCache(), [[6, 5, 7, 8], [7, 6, 5, 8]]
    forward(model, [row[:3] for row in rows], cache, Causal())
    elsewhere = DynamicCache()
    for index, layer in enumerate(cache.layers):
        elsewhere.update(layer.keys, layer.values, index)
    last = [[8], [8]]
    pattern = Causal() & Document(separator=8)
    with pytest.raises(ValueError, match=f"{UNKNOWN}.*It covers everything so far"):
        forward(model, last, copy.deepcopy(elsewhere), pattern)
    got = forward(model, last, elsewhere, pattern, mask_inputs={"input_ids": torch.tensor(rows)})
    close(got, whole(model, rows, pattern)[:, -1:])


def test_what_the_caller_writes_into_its_tensors_later_was_not_seen() -> None:
    model, cache, ids = make_model(), DynamicCache(), torch.tensor([[6, 5, 7]])
    model(ids, past_key_values=cache, mask_pattern=PATTERN)
    ids.fill_(9)
    close(forward(model, [[7]], cache), whole(model, [[6, 5, 7, 7]])[:, -1:])


def test_positions_that_restart_follow_the_rows_too() -> None:
    model, cache, pattern = make_model(), DynamicCache(), Causal() & Document()
    places = torch.tensor([[0, 1, 0], [0, 1, 2]])
    forward(model, [[6, 7, 8], [9, 8, 7]], cache, pattern, position_ids=places)
    cache.reorder_cache(torch.tensor([1, 0]))
    got = forward(model, [[6], [6]], cache, pattern, position_ids=torch.tensor([[3], [1]]))
    full = {"position_ids": torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]])}
    close(got, whole(model, [[9, 8, 7, 6], [6, 7, 8, 6]], pattern, **full)[:, -1:])


def test_the_memory_goes_with_its_cache() -> None:
    model, cache = make_model(), DynamicCache()
    forward(model, [[6, 5, 7]], cache)
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None  # at once, not when cycles are looked for
    finally:
        gc.enable()


def test_a_prefix_does_not_grow() -> None:
    model, pattern = make_model(vocab_size=12), PrefixLM(until=SEPARATOR)
    ids, mask = torch.tensor([[6, 7, 8, 9], [6, 5, 7, 8]]), torch.ones(2, 4, dtype=torch.long)
    call = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, "sequence_bias": {(SEPARATOR,): 9.0}}
    by_data = PrefixLM(torch.tensor([0, 2]))
    for way in ({}, {"use_cache": False}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        found = []
        for said in (pattern, by_data):
            torch.manual_seed(0)
            found.append(model.generate(ids, attention_mask=mask, mask_pattern=said, **call, **way))
        assert (found[0][:, 4:] == SEPARATOR).any()
        assert torch.equal(*found)
    documents = torch.tensor([[0, 0, 1, 1]])
    within, causal = (Document(inner, documents) for inner in (pattern, Causal()))
    found = [model.generate(ids[:1], attention_mask=mask[:1], mask_pattern=p, **call) for p in (within, causal)]
    assert torch.equal(*found)
    cache = DynamicCache()
    forward(model, [[6, 7, 8]], cache, pattern)
    with pytest.raises(UnsupportedMaskError, match="not cache-safe here: position 0 is in the cache"):
        forward(model, [[SEPARATOR]], cache, pattern)


def test_a_generated_separator_that_makes_another_task_is_refused() -> None:
    model, pattern = make_model(vocab_size=12), ParallelContext(separator=SEPARATOR)
    ids = torch.tensor([[6, 5, 7, 8]])
    call = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, "sequence_bias": {(SEPARATOR,): 50.0}}
    with pytest.raises(UnsupportedMaskError, match="the new tokens change whether position"):
        model.generate(ids, attention_mask=torch.ones_like(ids), mask_pattern=pattern, **call)
