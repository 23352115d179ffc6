"""Generating under a pattern: what each step's logits were, one forward over the whole sequence without a cache says.

However it was decoded, the pattern's tokens and data must be those of the row, or the call refused.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from releases import GOES_ON_FROM_NEW_TOKENS
from small_models import make_model, static_cache
from torch import Tensor

from transformers import DynamicCache
from transformers.mask_patterns import (
    Causal,
    Document,
    Gist,
    GlobalTokens,
    Pattern,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    from_function,
)


VOCABULARY = 12  # so few tokens that the ones which patterns look for are soon generated
SEPARATOR = 5
REAL = torch.ones(2, 9, dtype=torch.long)
REAL[1, :3] = 0
IDS = torch.tensor([[6, 7, 5, 8, 9, 10, 3, 4, 7], [0, 0, 0, 9, 8, 5, 3, 7, 6]])
OWN = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [9, 9, 9, 0, 0, 0, 1, 1, 1]])
FIRST = torch.tensor([4, 1])
COUNTS = torch.tensor([3, 2])  # of the last tokens that a row sees

FROM_TOKENS: dict[str, Pattern | dict[str, Pattern]] = {
    "documents": Causal() & Document(separator=SEPARATOR),
    "inside documents": Document(Sink(1) | SlidingWindow(2), separator=SEPARATOR),
    "shared prefix": SharedPrefix(separator=SEPARATOR),
    "global tokens": Causal() & (GlobalTokens(token=SEPARATOR) | SlidingWindow(2)),
    "per head": PerHead({0: Causal(), 1: Causal() & Document(separator=SEPARATOR)}),
    "per layer": {"0": Document(separator=SEPARATOR) & Causal(), "default": Causal()},
}
WITH_DATA: dict[str, tuple[Pattern, dict[str, Tensor]]] = {
    "documents": (Causal() & Document(), {"document_ids": OWN}),
    "bound documents": (Causal() & Document(OWN), {}),
    "segments": (SharedPrefix(), {"segment_ids": OWN}),
    "prefix": (PrefixLM(), {"prefix_lengths": FIRST}),
    "bound prefix": (PrefixLM(FIRST), {}),
    "gist": (Gist(), {"gist_mask": (OWN == 1).int().diff(prepend=OWN[:, :1] * 0).clamp(min=0)}),
    "function": (Causal() & from_function(lambda b, h, q, k: q - k < COUNTS[b]), {}),
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "without a cache": {"do_sample": False, "use_cache": False},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "in chunks": {"do_sample": False, "prefill_chunk_size": 4},
    "sampled": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampled beams": {"num_beams": 2, "do_sample": True},
}
every_backend = pytest.mark.parametrize("backend", ["eager", "sdpa"])


def tiny_model(**settings: Any) -> Any:
    return make_model(vocab_size=VOCABULARY, **settings)


def generate(model: Any, ids: Tensor | None, mask: Tensor | None, **call: Any) -> Any:
    torch.manual_seed(3)
    settings = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None} | call
    return model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings)


def step_logits(out: Any, prompt: int) -> Tensor:
    """The logits from which each token of each returned sequence came, `(sequences, tokens, vocabulary)`."""
    steps = torch.stack(out.logits, dim=1)
    if getattr(out, "beam_indices", None) is None:
        return steps
    beams = out.beam_indices[:, : out.sequences.shape[1] - prompt]
    assert (beams >= 0).all()
    return steps[beams, torch.arange(beams.shape[1])]


def whole_logits(model: Any, sequences: Tensor, mask: Tensor, **call: Any) -> Tensor:
    """The same from one forward over the whole sequences; the rows of `mask` are repeated as those of the prompt."""
    mask = mask.repeat_interleave(len(sequences) // len(mask), dim=0)
    prompt = mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(len(mask), sequences.shape[1] - prompt)], dim=1)
    with torch.no_grad():
        logits: Tensor = model(sequences, attention_mask=mask, use_cache=False, **call).logits
    return logits[:, prompt - 1 : -1]


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)


@every_backend
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FROM_TOKENS)
def test_patterns_read_the_tokens_that_were_generated(name: str, way: str, backend: str) -> None:
    model, pattern = tiny_model(attn_implementation=backend), FROM_TOKENS[name]
    out = generate(model, IDS, REAL, mask_pattern=pattern, sequence_bias={(SEPARATOR,): 3.0}, **WAYS[way])
    assert (out.sequences[:, 9:-1] == SEPARATOR).any()
    close(step_logits(out, 9), whole_logits(model, out.sequences, REAL, mask_pattern=pattern))


def at_full_length(name: str, data: Tensor, copies: int, new: int) -> Tensor:
    """Data of the caller's rows as it must be for what was generated: a line per sequence, new tokens by the rule."""
    data = data.repeat_interleave(copies, dim=0)
    if data.ndim == 1:
        return data
    last = data[:, -1:] if name in ("document_ids", "segment_ids") else torch.zeros_like(data[:, -1:])
    return torch.cat([data, last.expand(-1, new)], dim=1)


