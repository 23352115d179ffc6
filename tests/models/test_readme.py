"""The README's examples, pasted one after the other, do what it says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from transformers import AutoConfig


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_examples_say_save_and_print_what_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(example, names)
    printed = capsys.readouterr().out
    report = re.search(r"    prefix_lm\(64\): .*?\n\n", README, re.DOTALL)
    assert report is not None
    assert "\n".join(line.strip() for line in report.group().strip().splitlines()) in printed
    assert json.loads((tmp_path / "my-model" / "config.json").read_text())["mask_pattern"] in README
    exported = json.loads((tmp_path / "my-export" / "config.json").read_text())
    assert exported["mask_pattern"]["0-1"] == "causal"
    assert AutoConfig.from_pretrained("my-model").mask_pattern == "sink(4) | sliding_window(32)"
