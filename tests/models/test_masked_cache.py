"""A cache that drops what the mask hides for good gives the logits of one forward over everything, in less memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from small_models import BACKENDS, make_model
from torch import Tensor

from transformers import DynamicCache
from transformers.mask_patterns import (
    Causal,
    Chunked,
    Dilated,
    Document,
    MaskedCache,
    Pattern,
    PerHead,
    PrefixLM,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
)


STEPS = [70, 1, 1, 20, 1, 45, 1, 1, 30, 1, 29]
LENGTH = sum(STEPS)
STREAMING = Sink(4) | SlidingWindow(10)
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
PATTERNS: dict[str, Pattern] = {
    "sinks and a window": STREAMING,
    "chunks": Chunked(24),
    "dilated": Dilated(4, 3) | Sink(1),
    "heads": PerHead({0: STREAMING, 1: Chunked(24)}),
}
greedy: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def real(padding: Sequence[int]) -> Tensor:
    """Two rows behind so much padding each."""
    return (torch.arange(LENGTH)[None] >= torch.tensor(padding)[:, None]).long()


def in_steps(model: Any, tokens: Tensor, cache: Any, mask: Tensor | None = None, **said: Any) -> Tensor:
    parts, begin = [], 0
    for step in STEPS:
        end = begin + step
        seen = None if mask is None else mask[:, :end]
        now = {name: data[:, begin:end] if name == "position_ids" else data for name, data in said.items()}
        parts.append(model(tokens[:, begin:end], attention_mask=seen, past_key_values=cache, **now).logits)
        begin = end
    return torch.cat(parts, dim=1)


def held(cache: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


def close(got: Tensor, want: Tensor, where: Tensor | None = None) -> None:
    where = torch.ones(got.shape[:2], dtype=torch.bool) if where is None else where.bool()
    torch.testing.assert_close(got[where], want[where], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", [(0, 0), (0, 33), (75, 5)])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_logits_are_those_of_one_forward(backend: str, padding: tuple[int, int], tokens: Tensor) -> None:
    model, mask = make_model(attn_implementation=backend), real(padding)
    mask_or_none = mask if any(padding) else None
    cache = MaskedCache()
    got = in_steps(model, tokens, cache, mask_or_none, mask_pattern=STREAMING)
    want = model(tokens, attention_mask=mask_or_none, use_cache=False, mask_pattern=STREAMING).logits
    close(got, want, mask)
    assert max(held(cache)) < LENGTH // 2
    assert cache.get_seq_length() == LENGTH


@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_every_pattern_drops_what_it_hides_for_good(name: str, tokens: Tensor) -> None:
    model, mask, cache = make_model(), real((0, 33)), MaskedCache()
    got = in_steps(model, tokens, cache, mask, mask_pattern=PATTERNS[name])
    close(got, model(tokens, attention_mask=mask, use_cache=False, mask_pattern=PATTERNS[name]).logits, mask)
    assert max(held(cache)) < 120


@torch.no_grad()
def test_each_layer_drops_by_its_own_pattern(tokens: Tensor) -> None:
    model, cache = make_model(num_hidden_layers=3), MaskedCache()
    said = {0: STREAMING, 1: PrefixLM(3), 2: Causal()}
    close(in_steps(model, tokens, cache, mask_pattern=said), model(tokens, mask_pattern=said).logits)
    assert held(cache)[0] < LENGTH // 2
    assert held(cache)[1:] == [LENGTH, LENGTH]


DOCUMENTS: list[dict[str, Any]] = [  # of 50 tokens
    {"mask_pattern": Causal() & Document(), "position_ids": (torch.arange(LENGTH) % 50).expand(2, -1)},
    {"mask_pattern": Causal() & Document(separator=2)},
    {"mask_pattern": Document(Causal(), separator=2)},
]


@pytest.mark.parametrize("said", DOCUMENTS, ids=["positions", "separators", "inside"])
@torch.no_grad()
def test_documents_that_ended_are_dropped(said: dict[str, Any], tokens: Tensor) -> None:
    model, cache = make_model(), MaskedCache()
    tokens = tokens.where(torch.arange(LENGTH) % 50 != 49, 2)
    close(in_steps(model, tokens, cache, **said), model(tokens, use_cache=False, **said).logits)
    assert held(cache) == [LENGTH - 100] * 2  # it dropped last at 138, in the third document


@pytest.mark.parametrize(("pattern", "visible"), [(STREAMING, 13), (Sink(4) | SlidingWindow(400), 403), (Sink(2), 2)])
@torch.no_grad()
def test_memory_is_bounded(pattern: Pattern, visible: int) -> None:
    """What the next query may see of the past, and the tokens that come until a layer drops again; and no less."""
    model, cache = make_model(num_hidden_layers=1), MaskedCache()
    ids = torch.randint(3, 64, (1, 500 + 210))
    model(ids[:, :500], past_key_values=cache, mask_pattern=pattern)
    assert held(cache) == [500]
    sizes = []
    for t in range(500, ids.shape[1]):
        model(ids[:, t : t + 1], past_key_values=cache, mask_pattern=pattern)
        sizes += held(cache)
    assert sizes[0] == min(sizes) == visible + 1
    assert max(sizes) == visible + max(64, visible // 4)


@torch.no_grad()
def test_sinks_over_upstreams_sliding_cache_raise_and_over_this_one_are_right(tokens: Tensor) -> None:
    model = make_model(**SLIDING)
    with pytest.raises(UnsupportedMaskError, match="shows keys that the cache has dropped"):
        in_steps(model, tokens, DynamicCache(config=model.config), mask_pattern=STREAMING)
    cache = MaskedCache()
    close(in_steps(model, tokens, cache, mask_pattern=STREAMING), model(tokens, mask_pattern=STREAMING).logits)
    assert max(held(cache)) < LENGTH // 2


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
    ids=["greedy", "beams", "sampled", "beams returned"],
)
def test_generate(how: dict[str, Any], tokens: Tensor) -> None:
    model, mask = make_model(mask_pattern=STREAMING), real((0, 33))[:, :90]
    found = []
    for cache in (MaskedCache(), DynamicCache()):
        torch.manual_seed(3)
        sizes = {"max_new_tokens": 80, "min_new_tokens": 80, **greedy, **how}
        found.append(model.generate(tokens[:, :90], attention_mask=mask, past_key_values=cache, **sizes))
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(torch.stack(found[0].logits), torch.stack(found[1].logits), atol=2e-5, rtol=1e-5)
    assert max(held(found[0].past_key_values)) < 90
    assert max(held(found[1].past_key_values)) == 169


@pytest.mark.parametrize("candidates", ["prompt lookup", "assistant"])
def test_candidates_that_are_taken_back(candidates: str, tokens: Tensor) -> None:
    model = make_model(mask_pattern=STREAMING)
    assistant = make_model(num_hidden_layers=1)
    lookup = {"prompt_lookup_num_tokens": 4, "eos_token_id": 64}  # that never comes
    how = lookup if candidates == "prompt lookup" else {"assistant_model": assistant}
    prompt = tokens[:1, :40].repeat(1, 2)
    sizes = {"max_new_tokens": 110, "min_new_tokens": 110, **greedy}
    cache = MaskedCache()
    got = model.generate(prompt, past_key_values=cache, **(sizes | how))
    want = model.generate(prompt, **sizes)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=2e-5, rtol=1e-5)
    assert max(held(cache)) < 90


@torch.no_grad()
def test_a_copy_goes_on_by_itself_and_an_empty_one_starts_anew(tokens: Tensor) -> None:
    model, cache = make_model(mask_pattern=STREAMING), MaskedCache()
    want = model(tokens).logits
    in_steps(model, tokens[:, :-1], cache)
    copy = deepcopy(cache)
    for one in (copy, cache):
        close(model(tokens[:, -1:], past_key_values=one).logits, want[:, -1:])
    cache.reset()
    assert cache.get_seq_length() == 0
    close(in_steps(model, tokens, cache), want)


@torch.no_grad()
def test_cropping_back_to_what_was_dropped_is_refused(tokens: Tensor) -> None:
    model, cache = make_model(mask_pattern=STREAMING), MaskedCache()
    want = model(tokens).logits
    in_steps(model, tokens, cache)  # dropped last at 138
    cache.crop(-29)
    close(model(tokens[:, -29:], past_key_values=cache).logits, want[:, -29:])
    cache.crop(-70)
    assert cache.get_seq_length() == LENGTH - 70
    with pytest.raises(UnsupportedMaskError, match="shows keys that the cache has dropped"):
        model(tokens[:, -70:], past_key_values=cache)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mask_pattern": "sink(4) | sliding_window(90)"}, "shows keys that the cache has dropped"),
    ({"mask_pattern": "native"}, "this MaskedCache has dropped keys"),
    ({"mask_pattern": {0: "native", 1: "causal"}}, "some layers have 'native'"),
    ({"attention_mask": torch.ones(2, 1, 1, LENGTH + 1, dtype=torch.bool)}, "fits no 4D mask"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_what_may_see_dropped_keys_is_refused(backend: str, tokens: Tensor) -> None:
    model, cache = make_model(attn_implementation=backend), MaskedCache()
    in_steps(model, tokens, cache, mask_pattern=STREAMING)
    for said, message in REFUSED:
        with pytest.raises(UnsupportedMaskError, match=message):
            model(tokens[:, :1], past_key_values=deepcopy(cache), **said)


@torch.no_grad()
def test_without_a_pattern_it_keeps_all_as_upstreams_does(tokens: Tensor) -> None:
    model, cache, full = make_model(), MaskedCache(), DynamicCache()
    assert torch.equal(in_steps(model, tokens, cache), in_steps(model, tokens, full))
    assert held(cache) == held(full) == [LENGTH, LENGTH]