@every_backend
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WITH_DATA)
def test_data_per_row_goes_with_the_row(name: str, way: str, backend: str) -> None:
    model, (pattern, data) = tiny_model(attn_implementation=backend), WITH_DATA[name]
    out = generate(model, IDS, REAL, mask_pattern=pattern, mask_inputs=data, **WAYS[way])
    copies = len(out.sequences) // 2
    full = {key: at_full_length(key, value, copies, 8) for key, value in data.items()}
    whole = {
        "bound documents": Causal() & Document(at_full_length("document_ids", OWN, copies, 8)),
        "bound prefix": PrefixLM(FIRST.repeat_interleave(copies)),
        "function": Causal() & from_function(lambda b, h, q, k: q - k < COUNTS[b // copies]),
    }.get(name, pattern)
    close(step_logits(out, 9), whole_logits(model, out.sequences, REAL, mask_pattern=whole, mask_inputs=full))


@pytest.mark.parametrize("way", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}])
def test_a_subclass_s_own_pattern_sees_every_row_and_is_left_as_it_is(way: dict[str, Any]) -> None:
    model = tiny_model()
    seen = []

    def own(input_ids: Tensor, mask_inputs: Any, **_: Any) -> Pattern:
        rows, counts = len(input_ids), COUNTS.repeat_interleave(len(input_ids) // 2)
        seen.append(mask_inputs["prefix_lengths"])
        assert len(counts) == rows
        return Causal() & from_function(lambda b, h, q, k: q - k < counts[b]) | PrefixLM()

    model.get_mask_pattern = own
    out = generate(model, IDS, REAL, mask_inputs={"prefix_lengths": FIRST}, **way)
    assert torch.equal(seen[-1], FIRST.repeat_interleave(3))
    given = {"prefix_lengths": FIRST.repeat_interleave(len(out.sequences) // 2)}
    close(step_logits(out, 9), whole_logits(model, out.sequences, REAL, mask_inputs=given))


@every_backend
@pytest.mark.parametrize("way", ["prompt lookup", "assistant", "assistant without a pattern"])
@pytest.mark.parametrize("name", ["documents", "bound documents", "per layer", "shared prefix", "sliding"])
def test_assisted_decoding_forgets_what_was_not_accepted(name: str, way: str, backend: str) -> None:
    sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    model = tiny_model(attn_implementation=backend, **(sliding if name == "sliding" else {}))
    ids = torch.tensor([[6, 7, 5, 8, 9, 6, 7, 5, 8, 9]])
    bound = Causal() & Document(torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]))
    small = {"sliding": Document(separator=SEPARATOR) & SlidingWindow(4), "bound documents": bound}
    pattern = FROM_TOKENS[name] if name in FROM_TOKENS else small[name]
    assistant = make_model("qwen2", vocab_size=VOCABULARY, attn_implementation=backend)
    helpers: dict[str, dict[str, Any]] = {"prompt lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": VOCABULARY}}
    call = helpers.get(way, {"assistant_model": assistant}).copy()
    if way == "assistant without a pattern":
        model.config.mask_pattern = pattern if name != "bound documents" else None
    if model.config.mask_pattern is None:
        call["mask_pattern"] = pattern
    mask = torch.ones_like(ids)
    out = generate(model, ids, mask, do_sample=False, sequence_bias={(SEPARATOR,): 2.0}, max_new_tokens=12, **call)
    if name == "bound documents":
        pattern = Causal() & Document(torch.tensor([[0] * 4 + [1] * 18]))
    close(step_logits(out, 10), whole_logits(model, out.sequences, mask, mask_pattern=pattern))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_going_on_from_a_returned_cache(kind: str) -> None:
    model, pattern = tiny_model(), FROM_TOKENS["documents"]
    cache = static_cache(model.config, 40) if kind == "static" else DynamicCache()
    bias = {"do_sample": False, "sequence_bias": {(SEPARATOR,): 3.0}}
    first = generate(model, IDS, REAL, past_key_values=cache, mask_pattern=pattern, **bias)
    for more in ([[9, 3], [4, 4]], [[5, 3], [7, 8]]):  # twice from the same
        sequences = torch.cat([first.sequences, torch.tensor(more)], dim=1)
        mask = torch.cat([REAL, REAL.new_ones(2, 10)], dim=1)
        for ids in (sequences, sequences[:, -3:])[: 1 + GOES_ON_FROM_NEW_TOKENS]:  # all, or what is not in the cache
            again = copy.deepcopy(cache)
            out = generate(model, ids, mask, past_key_values=again, mask_pattern=pattern, **bias)
            whole = torch.cat([sequences, out.sequences[:, ids.shape[1] :]], dim=1)
            close(step_logits(out, ids.shape[1]), whole_logits(model, whole, mask, mask_pattern=pattern))


