"""The small checkpoint that the repository ships: within its limits, as good as its README says, and not trained on
its held-out text."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from releases import FLOAT32
from small_models import TREE

from transformers import AutoModelForCausalLM, AutoTokenizer


TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny_qwen3"


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    """The module that reads the training text."""
    spec = importlib.util.spec_from_file_location("corpus", TINY / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules["corpus"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


def test_the_weights_are_small() -> None:
    assert (TINY / "model" / "model.safetensors").stat().st_size <= 2_000_000
    assert sum(file.stat().st_size for file in (TINY / "model").iterdir()) <= 2_300_000


def test_the_held_out_perplexity_is_what_the_readme_says() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "model")
    model = AutoModelForCausalLM.from_pretrained(TINY / "model", **FLOAT32)
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    windows = ids[0, : len(ids[0]) // 512 * 512].view(-1, 512)
    with torch.no_grad():
        loss = model(windows, labels=windows).loss
    stated = re.search(r"held-out perplexity \| ([0-9.]+) per token", (TINY / "README.md").read_text(encoding="utf-8"))
    assert stated is not None
    assert math.exp(loss) == pytest.approx(float(stated[1]), abs=0.1)


def test_the_text_is_the_pins_own_and_the_held_out_part_was_kept_out(corpus: ModuleType) -> None:
    read = corpus.read_corpus(TREE)
    assert read.held_out == (TINY / "heldout.txt").read_text(encoding="utf-8")
    assert read.digest[:16] in (TINY / "README.md").read_text(encoding="utf-8")
    held_out = runs_of_eight(read.held_out)
    assert len(held_out) > 1000
    assert not held_out & runs_of_eight("\n\n".join(read.documents))


def runs_of_eight(text: str) -> set[tuple[str, ...]]:
    """Every eight words in a row, within paragraphs."""
    paragraphs = [re.findall(r"[a-z0-9]+", paragraph.lower()) for paragraph in text.split("\n\n")]
    return {tuple(words[i : i + 8]) for words in paragraphs for i in range(len(words) - 7)}
