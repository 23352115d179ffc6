"""Decoding token by token, where what patterns show is asked ahead: every logit is that of one whole forward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import make_model, static_cache
from torch import Tensor

from transformers import DynamicCache
from transformers.mask_patterns import (
    Causal,
    Chunked,
    Dilated,
    Document,
    GlobalTokens,
    MaskedCache,
    Pattern,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
)
from transformers.mask_patterns import steps as steps_of_decoding
from transformers.mask_patterns.forward import Forward


PROMPT, NEW, SEPARATOR = 6, 8, 5
IDS = torch.tensor([[6, 7, 5, 8, 9, 10, 3, 4, 7, 11, 9, 3, 4, 6], [9, 8, 7, 9, 8, 5, 3, 7, 6, 8, 4, 6, 7, 3]])
REAL = torch.ones_like(IDS)
REAL[1, :2] = 0
OWN = torch.tensor([[0, 0, 0, 1, 1, 1], [9, 9, 0, 0, 1, 1]])
PATTERNS: dict[str, Any] = {
    "causal": Causal(),
    "window": SlidingWindow(3),
    "sinks and window": Sink(2) | SlidingWindow(3),
    "few keys between many": Causal() & ~SlidingWindow(2) | SlidingWindow(1),
    "nothing": Sink(0),
    "dilated": Dilated(3, 2),
    "chunks": Causal() & Chunked(4),
    "prefix": PrefixLM(4),
    "prefix up to a token": PrefixLM(until=SEPARATOR),
    "documents": Causal() & Document(separator=SEPARATOR),
    "inside documents": Document(Sink(1) | SlidingWindow(2), separator=SEPARATOR),
    "shared prefix": SharedPrefix(separator=SEPARATOR),
    "global tokens": Causal() & (GlobalTokens(token=SEPARATOR) | SlidingWindow(2)),
    "documents of the caller": Causal() & Document(OWN),
    "per head": PerHead({0: Causal(), 1: SlidingWindow(2)}),
    "per layer": {"0": Causal(), "default": Sink(1) | SlidingWindow(2)},
}
GONE_ON = torch.cat([OWN, OWN[:, -1:].expand(-1, NEW)], dim=1)
WHOLE = PATTERNS | {"documents of the caller": Causal() & Document(GONE_ON)}
CACHES: dict[str, Any] = {"dynamic": DynamicCache, "masked": MaskedCache}


def whole(model: Any, ids: Tensor, real: Tensor, pattern: Any, **call: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids, attention_mask=real, mask_pattern=pattern, use_cache=False, **call).logits
    return logits


def decode(model: Any, ids: Tensor, real: Tensor, pattern: Any, cache: Any, **call: Any) -> Iterator[Tensor]:
    """The logits of every new token, one forward each."""
    with torch.no_grad():
        call |= {"mask_pattern": pattern, "past_key_values": cache}
        model(ids[:, :PROMPT], attention_mask=real[:, :PROMPT], **call)
        for end in range(PROMPT + 1, ids.shape[1] + 1):
            yield model(ids[:, end - 1 : end], attention_mask=real[:, :end], **call).logits[:, 0]


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_token_sees_what_it_sees_in_a_whole_forward(name: str, kind: str, backend: str, padded: bool) -> None:
    model, pattern = make_model(attn_implementation=backend), PATTERNS[name]
    real = REAL if padded else torch.ones_like(REAL)
    steps = torch.stack(list(decode(model, IDS, real, pattern, CACHES[kind]())), dim=1)
    close(steps, whole(model, IDS, real, WHOLE[name])[:, PROMPT:])


@pytest.mark.parametrize("name", PATTERNS)
def test_what_was_asked_ahead_ends_and_is_asked_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_of_decoding, "AHEAD", 3)
    model = make_model()
    steps = torch.stack(list(decode(model, IDS, REAL, PATTERNS[name], DynamicCache())), dim=1)
    close(steps, whole(model, IDS, REAL, WHOLE[name])[:, PROMPT:])


def test_a_static_cache_too() -> None:
    model, pattern = make_model(), PATTERNS["sinks and window"]
    cache = static_cache(model.config, 40)
    steps = torch.stack(list(decode(model, IDS, torch.ones_like(REAL), pattern, cache)), dim=1)
    close(steps, whole(model, IDS, torch.ones_like(REAL), pattern)[:, PROMPT:])


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """After `ask.stop()`, no pattern may be asked anew."""

    class Ask:
        def stop(self) -> None:
            def asked(*_: Any) -> None:
                raise AssertionError("a pattern was asked anew")

            monkeypatch.setattr(Forward, "patterns", asked)

    return Ask()


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in ("shared prefix", "global tokens")])
def test_a_pattern_is_asked_once_for_many_tokens(name: str, no_questions: Any) -> None:
    """But where the tokens say so: none of the last ones here is the separator."""
    steps = decode(make_model(), IDS, REAL, PATTERNS[name], DynamicCache())
    next(steps)
    no_questions.stop()
    assert len(list(steps)) == NEW - 1


@pytest.mark.parametrize("name", ["documents", "inside documents", "shared prefix", "global tokens"])
def test_a_token_that_the_pattern_looks_for_changes_what_comes_after_it(name: str) -> None:
    model, pattern, ids = make_model(), PATTERNS[name], IDS.clone()
    ids[0, PROMPT + 3], ids[1, PROMPT + 5] = SEPARATOR, SEPARATOR
    steps = torch.stack(list(decode(model, ids, REAL, pattern, DynamicCache())), dim=1)
    close(steps, whole(model, ids, REAL, pattern)[:, PROMPT:])


def go_on(model: Any, cache: Any, tokens: Tensor, past: int, pattern: Any) -> Tensor:
    """The logits of tokens in one forward behind `past` cached ones."""
    with torch.no_grad():
        logits: Tensor = model(tokens, past_key_values=cache, mask_pattern=pattern).logits
    assert cache.get_seq_length() == past + tokens.shape[1]
    return logits


def test_tokens_taken_back_and_replaced() -> None:
    """As assisted decoding does it, with a separator among the new ones."""
    model, pattern, ones = make_model(), PATTERNS["documents"], torch.ones_like(REAL)
    cache = DynamicCache()
    for _ in decode(model, IDS, ones, pattern, cache):
        pass
    cache.crop(-5)
    other = torch.cat([IDS[:, :9], torch.tensor([[4, SEPARATOR, 3, 6], [SEPARATOR, 7, 6, 8]])], dim=1)
    want = whole(model, other, torch.ones_like(other), pattern)
    close(go_on(model, cache, other[:, 9:10], 9, pattern), want[:, 9:10])
    close(go_on(model, cache, other[:, 10:12], 10, pattern), want[:, 10:12])
    close(go_on(model, cache, other[:, 12:], 12, pattern), want[:, 12:])


def test_another_pattern_in_between() -> None:
    """Each forward is obeyed, the next ones too; layers below see what each of their queries saw."""
    model, ones = make_model(num_hidden_layers=1), torch.ones_like(REAL)
    cache = DynamicCache()
    steps = decode(model, IDS[:, :-2], ones[:, :-2], SlidingWindow(3), cache)
    for _ in steps:
        pass
    past = IDS.shape[1] - 2
    close(go_on(model, cache, IDS[:, -2:-1], past, Sink(1)), whole(model, IDS, ones, Sink(1))[:, -2:-1])
    want = whole(model, IDS, ones, SlidingWindow(3))
    close(go_on(model, cache, IDS[:, -1:], past + 1, SlidingWindow(3)), want[:, -1:])


def test_tokens_that_came_without_a_pattern_are_not_taken_for_known() -> None:
    model, pattern, cache = make_model(), PATTERNS["documents"], DynamicCache()
    for _ in decode(model, IDS, torch.ones_like(REAL), pattern, cache):
        pass
    with torch.no_grad():
        model(torch.tensor([[SEPARATOR]] * 2), past_key_values=cache)
    with pytest.raises(ValueError, match="input_ids"):
        model(IDS[:, :1], past_key_values=cache, mask_pattern=pattern)


def test_data_written_over_between_two_tokens_is_refused() -> None:
    """As it is where the pattern is asked: tokens in the cache had other data."""
    model, data = make_model(), OWN.clone()
    call: dict[str, Any] = {"mask_inputs": {"document_ids": data}}
    steps = decode(model, IDS, torch.ones_like(REAL), Causal() & Document(), DynamicCache(), **call)
    next(steps)
    next(steps)
    data[0, 0] = 7
    with pytest.raises(ValueError, match="document_ids"):
        next(steps)


def test_another_mask_of_real_tokens_is_read() -> None:
    model, ones = make_model(num_hidden_layers=1), torch.ones_like(REAL)
    cache = DynamicCache()
    for _ in decode(model, IDS[:, :-1], ones[:, :-1], SlidingWindow(3), cache):
        pass
    hidden = ones.clone()
    hidden[:, -2] = 0
    with torch.no_grad():
        call: dict[str, Any] = {"position_ids": torch.tensor([[IDS.shape[1] - 1]]), "mask_pattern": SlidingWindow(3)}
        got = model(IDS[:, -1:], attention_mask=hidden, past_key_values=cache, **call).logits
        positions = torch.arange(IDS.shape[1])[None]
        want = model(IDS, attention_mask=hidden, position_ids=positions, mask_pattern=SlidingWindow(3)).logits
    close(got[:, -1], want[:, -1])


@pytest.mark.parametrize("pattern", [Causal() & Document(separator=SEPARATOR), Sink(1) | SlidingWindow(2)])
def test_rows_that_change_places(pattern: Pattern) -> None:
    model, cache = make_model(), DynamicCache()
    steps = decode(model, IDS[:, :-1], REAL[:, :-1], pattern, cache)
    for _ in steps:
        pass
    swap = torch.tensor([1, 0])
    cache.reorder_cache(swap)
    ids, real = IDS[swap], REAL[swap]
    with torch.no_grad():
        got = model(ids[:, -1:], attention_mask=real, past_key_values=cache, mask_pattern=pattern).logits
    close(got[:, -1], whole(model, ids, real, pattern)[:, -1])


def test_a_copied_or_saved_cache_keeps_no_pattern() -> None:
    cache = DynamicCache()
    for _ in decode(make_model(), IDS[:, :-1], REAL[:, :-1], SlidingWindow(3), cache):
        pass
    assert b"sliding" not in pickle.dumps(cache).lower().replace(b"is_sliding", b"")
    model, copied = make_model(), copy.deepcopy(cache)
    with torch.no_grad():
        for kept in (cache, copied):
            call: dict[str, Any] = {"past_key_values": kept, "mask_pattern": SlidingWindow(3)}
            got = model(IDS[:, -1:], attention_mask=REAL, **call).logits
            close(got[:, -1], whole(model, IDS, REAL, SlidingWindow(3))[:, -1])


def behind_two_tokens(pattern: Pattern, **call: Any) -> tuple[Any, dict[str, Any]]:
    """A model, and the call that brings it the third token behind a prompt."""
    model, cache = make_model(), DynamicCache()
    steps = decode(model, IDS, torch.ones_like(REAL), pattern, cache, **call)
    next(steps)
    next(steps)
    return model, {"input_ids": IDS[:, PROMPT + 2 : PROMPT + 3], "past_key_values": cache, "mask_pattern": pattern}


def test_data_of_a_pattern_written_over_between_two_tokens_is_refused() -> None:
    data = OWN.clone()
    model, call = behind_two_tokens(Causal() & Document(data))
    data[0, 0] = 7
    with pytest.raises(ValueError, match="document_ids"):
        model(**call)


def test_data_of_another_dtype_is_refused_at_any_token() -> None:
    model, call = behind_two_tokens(Causal() & Document(), mask_inputs={"document_ids": OWN})
    for wrong in (OWN.float(), OWN.tolist()):
        with pytest.raises(ValueError, match="document_ids"):
            model(mask_inputs={"document_ids": wrong}, **call)


@pytest.mark.parametrize("prepared", [{"full_attention": torch.zeros(2, 1, 1, PROMPT + 3)}, [[1] * (PROMPT + 3)] * 2])
def test_masks_beside_a_pattern_are_refused_at_any_token(prepared: Any) -> None:
    model, call = behind_two_tokens(SlidingWindow(3))
    with pytest.raises(UnsupportedMaskError, match="prepared ahead"):
        model(attention_mask=prepared, **call)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_no_token_is_traced() -> None:
    """A trace would keep what this one token sees for all that follow."""
    model, call = behind_two_tokens(SlidingWindow(3))
    ids = call.pop("input_ids")

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.model(ids, **call).logits
            return logits

    with torch.no_grad(), pytest.raises(UnsupportedMaskError, match="trace"):
        torch.jit.trace(Step(), ids, check_trace=False)


def test_a_token_for_which_a_static_cache_has_no_room() -> None:
    model = make_model()
    cache = static_cache(model.config, PROMPT + 2)
    steps = decode(model, IDS, torch.ones_like(REAL), SlidingWindow(3), cache)
    next(steps)
    next(steps)
    with pytest.raises(UnsupportedMaskError, match="StaticCache"):
        next(steps)


def test_a_layer_fewer_between_two_tokens() -> None:
    """The same config object says another model now, which the mapping of layers does not fit."""
    model = make_model()
    steps = decode(model, IDS, REAL, PATTERNS["per layer"] | {"1": SlidingWindow(2)}, DynamicCache())
    next(steps)
    next(steps)
    model.config.num_hidden_layers = 1
    with pytest.raises(ValueError, match="numbers from 0 to 0"):
        next(steps)
