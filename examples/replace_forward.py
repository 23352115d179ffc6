"""Way 1 of 3 to change a model's mask: replace `forward` at run time.

Works on stock transformers as well, and is gone with the process. The mask is made by hand for one whole forward, so
padding, caches and other backends are yours to think of: ways 2 and 3 do that for you.

    python examples/replace_forward.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from transformers import AutoModelForCausalLM, AutoTokenizer


MODEL = str(Path(__file__).parent / "tiny_qwen3" / "model")


def sink_and_window(length: int) -> torch.Tensor:
    """The first 4 tokens and the last 32, bool `(length, length)`: `Sink(4) | SlidingWindow(32)` by hand."""
    q, k = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return (k <= q) & ((k < 4) | (q - k < 32))


def load(path: str) -> Any:
    """The model, with the `forward` of its decoder replaced."""
    model = AutoModelForCausalLM.from_pretrained(path)
    original = model.model.forward

    def forward(self: Any, input_ids: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        visible = sink_and_window(input_ids.shape[1])
        hidden = torch.zeros(visible.shape, dtype=self.dtype).masked_fill(~visible, torch.finfo(self.dtype).min)
        return original(input_ids, attention_mask=hidden.expand(len(input_ids), 1, -1, -1), **kwargs)

    model.model.forward = MethodType(forward, model.model)
    return model


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else MODEL
    prompt = AutoTokenizer.from_pretrained(path)("The attention mask says which tokens", return_tensors="pt")
    with torch.no_grad():
        print(load(path)(prompt.input_ids).logits[0, -1].topk(5))
