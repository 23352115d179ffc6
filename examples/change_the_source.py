"""Way 2 of 3 to change a model's mask: change upstream's source and install it editable. That is this fork.

`make install` has done both: `patches/` is the change, and `transformers/src` is what Python imports. What is left
for a script is to say the mask.

    python examples/change_the_source.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.mask_patterns import Sink, SlidingWindow


MODEL = str(Path(__file__).parent / "tiny_qwen3" / "model")


def load(path: str) -> Any:
    """The model, with its mask; `save_pretrained` keeps it in `config.json`."""
    return AutoModelForCausalLM.from_pretrained(path, mask_pattern=Sink(4) | SlidingWindow(32))


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else MODEL
    prompt = AutoTokenizer.from_pretrained(path)("The attention mask says which tokens", return_tensors="pt")
    with torch.no_grad():
        print(load(path)(prompt.input_ids).logits[0, -1].topk(5))
