"""Way 3 of 3 to change a model's mask: subclass the model and override one method, `get_mask_pattern`.

The method sees the tokens of each forward, so the mask may depend on them. (The class that the article calls
`Qwen2ModelForCausalLM` does not exist: it is `Qwen2ForCausalLM`, or `Qwen3ForCausalLM`.)

    python examples/subclass_the_model.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from transformers import AutoTokenizer, Qwen3ForCausalLM
from transformers.mask_patterns import Pattern, Sink, SlidingWindow


MODEL = str(Path(__file__).parent / "tiny_qwen3" / "model")


class WindowedQwen3(Qwen3ForCausalLM):
    """Qwen3 that sees the first 4 tokens and the last 32."""

    def get_mask_pattern(self, input_ids: torch.Tensor | None, **inputs: Any) -> Pattern:
        """The mask of this forward; None would leave it to the config."""
        return Sink(4) | SlidingWindow(32)


def load(path: str) -> Any:
    """The model, as the subclass."""
    return WindowedQwen3.from_pretrained(path)


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else MODEL
    prompt = AutoTokenizer.from_pretrained(path)("The attention mask says which tokens", return_tensors="pt")
    with torch.no_grad():
        print(load(path)(prompt.input_ids).logits[0, -1].topk(5))
