"""A pattern in the configuration: set, saved, loaded, refused."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import FAMILIES, make_model
from torch import Tensor

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Qwen3Config
from transformers.mask_patterns import (
    Document,
    PatternSyntaxError,
    PrefixLM,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    from_function,
)
from transformers.mask_patterns.library import Function


STREAMING = Sink(1) | SlidingWindow(2)


def logits(model: Any, ids: Tensor, **call: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, **call).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pattern_is_saved_with_the_model_and_obeyed_when_loaded(family: str, tmp_path: Path, ids: Tensor) -> None:
    model = make_model(family, mask_pattern=STREAMING)
    said = logits(make_model(family), ids, mask_pattern=STREAMING)
    assert torch.equal(logits(model, ids), said)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask_pattern"] == "sink(1) | sliding_window(2)"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.mask_pattern == "sink(1) | sliding_window(2)"
    assert torch.equal(logits(loaded, ids), said)


@pytest.mark.parametrize("saved_with", [None, "causal"])
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel])
def test_from_pretrained_takes_a_pattern_over_the_saved_one(
    auto: Any, saved_with: Any, tmp_path: Path, ids: Tensor
) -> None:
    make_model(mask_pattern=saved_with).save_pretrained(tmp_path)
    for given in (STREAMING, str(STREAMING)):
        loaded = auto.from_pretrained(tmp_path, mask_pattern=given)
        assert loaded.config.mask_pattern == str(STREAMING)
        assert json.loads(loaded.config.to_json_string())["mask_pattern"] == str(STREAMING)
    with torch.no_grad():
        plain = auto.from_pretrained(tmp_path)(ids)[0]
        assert not torch.allclose(loaded(ids)[0], plain, atol=1e-2)
        assert torch.equal(loaded(ids, mask_pattern="native")[0], plain)


def test_a_model_without_a_pattern_writes_none(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    assert "mask_pattern" not in json.loads((tmp_path / "config.json").read_text())


def test_a_pattern_of_one_call_stays_with_that_call(ids: Tensor, tmp_path: Path) -> None:
    model = make_model()
    before = logits(model, ids)
    assert not torch.equal(logits(model, ids, mask_pattern=STREAMING), before)
    assert torch.equal(logits(model, ids), before)
    assert model.config.mask_pattern is None
    assert "mask_pattern" not in model.config.to_dict()


def test_a_config_put_in_the_place_of_the_one_that_is_read_is_refused_where_they_differ(ids: Tensor) -> None:
    model = make_model()
    native, read = logits(model, ids), model.config
    model.config = copy.deepcopy(read)
    assert torch.equal(logits(model, ids), native)
    model.config.mask_pattern = STREAMING
    for cache in ("static", "dynamic"):
        with pytest.raises(
            UnsupportedMaskError, match=r"the Qwen3ForCausalLM's config says 'sink\(1\).*says None. Set"
        ):
            model.generate(ids, max_new_tokens=2, pad_token_id=0, cache_implementation=cache)
    said = logits(model, ids, mask_pattern=STREAMING)
    read.mask_pattern = STREAMING
    assert torch.equal(logits(model, ids), said)
    model.config.mask_pattern = None
    with pytest.raises(
        UnsupportedMaskError, match=r"config says None, and that of its model, another object, says 's"
    ):
        model.model(ids)


def test_a_config_with_a_pattern_is_copied_and_pickled() -> None:
    config = Qwen3Config(mask_pattern=STREAMING)
    assert Qwen3Config.from_dict(config.to_dict()).mask_pattern == str(STREAMING)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.mask_pattern == str(STREAMING)
        assert twin == config


MAPPINGS: list[dict[str, Any]] = [
    {"0": "causal", "default": "native"},
    {"per_head": {"0": "causal", "1": "sink(1)"}},
    {"0": {"per_head": {"0": "causal", "1": "sink(1)"}}, "default": "native"},
]

CHANGES: list[Callable[[Any], Any]] = [
    lambda mapping: mapping.update({"0": STREAMING}),
    lambda mapping: mapping.__setitem__("default", STREAMING),
    lambda mapping: mapping.__delitem__(next(iter(mapping))),
    lambda mapping: mapping.pop("0"),
    lambda mapping: mapping.clear(),
    lambda mapping: mapping.setdefault("2", "causal"),
]


@pytest.mark.parametrize("said", MAPPINGS, ids=str)
def test_a_mapping_in_a_config_is_changed_as_a_whole(said: dict[str, Any], tmp_path: Path) -> None:
    config = Qwen3Config(mask_pattern=said)
    shown: Any = config.mask_pattern
    inner = next(value for value in (*shown.values(), shown) if isinstance(value, dict))
    for mapping in (shown, inner):
        for change in CHANGES:
            with pytest.raises(
                ValueError, match=r"config.mask_pattern`: got a change of .* in place; .* Write config"
            ):
                change(mapping)
    for copied in (copy.deepcopy(shown), pickle.loads(pickle.dumps(shown)), json.loads(json.dumps(shown))):
        assert copied == shown == said
        copied["default"] = "causal"
    assert config.mask_pattern == config.to_dict()["mask_pattern"] == said
    config.mask_pattern = {**config.mask_pattern, "default": STREAMING} if "per_head" not in said else STREAMING
    config.save_pretrained(tmp_path)
    assert str(STREAMING) in str(Qwen3Config.from_pretrained(tmp_path).mask_pattern)


def test_a_malformed_pattern_in_a_config_fails_at_load_time_with_a_caret(tmp_path: Path) -> None:
    make_model(mask_pattern="causal").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"causal"', '"sink(4) | sliding_windw(8)"'))
    with pytest.raises(PatternSyntaxError) as error:
        AutoConfig.from_pretrained(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[1:3] == ["  sink(4) | sliding_windw(8)", "            ^"]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (PrefixLM(torch.tensor([2, 5])), ValueError, "a config.json cannot hold"),
        (Document(torch.tensor([[0, 1]])), ValueError, "a config.json cannot hold"),
        (from_function(lambda b, h, q, k: k <= q), ValueError, "name a function"),
        (torch.ones(2, 2), ValueError, "got Tensor; expected a pattern"),
        (4, ValueError, "got int; expected a pattern"),
    ],
)
def test_what_a_config_cannot_hold_is_refused_when_set(value: Any, kind: type[Exception], message: str) -> None:
    config = Qwen3Config()
    with pytest.raises(kind, match=message):
        config.mask_pattern = value
    assert config.mask_pattern is None


def test_a_named_function_is_saved_by_name(ids: Tensor, tmp_path: Path) -> None:
    pattern = from_function(lambda b, h, q, k: (k <= q) & ((q - k) % 2 == 0), name="every_other")
    make_model(mask_pattern=pattern & ~Sink(1)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.mask_pattern == "every_other & ~sink(1)"
    assert torch.equal(logits(loaded, ids), logits(make_model(), ids, mask_pattern=pattern & ~Sink(1)))


def test_configurations_are_read_without_torch(tmp_path: Path) -> None:
    Qwen3Config().save_pretrained(tmp_path)
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from transformers import AutoConfig\n"
        f"config = AutoConfig.from_pretrained({str(tmp_path)!r})\n"
        "assert config.mask_pattern is None and config.model_type == 'qwen3'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class Wider(SlidingWindow):
    """A user's class, which sees one key more than its text would say."""


@pytest.mark.parametrize("kind", ["a function named again", "a class of the user's", "a function with another's name"])
def test_a_pattern_of_which_the_text_says_another_is_refused(kind: str) -> None:
    first = from_function(lambda b, h, q, k: k <= q, name="named_again")
    from_function(lambda b, h, q, k: k < q, name="named_again")
    patterns = {
        "a function named again": first,
        "a class of the user's": Wider(3),
        "a function with another's name": Function(lambda b, h, q, k: k < q, "causal"),
    }
    with pytest.raises(ValueError, match="would say another|cannot hold"):
        Qwen3Config().mask_pattern = patterns[kind]
