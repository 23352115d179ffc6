"""What a cache holds while a model generates: a full cache, and `MaskedCache`, which follows the mask.

The model generates token by token over a `MaskedCache`; the same tokens then go through a full cache, and every
logit is compared. Writes docs/decode_memory.svg and prints a table. Needs matplotlib; takes some minutes.

    python benchmarks/decode_memory.py [--tokens 32768]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from transformers import AutoModelForCausalLM, DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.mask_patterns import MaskedCache, Sink, SlidingWindow


ROOT = Path(__file__).resolve().parents[1]
PATTERN = Sink(4) | SlidingWindow(1024)
CHUNK = 256  # tokens that go into the full cache at a time


class Meter(BaseStreamer):
    """Notes what a cache holds whenever a token comes."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.sizes = cache, dict[int, int]()

    def put(self, value: Tensor) -> None:
        if size := held_bytes(self.cache):
            self.sizes[self.cache.get_seq_length()] = size

    def end(self) -> None:
        pass


def held_bytes(cache: Any) -> int:
    return sum(side.nbytes for layer in cache.layers for side in (layer.keys, layer.values))


def generated(model: Any, tokens: int) -> tuple[Tensor, tuple[Tensor, ...], dict[int, int]]:
    """A prompt and `tokens` new ones, their logits, and the bytes that the cache held after so many tokens."""
    meter = Meter(MaskedCache())
    torch.manual_seed(0)
    found = model.generate(
        torch.randint(1, model.config.vocab_size, (1, 16)),
        past_key_values=meter.cache,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        return_dict_in_generate=True,
        output_logits=True,
        streamer=meter,
    )
    return found.sequences, found.logits, meter.sizes


def replayed(model: Any, ids: Tensor, compare: Callable[[int, Tensor], None]) -> dict[int, int]:
    """The bytes of a full cache as the same tokens go through it; `compare` gets a slot and the logits from there."""
    cache, sizes = DynamicCache(), dict[int, int]()
    for begin in range(0, ids.shape[1], CHUNK):
        compare(begin, model(ids[:, begin : begin + CHUNK], past_key_values=cache).logits[0])
        sizes[cache.get_seq_length()] = held_bytes(cache)
    return sizes


def draw(full: dict[int, int], ours: dict[int, int], path: Path) -> None:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "decode_memory", "font.size": 9})
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for sizes, colour, name in ((full, "#b35806", "every key"), (ours, "#2166ac", "MaskedCache")):
        axes.plot(list(sizes), [size / 2**20 for size in sizes.values()], color=colour)
        last = max(sizes)
        axes.annotate(name, (last, sizes[last] / 2**20), (-6, 5), textcoords="offset points", ha="right", color=colour)
    axes.set(
        xlabel="tokens", ylabel="keys and values, MiB", title=f"{PATTERN}, 4 layers", xlim=(0, None), ylim=(0, None)
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    tokens = parser.parse_args().tokens
    path = ROOT / "examples/tiny_qwen3/model"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, mask_pattern=PATTERN)

    ids, logits, ours = generated(model, tokens)
    prompt, apart = ids.shape[1] - tokens, 0.0

    def compare(begin: int, want: Tensor) -> None:
        nonlocal apart
        first = max(prompt - 1, begin)
        for slot in range(first, min(begin + len(want), ids.shape[1] - 1)):
            apart = max(apart, float((logits[slot - prompt + 1][0] - want[slot - begin]).abs().max()))

    full = replayed(model, ids[:, :-1], compare)  # nobody asked what comes after the last token
    path = ROOT / "docs/decode_memory.svg"
    every = {at: size for at, size in ours.items() if at % 64 == 0 or at == max(ours)}
    draw(full, every, path)
    print("| tokens | every key | MaskedCache |\n| ---: | ---: | ---: |")
    for at in [at for at in full if at & (at - 1) == 0 and at >= 4 * CHUNK] + [max(full)]:
        print(f"| {at:,} | {full[at] / 2**20:.1f} MiB | {ours[at] / 2**20:.1f} MiB |")
    print(f"Most that MaskedCache held: {max(ours.values()) / 2**20:.2f} MiB. Logits differ by at most {apart:.1e}.")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
