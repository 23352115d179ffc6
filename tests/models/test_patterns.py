"""A pattern means the same on every model, backend, padding and cache: what `visible` says, in the plain reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import plain_reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import BACKENDS, DENSE, EXPERTS, make_model, static_cache
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    from_function,
)
from transformers.mask_patterns.takers import layer_kinds


WIDTHS = torch.tensor([1, 2, 4, 9])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 2, 2], [5, 5, 5, 5, 3, 3, 3, 3, 3]])
PATTERNS: dict[str, Pattern] = {
    "causal": Causal(),
    "bidirectional": Bidirectional(),
    "window": SlidingWindow(3),
    "symmetric window": SlidingWindow(2, symmetric=True),
    "sink": Sink(2),
    "sink and window": Sink(1) | SlidingWindow(2),
    "prefix": PrefixLM(3),
    "prefix per row": PrefixLM(torch.tensor([2, 5])),
    "documents": Causal() & Document(DOCUMENTS),
    "nothing at first": Causal() & ~SlidingWindow(2),
    "function per head": from_function(lambda b, h, q, k: (k <= q) & (q - k < WIDTHS[h])),
}
CACHE_SAFE = [
    "causal",
    "window",
    "sink",
    "sink and window",
    "prefix",
    "documents",
    "nothing at first",
    "function per head",
]
VARIED = ["sink and window", "prefix per row", "nothing at first", "function per head"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def brute_force(pattern: Pattern, real: Tensor) -> Tensor:
    """The grid over slots, one `visible(q, k)` at a time, bool `(batch, 4, slots, slots)`."""
    batch, slots = real.shape
    seen = torch.zeros(batch, 4, slots, slots, dtype=torch.bool)
    for b in range(batch):
        tokens = real[b].nonzero()[:, 0].tolist()
        for h in range(4):
            for q, q_slot in enumerate(tokens):
                for k, k_slot in enumerate(tokens):
                    seen[b, h, q_slot, k_slot] = bool(pattern.visible(q, k, b, h))
    return seen


def expected(model: Any, ids: Tensor, pattern: Pattern, real: Tensor | None = None) -> Tensor:
    real = torch.ones(ids.shape, dtype=torch.bool) if real is None else real
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return plain_reference.logits(model, ids, brute_force(pattern, real), positions)


def close(got: Tensor, want: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(got.double(), want.double(), atol=atol, rtol=1e-5)


@pytest.mark.parametrize(("family", "name"), [*product(DENSE, PATTERNS), *product(EXPERTS, VARIED)])
@every_backend
def test_a_pattern_is_obeyed(family: str, name: str, backend: str, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend)
    with torch.no_grad():
        close(model(ids, mask_pattern=PATTERNS[name]).logits, expected(model, ids, PATTERNS[name]))


@every_backend
@pytest.mark.parametrize("name", VARIED)
def test_a_pattern_is_obeyed_in_bf16(backend: str, name: str, ids: Tensor) -> None:
    model = make_model(dtype=torch.bfloat16, attn_implementation=backend)
    with torch.no_grad():
        got = model(ids, mask_pattern=PATTERNS[name]).logits
    torch.testing.assert_close(got.double(), expected(model, ids, PATTERNS[name]), atol=0.15, rtol=0.03)


@every_backend
@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "documents"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(backend: str, name: str, side: str, ids: Tensor) -> None:
    model, pattern = make_model(attn_implementation=backend), PATTERNS[name]
    pad = torch.zeros(2, 3, dtype=torch.long)
    real = torch.ones(2, 12, dtype=torch.bool)
    real[:, :3] = False
    padded = torch.cat([pad, ids], dim=1)
    if side == "right":
        padded, real = torch.cat([ids, pad], dim=1), real.flip(-1)
    with torch.no_grad():
        alone = model(ids, mask_pattern=pattern).logits
        beside = model(padded, attention_mask=real.long(), mask_pattern=pattern).logits
    close(beside[real].view_as(alone), alone)
    close(beside, expected(model, padded, pattern, real))  # padded queries too: they see nothing


@given(data=st.data())
@settings(max_examples=25)
def test_any_contiguous_padding_of_any_row_changes_nothing(data: st.DataObject) -> None:
    pattern = PATTERNS[data.draw(st.sampled_from([name for name in PATTERNS if name != "documents"]))]
    model = make_model(attn_implementation=data.draw(st.sampled_from(BACKENDS)))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=2))
    lead = [data.draw(st.integers(0, 7 - n)) for n in lengths]
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(sum(lengths)))
    slots = torch.arange(7)
    real = torch.stack([(slots >= a) & (slots < a + n) for a, n in zip(lead, lengths, strict=True)])
    with torch.no_grad():
        got = model(ids, attention_mask=real, mask_pattern=pattern).logits
    close(got[real], expected(model, ids, pattern, real)[real])


@every_backend
@pytest.mark.parametrize("name", CACHE_SAFE)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
def test_a_cache_changes_nothing(backend: str, name: str, padded: bool, ids: Tensor) -> None:
    model, pattern = make_model(attn_implementation=backend), PATTERNS[name]
    real = torch.ones(2, 9, dtype=torch.bool)
    if padded and name != "documents":
        real[1, :2] = False
    with torch.no_grad():
        whole = model(ids, attention_mask=real, mask_pattern=pattern, use_cache=False).logits
        parts, cache = [], None
        for first, last in ((0, 5), (5, 8), (8, 9)):
            sofar = pattern if name != "documents" else Causal() & Document(DOCUMENTS[:, :last])
            out = model(
                ids[:, first:last],
                attention_mask=real[:, :last],
                mask_pattern=sofar,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            parts.append(out.logits)
    close(torch.cat(parts, dim=1)[real], whole[real])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_static_cache_changes_nothing(backend: str, ids: Tensor) -> None:
    model, pattern = make_model(attn_implementation=backend), PATTERNS["sink and window"]
    cache = static_cache(model.config, 16)
    with torch.no_grad():
        parts = [
            model(ids[:, a:b], past_key_values=cache, mask_pattern=pattern).logits for a, b in ((0, 6), (6, 7), (7, 9))
        ]
    close(torch.cat(parts, dim=1), expected(model, ids, pattern))


@every_backend
@pytest.mark.parametrize("name", ["bidirectional", "symmetric window", "prefix per row"])
def test_a_cache_that_the_pattern_makes_stale_is_refused(backend: str, name: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    with torch.no_grad():
        cache = model(ids[:, :4], mask_pattern=PATTERNS[name], use_cache=True).past_key_values
        with pytest.raises(
            UnsupportedMaskError, match=r"position \d is in the cache, and may see position 4, which is new"
        ):
            model(ids[:, 4:5], past_key_values=cache, mask_pattern=PATTERNS[name])


def test_a_cache_that_dropped_visible_keys_is_refused(ids: Tensor) -> None:
    sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model = make_model(**sliding)
    with torch.no_grad():
        cache = model(ids[:, :7], mask_pattern=Sink(1) | SlidingWindow(3), use_cache=True).past_key_values
        with pytest.raises(UnsupportedMaskError, match="shows keys that the cache has dropped: it keeps 3 of 7"):
            model(ids[:, 7:8], past_key_values=cache, mask_pattern=Sink(1) | SlidingWindow(3))
        got = model(ids[:, 7:8], past_key_values=cache, mask_pattern=SlidingWindow(3)).logits
    assert got.shape == (2, 1, 64)


def test_a_pattern_replaces_the_window_of_sliding_layers_too(ids: Tensor) -> None:
    model = make_model(use_sliding_window=True, sliding_window=2, max_window_layers=1)
    assert set(layer_kinds(model.config)) == {"full_attention", "sliding_attention"}
    with torch.no_grad():
        close(model(ids, mask_pattern=Causal(), use_cache=False).logits, expected(model, ids, Causal()))


@every_backend
def test_a_pattern_counts_more_than_the_is_causal_of_config_and_call(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    with torch.no_grad():
        want = model(ids, mask_pattern=Causal(), is_causal=True).logits
        close(model(ids, mask_pattern=Causal(), is_causal=False).logits, want)
        model.config.is_causal = False
        close(model(ids, mask_pattern=Causal()).logits, want)


def test_documents_follow_from_a_separator(ids: Tensor) -> None:
    model = make_model(attn_implementation="eager")
    ids = ids.clone()
    ids[0, 3] = ids[1, 6] = 1
    with torch.no_grad():
        packed = model(ids, mask_pattern="causal & document(separator=1)").logits
        for row, end in ((0, 4), (1, 7)):  # a separator belongs to the document that it ends
            close(packed[row, :end], model(ids[row : row + 1, :end]).logits[0])
            after = model(ids[row : row + 1, end:]).logits[0]  # rotary positions are relative
            close(packed[row, end:], after)


@pytest.mark.parametrize("name", ["bidirectional", "prefix per row", "nothing at first"])
def test_a_padded_batch_trains_with_finite_gradients_that_padding_does_not_change(name: str, ids: Tensor) -> None:
    gradients = []
    for padding in (0, 2):
        model = make_model()
        padded = torch.cat([torch.zeros(2, padding, dtype=torch.long), ids], dim=1)
        real = torch.ones_like(padded).index_fill(1, torch.arange(padding), 0)
        logits = model(padded, attention_mask=real, mask_pattern=PATTERNS[name]).logits[:, padding:]
        logits.log_softmax(-1)[..., 5].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.isfinite(gradients[1]).all()
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_eager_weights_of_hidden_keys_are_exactly_zero(ids: Tensor) -> None:
    model, pattern = make_model(attn_implementation="eager"), PATTERNS["nothing at first"]
    with torch.no_grad():
        weights = model(ids, mask_pattern=pattern, output_attentions=True).attentions
    hidden = ~brute_force(pattern, torch.ones(2, 9, dtype=torch.bool))
    assert len(weights) == 2
    assert all((w[hidden] == 0).all() and (w[~hidden] > 0).all() for w in weights)


def test_token_ids_given_for_the_prompt_go_on_with_the_generated_tokens(ids: Tensor) -> None:
    model = make_model()
    call: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": 0, "mask_pattern": Causal() & Document(separator=5)}
    call |= {"sequence_bias": {(5,): 3.0}, "output_logits": True, "return_dict_in_generate": True}
    given, known = model.generate(ids, mask_inputs={"input_ids": ids}, **call), model.generate(ids, **call)
    assert (known.sequences[:, ids.shape[1] : -1] == 5).any()
    assert torch.equal(given.sequences, known.sequences)
    assert torch.equal(torch.stack(given.logits), torch.stack(known.logits))
    with pytest.raises(ValueError, match="`input_ids`: got"):
        model.generate(ids, mask_inputs={"input_ids": ids.flip(1)}, **call)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_cache_that_holds_other_keys_than_it_announced_is_refused(backend: str, ids: Tensor) -> None:
    sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 1, "max_window_layers": 0}
    model = make_model(attn_implementation=backend, **sliding)  # upstream's cache of one key keeps all
    with torch.no_grad():
        cache = model(ids[:, :6], mask_pattern=SlidingWindow(1), use_cache=True).past_key_values
        with pytest.raises(UnsupportedMaskError, match="announced 1 keys and holds 7"):
            model(ids[:, 6:7], past_key_values=cache, mask_pattern=SlidingWindow(1))


def test_tracing_a_pattern_into_one_length_is_refused(ids: Tensor) -> None:
    model = make_model(mask_pattern=Sink(1) | SlidingWindow(2), return_dict=False, use_cache=False)
    with pytest.raises(UnsupportedMaskError, match="torch.jit.trace would keep this length's mask for every other"):
        torch.jit.trace(model, ids)