@pytest.mark.parametrize("bound", [False, True])
def test_data_for_other_rows_than_the_callers_is_refused(bound: bool, ids: Tensor) -> None:
    """Two beams of one row are not two rows: each would get the other's data."""
    documents = torch.tensor([[0] * 9, [0] * 4 + [1] * 5])
    call: dict[str, Any] = {"mask_pattern": Causal() & Document(documents if bound else None)}
    call |= {} if bound else {"mask_inputs": {"document_ids": documents}}
    with pytest.raises(ValueError, match="`document_ids`: got data for 2 rows; expected data for the 1 rows"):
        make_model().generate(ids[:1], max_new_tokens=2, num_beams=2, pad_token_id=0, **call)


def test_what_was_generated_keeps_its_document_when_a_cache_goes_on() -> None:
    model, cache, pattern = tiny_model(), DynamicCache(), Causal() & Document()
    first = generate(model, IDS, REAL, mask_pattern=pattern, mask_inputs={"document_ids": OWN}, past_key_values=cache)
    ids = torch.cat([first.sequences, torch.tensor([[9, 3], [4, 4]])], dim=1)
    call = {"mask_pattern": pattern, "past_key_values": cache}
    gone_on = torch.cat([OWN, torch.ones(2, 8).long(), torch.full((2, 2), 2)], dim=1)
    other = gone_on.index_fill(1, torch.tensor([12]), 2)  # in the cache it is as part of document 1
    mask = torch.cat([REAL, REAL.new_ones(2, 10)], dim=1)
    with pytest.raises(ValueError, match="`document_ids`: got other data for tokens in the cache"):
        generate(model, ids, mask, mask_inputs={"document_ids": other}, **call)
    out = generate(model, ids, mask, mask_inputs={"document_ids": gone_on}, **call)
    gone_on = torch.cat([gone_on, torch.full((2, 8), 2)], dim=1)
    close(step_logits(out, 19), whole_logits(model, out.sequences, mask, mask_pattern=Causal() & Document(gone_on)))


