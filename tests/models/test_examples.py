"""The three ways to change a mask give the same logits as the pattern, and each runs as a script."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.mask_patterns import Sink, SlidingWindow


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAYS = ["replace_forward", "change_the_source", "subclass_the_model"]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("way", WAYS)
def test_a_way_gives_the_logits_of_the_pattern(way: str) -> None:
    example = module(way)
    text = (EXAMPLES / "tiny_qwen3" / "heldout.txt").read_text()[:400]
    ids = AutoTokenizer.from_pretrained(example.MODEL)(text, return_tensors="pt").input_ids
    assert ids.shape[1] > 40  # longer than sink and window together
    plain = AutoModelForCausalLM.from_pretrained(example.MODEL)
    with torch.no_grad():
        said = plain(ids, mask_pattern=Sink(4) | SlidingWindow(32)).logits
        assert not torch.allclose(plain(ids).logits, said, atol=0.1)
        torch.testing.assert_close(example.load(example.MODEL)(ids).logits, said)


@pytest.mark.parametrize("way", WAYS)
def test_a_way_runs_as_a_script(way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(EXAMPLES / f"{way}.py")
    monkeypatch.setattr(sys, "argv", [script])
    runpy.run_path(script, run_name="__main__")
    assert "indices=tensor(" in capsys.readouterr().out
