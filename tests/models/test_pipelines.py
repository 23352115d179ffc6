"""Pipelines, chats and streams under a pattern: the text that whole forwards without a cache spell, token by token."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from releases import FLOAT32
from torch import Tensor

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)
from transformers.mask_patterns import (
    Causal,
    Document,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    from_function,
    use_mask_pattern,
)


TINY = Path(__file__).resolve().parents[2] / "examples/tiny_qwen3/model"
STREAMING = Sink(1) | SlidingWindow(4)
TEXTS = ["The attention mask says", "A model of a model is what the other"]
CHATS = [
    [{"role": "user", "content": "The attention mask"}],
    [{"role": "user", "content": "A model and its other model"}],
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def load(**settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, **FLOAT32, **settings)


@pytest.fixture(scope="module")
def model() -> Any:
    return load()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY, padding_side="left", chat_template=TEMPLATE)


def spelled(model: Any, ids: Tensor, **call: Any) -> Tensor:
    """What comes behind one row of tokens: the likeliest token, one whole forward for each."""
    start = ids.shape[1]
    for _ in range(NEW):
        with torch.no_grad():
            last = model(ids, use_cache=False, **call).logits[:, -1]
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    return ids[0, start:]


@pytest.fixture(scope="module")
def want(model: Any, tokenizer: Any) -> list[str]:
    """How each text goes on under the pattern; without it, it would go on otherwise."""

    def all_of(**call: Any) -> list[str]:
        rows = (tokenizer(text, return_tensors="pt").input_ids for text in TEXTS)
        return [tokenizer.decode(spelled(model, row, **call)) for row in rows]

    found = all_of(mask_pattern=STREAMING)
    assert all(ours != native for ours, native in zip(found, all_of(), strict=True))
    return found


def new_texts(out: Any) -> list[str]:
    return [row[0]["generated_text"] for row in out]


def said_in_the_call(model: Any, tokenizer: Any) -> Any:
    return pipeline("text-generation", model=model, tokenizer=tokenizer)(
        TEXTS, mask_pattern=STREAMING, batch_size=2, return_full_text=False, **GREEDY
    )


def said_to_the_pipeline(model: Any, tokenizer: Any) -> Any:
    made = pipeline("text-generation", model=model, tokenizer=tokenizer, mask_pattern=str(STREAMING), batch_size=2)
    return made(TEXTS, return_full_text=False, **GREEDY)


def said_where_it_is_loaded(_: Any, tokenizer: Any) -> Any:
    settings = {"mask_pattern": STREAMING, **FLOAT32}
    made = pipeline("text-generation", model=str(TINY), tokenizer=tokenizer, model_kwargs=settings)
    assert made.model.config.mask_pattern == str(STREAMING)
    return made(TEXTS, batch_size=2, return_full_text=False, **GREEDY)


def said_by_the_config(_: Any, tokenizer: Any) -> Any:
    made = pipeline("text-generation", model=load(mask_pattern=STREAMING), tokenizer=tokenizer)
    return made(TEXTS, return_full_text=False, **GREEDY)


def said_in_a_block(model: Any, tokenizer: Any) -> Any:
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)
    with use_mask_pattern(made.model, STREAMING):
        return made(TEXTS, batch_size=2, return_full_text=False, **GREEDY)


def said_beside_an_assistant(model: Any, tokenizer: Any) -> Any:
    made = pipeline("text-generation", model=model, tokenizer=tokenizer, assistant_model=load(mask_pattern="causal"))
    return [made(text, mask_pattern=STREAMING, return_full_text=False, **GREEDY) for text in TEXTS]


ROUTES = [
    said_in_the_call,
    said_to_the_pipeline,
    said_where_it_is_loaded,
    said_by_the_config,
    said_in_a_block,
    said_beside_an_assistant,
]


@pytest.mark.parametrize("route", ROUTES)
def test_text_generation_obeys(route: Callable[..., Any], model: Any, tokenizer: Any, want: list[str]) -> None:
    assert new_texts(route(model, tokenizer)) == want
    assert model.config.mask_pattern is None


def test_the_text_may_come_with_its_prompt(model: Any, tokenizer: Any, want: list[str]) -> None:
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)
    got = new_texts(made(TEXTS, mask_pattern=STREAMING, batch_size=2, **GREEDY))
    assert got == [text + new for text, new in zip(TEXTS, want, strict=True)]


def test_data_of_the_sample_goes_with_the_pattern(model: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    documents = (torch.arange(ids.shape[1])[None] > 2).long()
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)
    call = {"mask_pattern": Causal() & Document(), "mask_inputs": {"document_ids": documents}}
    whole = Causal() & from_function(lambda b, h, q, k: (q > 2) == (k > 2))
    got = made(TEXTS[0], return_full_text=False, **call, **GREEDY)[0]["generated_text"]
    assert got == tokenizer.decode(spelled(model, ids, mask_pattern=whole))
    assert got != made(TEXTS[0], return_full_text=False, **GREEDY)[0]["generated_text"]


def test_chats(model: Any, tokenizer: Any) -> None:
    encoded = [tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True) for chat in CHATS]
    want = [tokenizer.decode(spelled(model, row.input_ids, mask_pattern=STREAMING)) for row in encoded]
    assert want != [tokenizer.decode(spelled(model, row.input_ids)) for row in encoded]
    for row, text in zip(encoded, want, strict=True):
        generated = model.generate(**row, mask_pattern=STREAMING, **GREEDY)
        assert tokenizer.decode(generated[0, row.input_ids.shape[1] :]) == text
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)
    as_it_is = {"clean_up_tokenization_spaces": False}
    out = made(CHATS, mask_pattern=STREAMING, batch_size=2, **as_it_is, **GREEDY)
    assert [row[0]["generated_text"][-1]["content"] for row in out] == want


def test_a_streamer_prints_what_comes(
    model: Any, tokenizer: Any, want: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    model.generate(**tokenizer(TEXTS[0], return_tensors="pt"), streamer=streamer, mask_pattern=STREAMING, **GREEDY)
    assert capsys.readouterr().out.rstrip("\n") == want[0]


def streamed(model: Any, tokenizer: Any, run: Callable[..., Any] | None = None, **call: Any) -> str:
    """The text that another thread generates; `run` calls what it is given there."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    batch = tokenizer(TEXTS[0], return_tensors="pt")

    def generate() -> None:
        try:
            model.generate(**batch, streamer=streamer, **GREEDY, **call)
        finally:
            streamer.end()

    thread = Thread(target=generate if run is None else run, args=() if run is None else (generate,))
    thread.start()
    text = "".join(streamer)
    thread.join()
    return text


