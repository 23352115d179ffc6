"""What a configuration says may come from anybody: whatever it is, it is refused at once and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
import torch

from transformers.mask_patterns import Document, Pattern, PatternSyntaxError, Sink, grammar
from transformers.mask_patterns.config import config_value
from transformers.mask_patterns.layers import parse_masks


MANY = 5_000_000


def nested(key: str, levels: int) -> Any:
    found: Any = "causal"
    for _ in range(levels):
        found = {key: found}
    return found


HOSTILE: dict[str, Any] = {
    "a long text": "(" * MANY,
    "a long JSON text": '{"0": "' + "a" * MANY + '"}',
    "a long value": {"0": "(" * MANY},
    "a long number": {"0" * MANY: "causal"},
    "a long layer type": {"a" * MANY: "causal"},
    "blanks before a key": {" " * MANY + "x": "causal"},
    "blanks behind a key": {"1" + " " * MANY + "x": "causal"},
    "blanks in a range": {"1" + " " * MANY + "-" + " " * MANY: "causal"},
    "a large number": {"99999999999999999999": "causal"},
    "a larger number": {10**5000: "causal"},
    "a large range": {"0-99999": "causal"},
    "a number below zero": {-1: "causal"},
    "100,000 keys": {str(i): "causal" for i in range(100_000)},
    "100,000 heads": {"per_head": {str(i): "causal" for i in range(100_000)}},
    "many long texts": {str(i): "causal|" * 1_000 + "causal" for i in range(900)},
    "many long texts for heads": {"0": {"per_head": {str(i): "causal|" * 1_000 + "causal" for i in range(900)}}},
    "heads in heads": nested("per_head", 100_000),
    "layers in layers": nested("0", 100_000),
    "layers in heads": {"per_head": {"0": {"0": "causal"}}},
    "layers in the text of a layer": {"0": '{"0": "causal"}'},
    "an open JSON object": '{"0": ' * 1_600,
    "open JSON lists": '{"0": ' + "[" * 9_000,
    "a long number in JSON": '{"0": ' + "9" * 9_000 + "}",
    "the same key again and again": "{" + ",".join(['"0": "causal"'] * 700) + "}",
    "the same number said differently": {" " * i + "7": "causal" for i in range(30)},
    "NaN as a key": {float("nan"): "causal", float("nan"): "sink(1)"},
    "NaN as a value": {"0": float("nan")},
    "None as a key": {None: "causal"},
    "None as a value": {"0": None},
    "bool as a key": {True: "causal"},
    "a float as a key": {0.0: "causal"},
    "bytes as a key": {b"0": "causal"},
    "an escape as a key": {"\x1b[31m": "causal"},
    "half a character as a key": {"\ud800": "causal"},
    "a number": 10**5000,
    "a list": ["causal"] * 100_000,
    "nothing": {},
    "no heads": {"per_head": {}},
    "native heads": {"per_head": {"0": "native"}},
    "heads that are no mapping": {"per_head": ["causal"]},
    "code": {"0": "__import__('os').abort()"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_configuration_costs_little(name: str) -> None:
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match="mask.pattern|groups|JSON object") as caught:
        parse_masks(HOSTILE[name])
    message = str(caught.value)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 11_000_000  # a copy or two of the text
    assert len(message) < 1_000
    assert message.isprintable() or message.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "text",
    [
        " | ".join(f"sink({n})" for n in range(800)),
        " | ".join(f"~chunked({n})" for n in range(1, 550)),
        " & ".join(f"(causal | ~chunked({n}))" for n in range(1, 350)),
        "per_head(" + ", ".join(f"{2 * n}: tree" for n in range(700)) + ")",
        "tree(0, [" + ",".join(["-1"] * 2_400) + "])",
    ],
    ids=lambda text: text[:20],
)
def test_the_longest_patterns_are_read_and_simplified_in_no_time(text: str) -> None:
    start = time.process_time()
    pattern = Pattern.parse(text)
    pattern.simplified()
    assert Pattern.parse(str(pattern)) == pattern
    assert time.process_time() - start < 1


def below(frames: int, question: Any) -> Any:
    """The answer to a question asked that deep in the stack."""
    return question() if frames == 0 else below(frames - 1, question)


@pytest.mark.parametrize(("opening", "closing"), [("document(", ")"), ("per_head(0: ", ")"), ("~", ""), ("(", ")")])
def test_the_deepest_patterns_are_within_the_stack(opening: str, closing: str) -> None:
    text = opening * 32 + "sink(1)" + closing * 32
    grammar._parse_named.cache_clear()
    pattern: Pattern = below(400, lambda: Pattern.parse(text))
    grammar._parse_named.cache_clear()
    data = {"document_ids": torch.zeros(1, 3, dtype=torch.long)} if "document" in text else {}
    assert below(400, lambda: Pattern.parse(text) == pattern)
    assert below(400, lambda: hash(pattern) == hash(Pattern.parse(text)))
    assert parse_masks(below(400, lambda: config_value(pattern))) == pattern
    simplified: Pattern = below(400, pattern.simplified)
    for form in (pattern, simplified):
        seen = below(400, lambda form=form: form.dense(3, **data))
        assert torch.equal(seen, Sink(1).dense(3))
    with pytest.raises(PatternSyntaxError, match="at most 32 levels"):
        Pattern.parse(opening * 33 + "sink(1)" + closing * 33)


def test_arguments_of_any_length_are_shown_shortly() -> None:
    for value in (10**5000, "x" * MANY, ["x"] * MANY):
        with pytest.raises(ValueError, match=r"^`count`: got .*; expected an integer") as caught:
            Sink(value)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="^`separator`: got int of too many digits; expected a token id"):
        Document(separator=10**5000)
