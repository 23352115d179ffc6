"""Long rows on SDPA go tile by tile, and mean there what they mean to eager attention, which takes the whole mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import make_model, static_cache
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from transformers import DynamicCache
from transformers.mask_patterns import (
    Causal,
    Chunked,
    Document,
    MaskedCache,
    Pattern,
    PerHead,
    PrefixLM,
    Sink,
    SlidingWindow,
    attention,
    tiled_sdpa,
)


LENGTH = 1100
STREAMING = Sink(4) | SlidingWindow(50)
PATTERNS: dict[str, Any] = {
    "window": SlidingWindow(100),
    "sink and window": STREAMING,
    "prefix per row": PrefixLM(torch.tensor([300, 7])),
    "documents": Causal() & Document(torch.arange(LENGTH) // 130),
    "chunked": Chunked(256),
    "heads": PerHead({0: Causal(), 1: STREAMING}),
    "layers": {0: Causal() & ~SlidingWindow(3), 1: STREAMING},
}


class Calls:
    """How often attention went tile by tile."""

    count = 0


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, genuine = Calls(), tiled_sdpa.tiled_sdpa

    def counted(*args: Any) -> Tensor:
        calls.count += 1
        output: Tensor = genuine(*args)
        return output

    monkeypatch.setattr(attention, "tiled_sdpa", counted)
    return calls


@pytest.fixture
def long_ids() -> Tensor:
    return torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def both(**settings: Any) -> tuple[Any, Any]:
    """The same model on SDPA and on eager attention."""
    return make_model(attn_implementation="sdpa", **settings), make_model(attn_implementation="eager", **settings)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_means_the_same(name: str, long_ids: Tensor, tiled: Calls) -> None:
    ours, eager = both()
    call = {"mask_pattern": PATTERNS[name]}
    close(ours(long_ids, **call).logits, eager(long_ids, **call).logits)
    assert tiled.count == 2  # layers


@torch.no_grad()
@pytest.mark.parametrize("name", ["window", "heads", "prefix per row"])
def test_padding_anywhere(name: str, long_ids: Tensor, tiled: Calls) -> None:
    real = torch.ones_like(long_ids)
    real[0, :333], real[1, 900:], real[1, 400:410] = 0, 0, 0
    ours, eager = both()
    call = {"mask_pattern": PATTERNS[name], "attention_mask": real}
    close(ours(long_ids, **call).logits, eager(long_ids, **call).logits)
    assert tiled.count == 2


@torch.no_grad()
def test_causal_rows_with_padding(long_ids: Tensor, tiled: Calls) -> None:
    real = torch.ones_like(long_ids)
    real[0, :333] = 0
    ours, eager = both()
    call = {"mask_pattern": Causal(), "attention_mask": real}
    close(ours(long_ids, **call).logits, eager(long_ids, **call).logits)
    assert tiled.count == 2
    ours(long_ids, mask_pattern=Causal())  # upstream's own fast path
    assert tiled.count == 2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static", "masked"])
def test_chunks_behind_a_cache(kind: str, long_ids: Tensor, tiled: Calls) -> None:
    ours, eager = both()
    cache: Any = {
        "dynamic": DynamicCache,
        "static": lambda: static_cache(ours.config, 2 * LENGTH),
        "masked": MaskedCache,
    }[kind]()
    chunks = torch.cat([long_ids, long_ids], dim=1).split([500, 1700], dim=1)
    got = [ours(chunk, past_key_values=cache, mask_pattern=STREAMING).logits for chunk in chunks]
    want = eager(torch.cat(chunks, dim=1), mask_pattern=STREAMING, use_cache=False).logits
    close(torch.cat(got, dim=1), want)
    assert tiled.count >= 2


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_training_step(checkpointing: bool, long_ids: Tensor, tiled: Calls) -> None:
    grads = []
    for model in both():
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(long_ids, labels=long_ids, mask_pattern=PATTERNS["heads"], use_cache=False).loss.backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
    assert tiled.count == (4 if checkpointing else 2)
    for name, want in grads[1].items():
        assert float((grads[0][name] - want).abs().max() / want.abs().max()) < 1e-4, name


def test_dropout_takes_the_whole_mask(long_ids: Tensor, tiled: Calls) -> None:
    """So does a call for weights, which SDPA does not give."""
    model = make_model(attn_implementation="sdpa", attention_dropout=0.5).train()
    torch.manual_seed(0)
    first = model(long_ids, mask_pattern=STREAMING).logits
    assert not torch.equal(first, model(long_ids, mask_pattern=STREAMING).logits)
    torch.manual_seed(0)
    assert torch.equal(first, model(long_ids, mask_pattern=STREAMING).logits)
    assert tiled.count == 0
    close(model.eval()(long_ids, mask_pattern=STREAMING).logits, make_model()(long_ids, mask_pattern=STREAMING).logits)
    assert tiled.count > 0


@torch.no_grad()
def test_bf16(long_ids: Tensor, tiled: Calls) -> None:
    """As close to float32 as the whole mask is in bfloat16."""
    exact = make_model()(long_ids, mask_pattern=STREAMING).logits
    ours, eager = (model.bfloat16() for model in both())
    off = [float((m(long_ids, mask_pattern=STREAMING).logits - exact).abs().mean()) for m in (ours, eager)]
    assert off[0] < 1.5 * off[1]
    assert tiled.count == 4


@torch.no_grad()
def test_generation_after_a_long_prompt(long_ids: Tensor, tiled: Calls) -> None:
    ours, eager = both()
    made = [
        model.generate(long_ids, mask_pattern=STREAMING, max_new_tokens=4, do_sample=False) for model in (ours, eager)
    ]
    assert torch.equal(*made)
    assert tiled.count == 2


def test_short_rows_take_the_whole_mask(ids: Tensor, tiled: Calls) -> None:
    pattern: Pattern = STREAMING
    make_model(attn_implementation="sdpa")(ids, mask_pattern=pattern)
    assert tiled.count == 0


def loss_of_embeddings(model: Any, embeds: Tensor) -> Tensor:
    loss: Tensor = model(inputs_embeds=embeds, mask_pattern=STREAMING, use_cache=False).logits.pow(2).mean()
    return loss


def test_transforms_of_functions_take_the_whole_mask(long_ids: Tensor, tiled: Calls) -> None:
    ours, eager = both(num_hidden_layers=1)
    embeds = eager.get_input_embeddings()(long_ids).detach().requires_grad_()
    (want,) = torch.autograd.grad(loss_of_embeddings(eager, embeds), embeds)
    got = torch.func.grad(lambda x: loss_of_embeddings(ours, x))(embeds.detach())
    torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-3)
    batched = torch.func.vmap(lambda x: loss_of_embeddings(ours, x))(embeds.detach()[None])
    close(batched[0], loss_of_embeddings(eager, embeds).detach())
    assert tiled.count == 0


def test_derivatives_of_derivatives_with_the_kernel_that_has_them(long_ids: Tensor, tiled: Calls) -> None:
    """That kernel is chosen with `sdpa_kernel`, as where there is no pattern; the fast one says that it has none."""
    found = []
    for model in both(num_hidden_layers=1):
        embeds = model.get_input_embeddings()(long_ids).detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            (first,) = torch.autograd.grad(loss_of_embeddings(model, embeds), embeds, create_graph=True)
            found.append(torch.autograd.grad(first.pow(2).sum(), embeds)[0])
    scale = found[1].abs().max()
    torch.testing.assert_close(found[0] / scale, found[1] / scale, atol=1e-3, rtol=0)
    assert tiled.count == 0


def test_derivatives_of_derivatives_are_refused_else(long_ids: Tensor, tiled: Calls) -> None:
    model = both(num_hidden_layers=1)[0]
    embeds = model.get_input_embeddings()(long_ids).detach().requires_grad_()
    (first,) = torch.autograd.grad(loss_of_embeddings(model, embeds), embeds, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.pow(2).sum(), embeds)
    assert tiled.count == 1