def test_a_stream_from_a_thread_has_the_pattern_of_its_call_and_not_that_of_a_block_outside(
    model: Any, tokenizer: Any, want: list[str]
) -> None:
    native = streamed(model, tokenizer)
    assert streamed(model, tokenizer, mask_pattern=STREAMING) == want[0] != native
    with use_mask_pattern(model, STREAMING):
        assert streamed(model, tokenizer) == native
        assert streamed(model, tokenizer, run=contextvars.copy_context().run) == want[0]


def test_a_class_of_a_text_under_a_bidirectional_pattern() -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(TINY, **FLOAT32)
    tokenizer = AutoTokenizer.from_pretrained(TINY)

    def scores(**call: Any) -> list[float]:
        found = []
        for text in TEXTS:
            with torch.no_grad():
                logits = model(**tokenizer(text, return_tensors="pt"), **call).logits
            found.append(float(logits.softmax(-1).max()))
        return found

    want, native = scores(mask_pattern="bidirectional"), scores()
    assert want != pytest.approx(native, abs=1e-4)
    made = pipeline("text-classification", model=model, tokenizer=tokenizer)
    with use_mask_pattern(made.model, "bidirectional"):
        assert [row["score"] for row in made(TEXTS, batch_size=2)] == pytest.approx(want, abs=1e-5)
    made.model.config.mask_pattern = "bidirectional"
    assert [row["score"] for row in made(TEXTS, batch_size=2)] == pytest.approx(want, abs=1e-5)


def test_features_under_a_bidirectional_pattern(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    made = pipeline("feature-extraction", model=model.model, tokenizer=tokenizer)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        want = model.model(ids, mask_pattern="bidirectional").last_hidden_state
        assert not torch.allclose(want, model.model(ids).last_hidden_state, atol=1e-2)
    with use_mask_pattern(made.model, "bidirectional"):
        got = made(TEXTS, batch_size=2)
    torch.testing.assert_close(torch.tensor(got[0])[:, : ids.shape[1]], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_a_pipeline_refuses_a_pattern_that_it_would_drop(task: str, model: Any, tokenizer: Any) -> None:
    part = model.model if task == "feature-extraction" else AutoModelForSequenceClassification.from_pretrained(TINY)
    made = pipeline(task, model=part, tokenizer=tokenizer)
    refused = "this pipeline does not hand it on to its model. Set model.config.mask_pattern, or call"
    for name in ("mask_pattern", "mask_inputs", "mask_patterns"):
        with pytest.raises(UnsupportedMaskError, match=f"`{name}`: {refused}"):
            made(TEXTS[0], **{name: "bidirectional"})
    with pytest.raises(UnsupportedMaskError, match=f"`mask_pattern`: {refused}"):
        pipeline(task, model=part, tokenizer=tokenizer, mask_pattern="bidirectional")


def test_a_pipeline_that_generates_refuses_what_it_does_not_know(model: Any, tokenizer: Any) -> None:
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for name in ("mask_patern", "document_ids"):
        with pytest.raises(ValueError, match=f"not used by the model: .'{name}'"):
            made(TEXTS[0], **{name: "causal"}, **GREEDY)
