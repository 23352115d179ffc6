"""FlashAttention is told the pattern in its arguments: through a reference of it, models say what they say on SDPA."""

from __future__ import annotations

import importlib.util
from typing import Any

import flash_reference
import pytest
import torch
from flash_reference import Calls
from small_models import make_model, static_cache
from torch import Tensor

from transformers import DynamicCache
from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Chunked,
    Document,
    MaskedCache,
    PerHead,
    PrefixLM,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
)


VERSIONS = ("flash_attention_2", "flash_attention_3")
WINDOW: dict[str, Any] = {
    "use_sliding_window": True,
    "sliding_window": 3,
    "max_window_layers": 1,
}  # full, then sliding
IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 2]])
LEFT = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
RIGHT = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
PATTERNS: dict[str, Any] = {
    "causal": Causal(),
    "bidirectional": Bidirectional(),
    "window": SlidingWindow(3),
    "symmetric window": SlidingWindow(3, symmetric=True),
    "documents": Causal() & Document(IDS),
    "documents in both directions": Document(IDS),
    "a window in documents": Document(SlidingWindow(2), IDS),
    "chunked": Chunked(4),
    "a prefix of everything": PrefixLM(9),
    "layers": {0: SlidingWindow(2), 1: Bidirectional()},
    "a native layer": {0: "native", 1: SlidingWindow(4)},
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return flash_reference.install(monkeypatch)


def both(version: str = "flash_attention_2", family: str = "qwen3", **settings: Any) -> tuple[Any, Any]:
    """The same model on FlashAttention and on SDPA."""
    flash = make_model(family, **settings)
    flash.config._attn_implementation = version  # upstream's check asks for a GPU
    return flash, make_model(family, attn_implementation="sdpa", **settings)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["whole", "left", "right"])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_means_the_same(name: str, mask: Tensor | None, version: str, ids: Tensor, calls: Calls) -> None:
    flash, sdpa = both(version)
    call = {"mask_pattern": PATTERNS[name], "attention_mask": mask, "use_cache": False}
    real = slice(None) if mask is None else mask.bool()
    close(flash(ids, **call).logits[real], sdpa(ids, **call).logits[real])
    assert len(calls.whole + calls.packed) == 2  # layers
    assert mask is None or len(calls.packed) == 2


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_upstreams_function_gets_the_arguments(version: str, ids: Tensor, calls: Calls) -> None:
    flash, _ = both(version)
    flash(ids, mask_pattern={0: SlidingWindow(3), 1: SlidingWindow(4, symmetric=True)})
    flash(ids, mask_pattern=Bidirectional())
    assert [call["window_size"] for call in calls.whole] == [(2, 2), (3, 3), (-1, -1), (-1, -1)]
    assert [call["causal"] for call in calls.whole] == [True, False, False, False]
    flash(ids, mask_pattern=Causal() & Document(IDS))
    assert [call["q"].tolist() for call in calls.packed] == [[0, 3, 5, 9, 10, 17, 18]] * 2
    assert len(calls.whole) == 4


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("pattern", [Causal(), SlidingWindow(5), Bidirectional()], ids=str)
def test_a_pattern_and_not_the_configs_window(pattern: Any, family: str, ids: Tensor, calls: Calls) -> None:
    flash, sdpa = both(family=family, **WINDOW)
    call = {"mask_pattern": pattern, "use_cache": False}
    close(flash(ids, **call).logits, sdpa(ids, **call).logits)
    call = {"mask_pattern": {1: "native", "default": pattern}, "use_cache": False}
    close(flash(ids, **call).logits, sdpa(ids, **call).logits)


def caches(kind: str, model: Any) -> Any:
    if kind == "static":
        return static_cache(model.config, 12)
    return {"dynamic": DynamicCache, "masked": MaskedCache}[kind]()


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["whole", "left", "right"])
@pytest.mark.parametrize("kind", ["dynamic", "static", "masked"])
@pytest.mark.parametrize("name", ["causal", "window", "documents", "chunked"])
def test_in_parts_behind_a_cache(name: str, kind: str, mask: Tensor | None, ids: Tensor, calls: Calls) -> None:
    flash, sdpa = both()
    pattern = {"documents": Causal() & Document(separator=int(ids[0, 2]))}.get(name, PATTERNS[name])
    cache, logits = caches(kind, flash), []
    for start, end in ((0, 4), (4, 7), (7, 8), (8, 9)):
        part = None if mask is None else mask[:, :end]
        call = {"mask_pattern": pattern, "attention_mask": part, "past_key_values": cache}
        logits.append(flash(ids[:, start:end], **call).logits)
    want = sdpa(ids, mask_pattern=pattern, attention_mask=mask, use_cache=False).logits
    real = slice(None) if mask is None else mask.bool()
    close(torch.cat(logits, 1)[real], want[real])
    assert len(calls.whole + calls.packed) == 8


