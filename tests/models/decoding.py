"""Every way that a model decodes and every cache that it may fill, on the fork as on upstream.

As a script it reads names of `(Batch, Keys, Way)` from standard input, as JSON, and says of each what it raises
without a mask of ours: so upstream's own limits are known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any
from unittest import mock

import torch
from small_models import make_model, static_cache
from torch import Tensor

from transformers import DynamicCache
from transformers.cache_utils import Cache, QuantizedLayer
from transformers.generation import GenerateDecoderOnlyOutput


VOCABULARY = 12  # so few tokens that the separator is soon generated
SEPARATOR = 5
PROMPT, NEW = 9, 3
TOKENS = torch.tensor([[6, 7, 5, 8, 9, 6, 7, 5, 8], [9, 8, 4, 9, 8, 5, 3, 9, 8]])
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


class Batch(Enum):
    """Which rows there are, and the padding of each: left of it, or right of it where that is below zero."""

    ALONE = ((0, 0),)
    LEFT = ((1, 3),)
    EVEN = ((0, 0), (1, 0))
    UNEVEN = ((0, 0), (1, 3))
    RIGHT = ((0, 0), (1, -3))

    @property
    def rows(self) -> list[int]:
        return [row for row, _ in self.value]

    @property
    def real(self) -> Tensor:
        """Int64 `(rows, PROMPT)`: 1 at tokens, 0 at padding."""
        slots = torch.arange(PROMPT)
        return torch.stack([(slots >= pad) & (slots < PROMPT + min(pad, 0)) for _, pad in self.value]).long()


class Keys(Enum):
    """What keeps keys and values."""

    NONE = "no cache"
    DYNAMIC = "dynamic"
    STATIC = "static"
    SLIDING = "sliding"
    SLIDING_STATIC = "sliding, static"
    OFFLOADED = "offloaded"
    OFFLOADED_STATIC = "offloaded, static"
    QUANTIZED = "quantized"
    MASKED = "`MaskedCache`"

    @property
    def is_sliding(self) -> bool:
        return self in (Keys.SLIDING, Keys.SLIDING_STATIC)

    @property
    def is_static(self) -> bool:
        return self in (Keys.STATIC, Keys.SLIDING_STATIC, Keys.OFFLOADED_STATIC)


class Way(Enum):
    """How tokens are decoded."""

    FORWARD = "one forward"
    STEPS = "forwards, one after another"
    GREEDY = "greedy"
    SAMPLED = "sampling"
    SEVERAL = "`num_return_sequences`"
    BEAMS = "beams"
    SAMPLED_BEAMS = "sampled beams"
    CHUNKS = "`prefill_chunk_size`"
    CONTINUED = "going on from a returned cache"
    EMBEDS = "from `inputs_embeds`"
    LOOKUP = "prompt lookup"
    ASSISTED = "assistant"
    ASSISTED_HEADS = "assistant with other heads"
    ASSISTED_OWN = "assistant with a pattern of its own"
    ASSISTED_PLAIN = "assistant without a pattern"
    EARLY_EXIT = "`assistant_early_exit`"
    LOOP = "`custom_generate`, a loop"
    CANDIDATES = "`custom_generate`, candidates as contrastive search has"

    @property
    def one_row(self) -> bool:
        return self in ASSISTANTS or self in (Way.LOOKUP, Way.EARLY_EXIT)


ASSISTANTS: dict[Way, dict[str, Any]] = {
    Way.ASSISTED: {},
    Way.ASSISTED_HEADS: {"num_attention_heads": 2},
    Way.ASSISTED_OWN: {"mask_pattern": "sink(2) | sliding_window(2)"},
    Way.ASSISTED_PLAIN: {},
}


@dataclass(frozen=True, eq=False)
class Decoded:
    """What came out, padding and all.

    Args:
        sequences: int64 `(sequences, slots)`; a row of the batch has as many, side by side, as it was asked for.
        logits: `(sequences, slots - first, vocabulary)`, of every slot from `first` on, that after the last token may
            be missing.
        first: the slot whose logits come first.
    """

    sequences: Tensor
    logits: Tensor
    first: int


Say = Callable[[int, int], dict[str, Any]]  # first and last slot of a call to the arguments that go with its tokens


class RoundedLayer(QuantizedLayer):
    """Upstream's quantized layer, with 16 bits a number: so many that only a wrong mask makes a difference."""

    def _quantize(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 32767
        return (tensor / scale).round().short(), scale

    def _dequantize(self, q_tensor: tuple[Tensor, Tensor]) -> Tensor:
        number, scale = q_tensor
        return number * scale


@cache
def _model(family: str, is_sliding: bool) -> Any:
    return make_model(family, vocab_size=VOCABULARY, **(SLIDING if is_sliding else {}))


def shared_model(backend: str, family: str, keys: Keys) -> Any:
    """A model that calls leave as it was; after one that failed, `forget_models()`."""
    model = _model(family, keys.is_sliding)
    model.set_attn_implementation(backend)
    return model


@cache
@torch.no_grad()
def _assistant(way: Way) -> Any:
    """A model of the other family, which guesses right at times."""
    model = make_model("qwen2", vocab_size=VOCABULARY, **ASSISTANTS[way])
    torch.manual_seed(0)
    model.lm_head.weight += 0.6 * torch.randn_like(model.lm_head.weight)
    return model


def forget_models() -> None:
    _model.cache_clear()
    _assistant.cache_clear()


def new_cache(keys: Keys, model: Any, length: int) -> Any:
    """An empty cache for so many slots; None: no cache."""
    config = model.config
    match keys:
        case Keys.NONE:
            return None
        case Keys.DYNAMIC | Keys.SLIDING:
            return DynamicCache(config=config)
        case Keys.STATIC | Keys.SLIDING_STATIC:
            return static_cache(config, length)
        case Keys.OFFLOADED:
            return DynamicCache(config=config, offloading=True)
        case Keys.OFFLOADED_STATIC:
            return static_cache(config, length, offloading=True)
        case Keys.QUANTIZED:
            return Cache(layers=[RoundedLayer(residual_length=2) for _ in range(config.num_hidden_layers)])
    from transformers.mask_patterns import MaskedCache

    return MaskedCache()


STATIC = {Keys.STATIC: "static", Keys.SLIDING_STATIC: "static", Keys.OFFLOADED_STATIC: "offloaded_static"}


def cache_settings(keys: Keys, model: Any) -> dict[str, Any]:
    """The arguments of `generate()` that ask for such a cache."""
    if keys is Keys.NONE:
        return {"use_cache": False}
    if keys in (Keys.DYNAMIC, Keys.SLIDING):  # what it takes by itself
        return {}
    if keys in STATIC:
        return {"cache_implementation": STATIC[keys]}
    return {"past_key_values": new_cache(keys, model, 0)}


@contextmanager
def streams(keys: Keys) -> Iterator[None]:
    """Let offloading caches run on a CPU: there are no streams to wait for, and nothing to move."""
    if torch.cuda.is_available() or keys not in (Keys.OFFLOADED, Keys.OFFLOADED_STATIC):
        yield
        return
    with mock.patch("torch.Stream", mock.MagicMock()), mock.patch("torch.cuda.default_stream", mock.MagicMock()):
        yield


def decode(way: Way, keys: Keys, model: Any, batch: Batch, say: Say) -> Decoded:
    """Decode `NEW` tokens after the prompt; see `Way` and `Keys`."""
    torch.manual_seed(3)
    with streams(keys), torch.no_grad():
        return _decode(way, keys, model, batch, say)


def _decode(way: Way, keys: Keys, model: Any, batch: Batch, say: Say) -> Decoded:
    ids = TOKENS[batch.rows] * batch.real
    match way:
        case Way.FORWARD:
            cache = new_cache(keys, model, PROMPT)
            return Decoded(ids, model(ids, past_key_values=cache, use_cache=cache is not None, **say(0, 9)).logits, 0)
        case Way.STEPS:
            return in_steps(model, ids, new_cache(keys, model, PROMPT + NEW), say)
        case Way.CONTINUED:
            return continued(model, ids, new_cache(keys, model, PROMPT + 2 * NEW + 2), say)
    return generate(model, ids, **cache_settings(keys, model), **SETTINGS[way](model), **say(0, PROMPT))


def in_steps(model: Any, ids: Tensor, cache: Any, say: Say) -> Decoded:
    """The prompt, then a token, and two, in a forward each; without a cache each begins at the first."""
    whole = torch.cat([ids, TOKENS[: len(ids), [2, 1, 2]]], dim=1)
    logits = ids.new_empty(len(ids), 0, VOCABULARY).float()
    for end in (PROMPT, PROMPT + 1, PROMPT + 3):
        begin = 0 if cache is None else logits.shape[1]
        out = model(whole[:, begin:end], past_key_values=cache, use_cache=cache is not None, **say(begin, end))
        logits = torch.cat([logits, out.logits[:, logits.shape[1] - end :]], dim=1)
    return Decoded(whole, logits, 0)


def continued(model: Any, ids: Tensor, cache: Any, say: Say) -> Decoded:
    """Generate, add two tokens, and generate again from the cache that came back."""
    settings = {"past_key_values": cache} if cache is not None else {"use_cache": False}
    first = generate(model, ids, do_sample=False, **settings, **say(0, PROMPT)).sequences
    more = torch.cat([first, TOKENS[: len(ids), 2:4]], dim=1)
    return generate(model, more, do_sample=False, **settings, **say(0, more.shape[1]))


def generate(model: Any, ids: Tensor, **call: Any) -> Decoded:
    """Generate with separators likely, and find each step's logits."""
    if call.pop("embedded", False):
        call["inputs_embeds"] = model.get_input_embeddings()(ids)
    else:
        call["input_ids"] = ids
    fixed = {"pad_token_id": 0, "eos_token_id": None, "sequence_bias": {(SEPARATOR,): 3.0}, "max_new_tokens": NEW}
    out = model.generate(return_dict_in_generate=True, output_logits=True, **fixed, **call)
    steps, sequences = torch.stack(out.logits, dim=1), out.sequences
    if "inputs_embeds" in call:
        sequences = torch.cat([ids, sequences], dim=1)
    if getattr(out, "beam_indices", None) is not None:
        steps = steps[out.beam_indices[:, :NEW], torch.arange(NEW)]
    return Decoded(sequences, steps, ids.shape[1] - 1)


def own_loop(model: Any, ids: Tensor, stopping_criteria: Any, generation_config: Any, **kwargs: Any) -> Any:
    """Greedy decoding, written with what upstream gives to those who write loops of their own."""
    logits: list[Tensor] = []
    kwargs = {name: value for name, value in kwargs.items() if name != "logits_processor"}
    while not logits or not stopping_criteria(ids, None).all():
        new = 1 if logits and kwargs["use_cache"] else None
        out = model(**model.prepare_inputs_for_generation(ids, next_sequence_length=new, **kwargs), return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(out, kwargs)
        logits.append(out.logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], dim=1)
    return GenerateDecoderOnlyOutput(sequences=ids, logits=tuple(logits))


def candidates(model: Any, ids: Tensor, stopping_criteria: Any, generation_config: Any, **kwargs: Any) -> Any:
    """Of the two likeliest tokens the one that makes the next one likelier: the steps of contrastive search."""
    kwargs = {name: value for name, value in kwargs.items() if name != "logits_processor"}
    out = model(**model.prepare_inputs_for_generation(ids, **kwargs), return_dict=True)
    kwargs = model._update_model_kwargs_for_generation(out, kwargs)
    _, kwargs = model._expand_inputs_for_generation(input_ids=ids, expand_size=2, **kwargs)
    logits, cache = [out.logits[:, -1]], kwargs["past_key_values"]
    while not stopping_criteria(ids, None).all():
        tokens = logits[-1].topk(2).indices
        cache.batch_repeat_interleave(2)
        out = model(**model.prepare_inputs_for_generation(tokens.view(-1, 1), **kwargs), return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(out, kwargs)
        chosen = out.logits[:, -1].amax(-1).view(-1, 2).argmax(-1)
        rows = chosen + 2 * torch.arange(len(ids))
        cache.batch_select_indices(rows)
        logits.append(out.logits[rows, -1])
        ids = torch.cat([ids, tokens.view(-1)[rows, None]], dim=1)
    return GenerateDecoderOnlyOutput(sequences=ids, logits=tuple(logits[:NEW]))


def assistant(way: Way) -> Callable[[Any], dict[str, Any]]:
    """Two guesses at a time, of which some are right and some are not."""

    def made(model: Any) -> dict[str, Any]:
        backend = "sdpa" if way is Way.ASSISTED_PLAIN else model.config._attn_implementation
        helper = _assistant(way)
        helper.set_attn_implementation(backend)
        helper.generation_config.num_assistant_tokens = 2
        return {"assistant_model": helper, "do_sample": False}

    return made


def fixed(**settings: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda model: settings


SETTINGS: dict[Way, Callable[[Any], dict[str, Any]]] = {
    Way.GREEDY: fixed(do_sample=False),
    Way.SAMPLED: fixed(do_sample=True),
    Way.SEVERAL: fixed(do_sample=True, num_return_sequences=2),
    Way.BEAMS: fixed(do_sample=False, num_beams=3, num_return_sequences=2),
    Way.SAMPLED_BEAMS: fixed(do_sample=True, num_beams=2),
    Way.CHUNKS: fixed(do_sample=False, prefill_chunk_size=4),
    Way.EMBEDS: fixed(do_sample=False, embedded=True),
    Way.LOOKUP: fixed(do_sample=False, prompt_lookup_num_tokens=3),
    Way.EARLY_EXIT: fixed(do_sample=False, assistant_early_exit=1, num_assistant_tokens=2),
    Way.LOOP: fixed(do_sample=False, custom_generate=own_loop),
    Way.CANDIDATES: fixed(do_sample=False, custom_generate=candidates),
    **{way: assistant(way) for way in ASSISTANTS},
}


def first_line(error: Exception) -> str:
    """What an error is and says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def raised(batch: Batch, keys: Keys, way: Way) -> str:
    """What is raised without a mask of ours; nothing: it runs."""
    model = shared_model("sdpa", "qwen3", keys)
    try:
        decode(way, keys, model, batch, lambda begin, end: {"attention_mask": mask_until(batch, end)})
    except Exception as error:
        forget_models()
        return first_line(error)
    return ""


def mask_until(batch: Batch, end: int) -> Tensor:
    """The 2D mask of the first slots: what comes after the prompt is real."""
    return torch.nn.functional.pad(batch.real, (0, max(end - PROMPT, 0)), value=1)[:, :end]


if __name__ == "__main__":
    torch.set_num_threads(1)
    cells = json.load(sys.stdin)
    print(json.dumps([raised(Batch[batch], Keys[keys], Way[way]) for batch, keys, way in cells]))
