"""A `get_mask_pattern` in `generate()`: at every step it is asked, about the rows that this step has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from releases import CACHES_HAVE_LAYERS
from small_models import make_model
from test_generation import IDS, REAL, SEPARATOR, VOCABULARY, close, generate, step_logits, whole_logits
from torch import Tensor

from transformers import DynamicCache, Qwen3ForCausalLM
from transformers.mask_patterns import Causal, Document, MaskedCache, Pattern, Sink, SlidingWindow, from_function


class Windowed(Qwen3ForCausalLM):
    """Each row sees as many tokens as it has padding, and two more; it notes what it is told of."""

    def get_mask_pattern(self, input_ids: Tensor, attention_mask: Any = None, **inputs: Any) -> Pattern:
        assert len(attention_mask) == len(input_ids)
        self.told.append((tuple(input_ids.shape), tuple(attention_mask.shape)))
        return windows(attention_mask)

    told: list[tuple[tuple[int, ...], tuple[int, ...]]]


def windows(mask: Tensor) -> Pattern:
    widths = 2 + (mask == 0).sum(-1)
    return Causal() & from_function(lambda b, h, q, k: q - k < widths[b])


def windowed() -> tuple[Any, Any]:
    """The subclass, and a plain model with its weights."""
    plain = make_model(vocab_size=VOCABULARY)
    model = Windowed(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    model.told = []
    return model, plain


WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # and how many rows they go with
    "greedy": (2, {}),
    "without a cache": (2, {"use_cache": False}),
    "static": (2, {"cache_implementation": "static"}),
    **({"masked": (2, {"past_key_values": MaskedCache()})} if CACHES_HAVE_LAYERS else {}),
    "in chunks": (2, {"prefill_chunk_size": 4}),
    "beams": (2, {"num_beams": 3, "num_return_sequences": 2}),
    "beams in chunks": (2, {"num_beams": 2, "prefill_chunk_size": 4}),
    "samples": (2, {"num_return_sequences": 3, "do_sample": True}),
    "prompt lookup": (1, {"prompt_lookup_num_tokens": 3, "eos_token_id": VOCABULARY}),
    "assisted": (1, {"assistant_model": make_model("qwen2", vocab_size=VOCABULARY)}),
    "assisted by one that says another": (1, {"assistant_model": make_model(vocab_size=VOCABULARY)}),
}
WAYS["assisted by one that says another"][1]["assistant_model"].get_mask_pattern = lambda *_, **__: Sink(2)


@pytest.mark.parametrize("way", WAYS)
def test_it_sees_the_rows_of_every_step(way: str) -> None:
    rows, call = WAYS[way]
    model, plain = windowed()
    ids, real = IDS[-rows:], REAL[-rows:]
    out = generate(model, ids, real, **{"do_sample": False, **call})
    whole = out.sequences.shape[1]
    copies = len(out.sequences) // rows
    pattern = windows(real.repeat_interleave(copies, dim=0))
    close(step_logits(out, 9), whole_logits(plain, out.sequences, real, mask_pattern=pattern))
    assert not torch.allclose(step_logits(out, 9), whole_logits(plain, out.sequences, real), atol=1e-2)
    assert all(new <= mask <= whole for (_, new), (_, mask) in model.told)
    assert {rows for (rows, _), _ in model.told} == {rows * max(call.get(name, 1) for name in COPIES)}


COPIES = ("num_beams", "num_return_sequences")


@pytest.mark.parametrize("way", ["greedy", "static", "in chunks", "beams", "prompt lookup", "assisted"])
def test_a_pattern_that_it_says_reads_the_tokens_that_were_generated(way: str) -> None:
    rows, call = WAYS[way]
    model, pattern = make_model(vocab_size=VOCABULARY), Causal() & Document(separator=SEPARATOR)
    model.get_mask_pattern = lambda *_, **__: pattern
    ids, real = IDS[:rows], REAL[:rows]
    out = generate(model, ids, real, sequence_bias={(SEPARATOR,): 3.0}, **{"do_sample": False, **call})
    assert (out.sequences[:, 9:-1] == SEPARATOR).any()
    plain = make_model(vocab_size=VOCABULARY)
    close(step_logits(out, 9), whole_logits(plain, out.sequences, real, mask_pattern=pattern))


def test_it_is_asked_again_where_a_cache_goes_on() -> None:
    model, plain = windowed()
    cache = DynamicCache()
    first = generate(model, IDS, REAL, past_key_values=cache, do_sample=False)
    mask = torch.cat([REAL, REAL.new_ones(2, 8)], dim=1)
    out = generate(model, first.sequences, mask, past_key_values=cache, do_sample=False)
    close(step_logits(out, 17), whole_logits(plain, out.sequences, mask, mask_pattern=windows(REAL)))


def test_it_may_say_another_pattern_later_as_long_as_the_cache_fits() -> None:
    """The prompt under one pattern, new tokens under another: each row of the mask as it was said then."""
    model, plain = make_model(vocab_size=VOCABULARY), make_model(vocab_size=VOCABULARY)
    model.get_mask_pattern = lambda ids, **_: Causal() if ids.shape[1] > 1 else SlidingWindow(3)
    out = generate(model, IDS[:1], REAL[:1], do_sample=False)
    both = from_function(lambda b, h, q, k: (k <= q) & ((q < 9) | (q - k < 3)))
    close(step_logits(out, 9), whole_logits(plain, out.sequences, REAL[:1], mask_pattern=both))
