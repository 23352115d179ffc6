"""`generate()` with a 3D or 4D mask of the prompt: every step sees what one forward over everything would see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from releases import FLEX_TAKES_A_BIAS, GOES_ON_FROM_NEW_TOKENS
from small_models import BACKENDS, EXPERTS, make_model
from torch import Tensor

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.mask_patterns import (
    Causal,
    Document,
    MaskedCache,
    Pattern,
    PerHead,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
)


PROMPT, NEW, HEADS = 9, 5, 4
SETTINGS = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def random_mask(rows: int = 2, heads: int = HEADS) -> Tensor:
    """Bool, other for each row and head, looking ahead too; row 0's first two slots are padding."""
    mask = torch.rand(rows, heads, PROMPT, PROMPT, generator=torch.Generator().manual_seed(3)) < 0.6
    mask |= torch.eye(PROMPT, dtype=torch.bool)
    mask[0, :, :2] = mask[0, :, :, :2] = False
    mask[:, :, -1, 4] = False  # what the last row does not see
    return mask


def random_bias(mask: Tensor) -> Tensor:
    bias = torch.randn(mask.shape, generator=torch.Generator().manual_seed(4))
    return bias.masked_fill(~mask, -torch.inf)


def extended(mask: Tensor, length: int, new: Pattern | None = None) -> Tensor:
    """The whole mask by its definition, one element after another; it stays bool, or a bias."""
    visible, hidden = (True, False) if mask.dtype == torch.bool else (0.0, -torch.inf)
    out = torch.full((len(mask), HEADS, length, length), hidden, dtype=mask.dtype)
    out[..., :PROMPT, :PROMPT] = mask
    for q in range(PROMPT, length):
        for k in range(q + 1):
            value = mask[..., -1, k] if k < PROMPT else visible
            for head in range(HEADS):
                if new is None or new.visible(q, k, head=head // 2):  # two in a group
                    out[:, head, q, k] = value if isinstance(value, bool | float) else value.expand(-1, HEADS)[:, head]
    return out


def require_same(model: Any, out: Any, mask: Tensor, copies: int = 1, new: Pattern | None = None) -> None:
    """The logits of every step equal those of one forward over the whole sequence."""
    sequences = out.sequences
    whole = extended(mask, sequences.shape[1], new).repeat_interleave(copies, dim=0)
    with torch.no_grad():
        expected = model(sequences, attention_mask=whole, use_cache=False).logits
        other = model(sequences, mask_pattern="causal", use_cache=False).logits
    rows = torch.arange(len(sequences))[:, None].expand(-1, NEW)
    rows = rows if out.get("beam_indices") is None else out.beam_indices.long()
    got = torch.stack([out.logits[step][rows[:, step]] for step in range(NEW)], dim=1)
    torch.testing.assert_close(got, expected[:, PROMPT - 1 : -1], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(got, other[:, PROMPT - 1 : -1], atol=1e-2)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["3D bool", "4D int", "4D of one row", "additive", "additive of one head"])
def test_generate_takes_a_whole_mask(form: str, backend: str, use_cache: bool, ids: Tensor) -> None:
    if form.startswith("additive") and backend == "flex_attention" and not FLEX_TAKES_A_BIAS:
        with pytest.raises(UnsupportedMaskError, match="takes no floating mask"):
            make_model(attn_implementation=backend)(ids, attention_mask=random_bias(random_mask()))
        return
    model = make_model(attn_implementation=backend)
    mask = {
        "3D bool": random_mask(heads=1),
        "4D int": random_mask(),
        "4D of one row": random_mask(rows=1),
        "additive": random_bias(random_mask()),
        "additive of one head": random_bias(random_mask(heads=1)),
    }[form]
    given = mask[:, 0] if form.startswith("3D") else mask.long() if form == "4D int" else mask
    out = model.generate(ids, attention_mask=given, use_cache=use_cache, **SETTINGS)
    require_same(model, out, mask)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "mode",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "use_cache": False},
        {"num_return_sequences": 3, "do_sample": True},
    ],
    ids=str,
)
def test_beams_and_several_sequences_see_their_own_row(mode: dict[str, Any], rows: int, ids: Tensor) -> None:
    model = make_model()
    mask = random_bias(random_mask(rows))
    torch.manual_seed(5)
    out = model.generate(ids, attention_mask=mask, **{**SETTINGS, **mode})
    require_same(model, out, mask.expand(2, -1, -1, -1), copies=len(out.sequences) // 2)


@pytest.mark.parametrize("family", ["qwen2", *EXPERTS])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_static_caches_and_other_models(family: str, cache: str, ids: Tensor) -> None:
    model, mask = make_model(family), random_bias(random_mask())
    out = model.generate(ids, attention_mask=mask, cache_implementation=cache, **SETTINGS)
    require_same(model, out, mask)


@pytest.mark.parametrize("helper", ["assistant", "prompt lookup"])
def test_assisted_decoding_sees_the_same(helper: str, ids: Tensor) -> None:
    model, mask = make_model(), random_mask()[:1]
    assistant = make_model(num_hidden_layers=1)
    lookup = {"prompt_lookup_num_tokens": 3, "eos_token_id": 64}  # that never comes
    help_ = {"assistant_model": assistant} if helper == "assistant" else lookup
    ids = ids[:1].index_copy(1, torch.tensor([5, 6, 7, 8]), ids[:1, 1:5])  # something to look up
    out = model.generate(ids, attention_mask=mask, **(SETTINGS | help_))
    require_same(model, out, mask)
    assert torch.equal(out.sequences, model.generate(ids, attention_mask=mask, **SETTINGS).sequences)


def test_an_assistant_with_other_heads_needs_a_mask_of_one(ids: Tensor) -> None:
    model, assistant, ids = make_model(), make_model(num_attention_heads=2), ids[:1]
    with pytest.raises(ValueError, match="4 heads and queries from slot 0 on; expected masks for 1 rows, 2 heads"):
        model.generate(ids, attention_mask=random_mask(rows=1), assistant_model=assistant, **SETTINGS)
    mask = random_mask(rows=1, heads=1)
    require_same(model, model.generate(ids, attention_mask=mask, assistant_model=assistant, **SETTINGS), mask)


def test_embeddings_take_one_too(ids: Tensor) -> None:
    model, mask = make_model(), random_mask()
    out = model.generate(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, **SETTINGS)
    assert torch.equal(out.sequences, model.generate(ids, attention_mask=mask, **SETTINGS).sequences[:, PROMPT:])


def test_a_prompt_in_chunks_and_a_cache_to_go_on_from(ids: Tensor) -> None:
    model, mask = make_model(), random_mask() & torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril()
    require_same(model, model.generate(ids, attention_mask=mask, prefill_chunk_size=4, **SETTINGS), mask)
    for given in (ids, ids[:, 5:])[: 1 + GOES_ON_FROM_NEW_TOKENS]:
        with torch.no_grad():
            cache = model(ids[:, :5], attention_mask=mask[..., :5, :5], use_cache=True).past_key_values
        rows = mask if given is ids else mask[..., 5:, :]
        out = model.generate(given, attention_mask=rows, past_key_values=cache, **SETTINGS)
        out.sequences = torch.cat([ids, out.sequences[:, -NEW:]], dim=1)
        require_same(model, out, mask)


def test_chunks_that_the_mask_makes_stale_are_refused(ids: Tensor) -> None:
    mask = torch.ones(2, 1, PROMPT, PROMPT, dtype=torch.bool).tril()
    mask[1, 0, 2, 6] = True
    with pytest.raises(UnsupportedMaskError, match="token 2 is in the cache, and may see token 6, which is new"):
        make_model().generate(ids, attention_mask=mask, prefill_chunk_size=4, **SETTINGS)


@pytest.mark.parametrize(
    "new", [SlidingWindow(3), Sink(1) | SlidingWindow(2), PerHead({0: Causal(), 1: SlidingWindow(2)})], ids=str
)
def test_a_pattern_says_what_new_tokens_see(new: Pattern, ids: Tensor) -> None:
    model, mask = make_model(), random_mask()
    out = model.generate(ids, attention_mask=mask, mask_pattern=new, **SETTINGS)
    require_same(model, out, mask, new=new)


def test_each_layer_may_say_it_otherwise(ids: Tensor) -> None:
    model, mask = make_model(use_sliding_window=True, sliding_window=3, max_window_layers=1), random_mask()
    settings = SETTINGS | {"past_key_values": DynamicCache()}
    both = model.generate(ids, attention_mask=mask, mask_pattern="native", **settings)
    require_same(model, both, mask)  # the whole mask of a layer with a window of its own too
    settings = SETTINGS | {"past_key_values": DynamicCache()}
    given = {"0": "causal", "1": "native"}
    one = model.generate(ids, attention_mask=mask, mask_pattern=given, **settings)
    settings = SETTINGS | {"past_key_values": DynamicCache()}
    given["1"] = "sliding_window(3)"
    assert torch.equal(
        torch.stack(one.logits),
        torch.stack(model.generate(ids, attention_mask=mask, mask_pattern=given, **settings).logits),
    )
    assert not torch.equal(one.logits[1], both.logits[1])


def test_keys_that_a_sliding_cache_has_dropped_are_refused(ids: Tensor) -> None:
    model = make_model(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(UnsupportedMaskError, match=r"`attention_mask` shows keys that the cache has dropped.*Dynamic"):
        model.generate(ids, attention_mask=random_mask(), **SETTINGS)


def test_keys_that_a_masked_cache_has_dropped_are_refused(ids: Tensor) -> None:
    model, cache = make_model(), MaskedCache()
    long = ids.repeat(1, 10)
    for part in (long, ids):  # it drops before the second
        model(part, past_key_values=cache, mask_pattern=SlidingWindow(2))
    whole = torch.cat([long, ids, ids], dim=1)
    mask = torch.ones(2, whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
    with pytest.raises(UnsupportedMaskError, match="a cache that has dropped keys fits no 4D mask"):
        model.generate(whole, attention_mask=mask, past_key_values=cache, **SETTINGS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mask_pattern": Document()}, r"'document', which may change.*Add `& Causal\(\)`"),
        ({"mask_pattern": Causal() & Document()}, "got a pattern that reads document_ids; expected beside a whole"),
        (
            {"mask_inputs": {"document_ids": torch.zeros(2, 9).long()}},
            r"got \['document_ids'\] beside a whole attention_mask",
        ),
        ({"attention_mask": torch.ones(2, 1, 5, 9)}, r"got shape \(2, 1, 5, 9\); expected .*\(2, 1 or 4, 9, 9\)"),
        ({"attention_mask": torch.ones(3, 9, 9)}, r"got shape \(3, 1, 9, 9\); expected"),
        ({"attention_mask": torch.ones(2, 9, 9)}, "zeros and ones; expected an additive mask"),
        ({"attention_mask": torch.ones(2, 1, 1, 9, 9)}, "must be 2D"),
        ({"prompt_mask": torch.ones(2, 9, 9)}, "not used by the model"),
    ],
)
def test_what_is_not_clear_is_refused(call: dict[str, Any], message: str, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        make_model().generate(ids, **{"attention_mask": random_mask(), **SETTINGS, **call})


def test_a_pattern_that_the_call_does_not_say_is_a_whole_mask_too(ids: Tensor) -> None:
    model, mask = make_model(mask_pattern="sliding_window(3)"), random_mask()
    with pytest.raises(ValueError, match=r"got a 4D mask beside mask_pattern='sliding_window\(3\)'"):
        model.generate(ids, attention_mask=mask, **SETTINGS)
    out = model.generate(ids, attention_mask=mask, mask_pattern="native", **SETTINGS)
    model.config.mask_pattern = None
    require_same(model, out, mask)


def test_other_models_keep_upstreams_answer(ids: Tensor) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    with pytest.raises(ValueError, match="`attention_mask` passed to `generate` must be 2D"):
        model.generate(ids, attention_mask=random_mask(), max_new_tokens=2)
