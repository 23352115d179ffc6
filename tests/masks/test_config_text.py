"""What a configuration takes as its `mask_pattern`: exactly what its `config.json` can say again."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import pytest
import torch

from transformers.mask_patterns import (
    Causal,
    Document,
    Pattern,
    PatternSyntaxError,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)
from transformers.mask_patterns.config import ConfigPattern, config_value


class Config:
    mask_pattern = ConfigPattern()


def test_a_pattern_or_its_text_is_held_as_canonical_text() -> None:
    config: Any = Config()
    assert config.mask_pattern is None
    for given in (Sink(4) | SlidingWindow(16), " sink( 4 )|sliding_window(width=16)"):
        config.mask_pattern = given
        assert config.mask_pattern == "sink(4) | sliding_window(16)"
    config.mask_pattern = None
    assert config.mask_pattern is None


def test_a_named_function_is_held_by_its_name() -> None:
    function = from_function(lambda b, h, q, k: q >= k, name="tests_in_a_config")
    assert config_value(function & Causal()) == "tests_in_a_config & causal"


def deep(levels: int) -> Pattern:
    return ~deep(levels - 1) if levels else Causal()


def test_what_could_not_be_read_back_is_refused() -> None:
    assert Pattern.parse(str(config_value(deep(32)))) == deep(32)
    with pytest.raises(PatternSyntaxError, match="at most 32 levels"):
        config_value(deep(33))
    with pytest.raises(PatternSyntaxError, match="at most 10,000 characters"):
        config_value(reduce(or_, [Sink(n) for n in range(1_000)]))


@pytest.mark.parametrize(
    "pattern",
    [
        PrefixLM(torch.tensor([1, 2])),
        Causal() & Document(torch.zeros(1, 3, dtype=torch.long)),
        ~from_function(lambda b, h, q, k: q >= k),
    ],
    ids=str,
)
def test_tensors_and_functions_without_a_name_are_refused(pattern: Pattern) -> None:
    with pytest.raises(ValueError, match=r"`mask_pattern`: got .*config\.json cannot hold; expected .*name='my_mask'"):
        config_value(pattern)


@pytest.mark.parametrize("value", [3, ["causal"], torch.ones(2, 2), b"causal"])
def test_what_is_neither_pattern_nor_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"`mask_pattern`: got {type(value).__name__}; expected a pattern"):
        config_value(value)


def test_malformed_text_is_refused_where_it_is_set() -> None:
    config: Any = Config()
    with pytest.raises(PatternSyntaxError, match="casual"):
        config.mask_pattern = "casual"
    assert config.mask_pattern is None
