"""Without a pattern and without a 3D or 4D mask, the fork computes bit for bit what unpatched upstream computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from releases import COPIES_KEYS_PER_HEAD
from small_models import TREE, make_model
from torch import Tensor

from transformers.mask_patterns import Causal


SCRIPT = Path(__file__).with_name("outputs.py")


def outputs_of(tree: Path, target: Path) -> dict[str, Tensor]:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, SCRIPT, tree, target], env=environment, check=True)
    loaded: dict[str, Tensor] = torch.load(target)
    return loaded


def test_every_output_is_bit_identical_to_upstream(upstream: Path, tmp_path: Path) -> None:
    ours, theirs = outputs_of(TREE, tmp_path / "ours.pt"), outputs_of(upstream, tmp_path / "theirs.pt")
    assert list(ours) == list(theirs)
    assert sum("flex 0" in name for name in ours) == 4
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == []


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("split", [1, 5, 8])
def test_the_causal_pattern_is_bit_identical_to_no_pattern(backend: str, split: int, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)

    def in_two_parts(pattern: Causal | None) -> Tensor:
        with torch.no_grad():
            first = model(ids[:, :split], mask_pattern=pattern, use_cache=True)
            then = model(ids[:, split:], mask_pattern=pattern, past_key_values=first.past_key_values)
        return torch.cat([first.logits, then.logits], dim=1)

    ours, theirs = in_two_parts(Causal()), in_two_parts(None)
    if COPIES_KEYS_PER_HEAD and backend == "sdpa":
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(ours, theirs)