@torch.no_grad()
def test_a_cache_that_keeps_a_window(ids: Tensor, calls: Calls) -> None:
    flash, sdpa = both(family="qwen2", **WINDOW)
    pattern = {0: Causal(), 1: SlidingWindow(3)}
    cache, logits = DynamicCache(config=flash.config), []
    for start, end in ((0, 5), (5, 7), (7, 8), (8, 9)):
        logits.append(flash(ids[:, start:end], mask_pattern=pattern, past_key_values=cache).logits)
    close(torch.cat(logits, 1), sdpa(ids, mask_pattern=pattern, use_cache=False).logits)
    assert not calls.packed


@pytest.mark.parametrize(
    "pattern", [SlidingWindow(3), PrefixLM(torch.tensor([9, 6])), "causal & document(separator=7)"]
)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
def test_generation(pattern: Any, settings: dict[str, Any], ids: Tensor, calls: Calls) -> None:
    made = [
        model.generate(
            ids,
            attention_mask=LEFT,
            mask_pattern=pattern,
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
        for model in both()
    ]
    assert torch.equal(*made)
    assert calls.packed


@pytest.mark.parametrize("name", ["window", "symmetric window", "a window in documents", "layers"])
def test_training(name: str, ids: Tensor, calls: Calls) -> None:
    gradients = []
    for model in both():
        out = model.train()(ids, mask_pattern=PATTERNS[name], attention_mask=LEFT)
        out.logits[LEFT.bool()].square().mean().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for got, want in zip(*gradients, strict=True):
        close(got, want)


def test_dropout_is_passed_on(ids: Tensor, calls: Calls) -> None:
    flash, _ = both(attention_dropout=0.25)
    flash.train()(ids, mask_pattern=SlidingWindow(3))
    flash(ids, mask_pattern=Causal() & Document(IDS))
    assert {call["dropout_p"] for call in calls.whole + calls.packed} == {0.25}


@torch.no_grad()
def test_position_ids_that_start_again_are_no_documents_unless_the_pattern_says_so(ids: Tensor, calls: Calls) -> None:
    flash, sdpa = both()
    call = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), "use_cache": False}
    for pattern in (Causal(), Causal() & Document()):
        close(flash(ids[:1], mask_pattern=pattern, **call).logits, sdpa(ids[:1], mask_pattern=pattern, **call).logits)
    assert len(calls.whole) == len(calls.packed) == 2


@pytest.mark.parametrize("pattern", [Causal(), SlidingWindow(3)], ids=str)
def test_lengths_of_the_callers_beside_a_pattern_are_refused(pattern: Any, ids: Tensor, calls: Calls) -> None:
    ends = torch.tensor([0, 4, 9], dtype=torch.int32)
    call = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 5, "max_length_k": 5}
    with pytest.raises(ValueError, match=r"`cu_seq_lens_q`: got a value beside a mask pattern.*Document\(\)"):
        both()[0](ids[:1], mask_pattern=pattern, **call)


REFUSED: dict[str, tuple[Any, str]] = {
    "sink and window": (Sink(1) | SlidingWindow(2), "a single run of keys"),
    "prefix": (PrefixLM(4), "not causal, a window, bidirectional, or documents"),
    "heads": (PerHead({0: Causal(), 1: SlidingWindow(2)}), "heads differ"),
    "one layer": ({0: Causal(), 1: Sink(2)}, "hides some token from itself"),
}


@pytest.mark.parametrize("version", [*VERSIONS, "kernels-community/flash-attn2"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused(name: str, version: str, ids: Tensor, calls: Calls) -> None:
    pattern, reason = REFUSED[name]
    with pytest.raises(UnsupportedMaskError, match=f"'{version}' cannot obey mask_pattern=.*{reason}.*'sdpa'"):
        both(version)[0](ids, mask_pattern=pattern)
    assert not calls.whole + calls.packed or name == "one layer"


def test_a_window_is_refused_where_the_kernel_has_none(
    ids: Tensor, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, **kwargs: Any) -> Any:
        raise AssertionError("it would show more than the window")

    import flash_attn  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", flash_attn_varlen_func)
    with pytest.raises(UnsupportedMaskError, match="cannot obey mask_pattern='sliding_window\\(3\\)'.*no window_size"):
        both()[0](ids, mask_pattern=SlidingWindow(3))


NO_GPU = not (torch.cuda.is_available() and importlib.util.find_spec("flash_attn"))


@torch.no_grad()
@pytest.mark.skipif(NO_GPU, reason="flash-attn runs on CUDA only, and is not installed with the tests")
@pytest.mark.parametrize("name", PATTERNS)
def test_on_a_gpu(name: str, ids: Tensor) -> None:
    call = {"mask_pattern": PATTERNS[name], "attention_mask": LEFT.cuda(), "use_cache": False}
    flash, sdpa = (model.to("cuda", torch.bfloat16) for model in both())
    got, want = (model(ids.cuda(), **call).logits[LEFT.bool()].float() for model in (flash, sdpa))
    torch.testing.assert_close(got, want, atol=0.2, rtol=0.05)