DOCUMENTS = FROM_TOKENS["documents"]
COPIES: list[dict[str, Any]] = [
    {"do_sample": False},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3},
]


@pytest.mark.parametrize("way", COPIES, ids=str)
def test_embeddings_go_with_their_tokens(way: dict[str, Any]) -> None:
    model = tiny_model()
    call = {"mask_pattern": DOCUMENTS, "sequence_bias": {(SEPARATOR,): 3.0}, **way}
    embeds = {"inputs_embeds": model.get_input_embeddings()(IDS)}
    with pytest.raises(ValueError, match="`input_ids`: got nothing"):
        model.generate(**embeds, attention_mask=REAL, max_new_tokens=2, **call)
    out = generate(model, None, REAL, **embeds, mask_inputs={"input_ids": IDS}, **call)
    assert (out.sequences[:, :-1] == SEPARATOR).any()
    whole = torch.cat([IDS.repeat_interleave(len(out.sequences) // 2, dim=0), out.sequences], dim=1)
    close(step_logits(out, 0), whole_logits(model, whole, REAL, mask_pattern=DOCUMENTS))
    beside = generate(model, IDS, REAL, **embeds, **call)
    assert torch.equal(beside.sequences[:, -8:], out.sequences)


@pytest.mark.parametrize("way", COPIES, ids=str)
def test_a_cache_filled_without_a_pattern_goes_on_with_the_tokens_of_the_prompt(way: dict[str, Any]) -> None:
    model, copies = tiny_model(num_hidden_layers=1), max(way.get("num_beams", 1), way.get("num_return_sequences", 1))
    places = (REAL.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache()
    with torch.no_grad():  # keys of a single layer do not depend on its mask
        model(IDS[:, :6], attention_mask=REAL[:, :6], position_ids=places[:, :6], past_key_values=cache)
    cache.batch_repeat_interleave(copies)
    call = {"mask_pattern": DOCUMENTS, "sequence_bias": {(SEPARATOR,): 3.0}, **way}
    out = generate(model, IDS, REAL, past_key_values=cache, **call)
    assert (out.sequences[:, 9:-1] == SEPARATOR).any()
    close(step_logits(out, 9), whole_logits(model, out.sequences, REAL, mask_pattern=DOCUMENTS))


def test_padding_is_not_guessed_from_a_token_that_the_pattern_looks_for() -> None:
    """Upstream takes every `pad_token_id` for padding where no mask comes: separators would be gone."""
    model, ids = tiny_model(), torch.tensor([[6, 7, 5, 8, 9, 5, 3]])
    call: dict[str, Any] = {
        "pad_token_id": SEPARATOR,
        "max_new_tokens": 3,
        "do_sample": False,
        "mask_pattern": DOCUMENTS,
    }
    refused = "`attention_mask`: got nothing, and pad_token_id=5; expected a mask that says which 5 are padding"
    with pytest.raises(ValueError, match=refused):
        model.generate(ids, **call)
    said: list[tuple[Tensor | None, dict[str, int]]] = [
        (torch.ones_like(ids), {}),
        (None, {"pad_token_id": 0}),
        (None, {"eos_token_id": SEPARATOR}),  # then upstream guesses nothing
    ]
    for mask, other in said:
        out = generate(model, ids, mask, **(call | other))
        new = out.sequences.shape[1] - ids.shape[1]
        want = whole_logits(model, out.sequences, torch.ones_like(ids), mask_pattern=DOCUMENTS)
        close(step_logits(out, 7), want[:, :new])
    padded = torch.tensor([[5, 5, 6, 7, 8, 9, 3], [8, 9, 6, 7, 8, 9, 3]])
    real = (padded != SEPARATOR).long()
    window = {"mask_pattern": SlidingWindow(3)}
    assert torch.equal(
        model.generate(padded, **(call | window)), model.generate(padded, attention_mask=real, **(call | window))
    )
