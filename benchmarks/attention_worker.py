"""One process of `attention_speed.py`: runs tasks on the transformers that it imports, and says time and peak memory.

Tasks come pickled on standard input, one at a time, and their measures go out on standard output.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from functools import cache
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from measures import held, peak, reset_peak
from torch import Tensor


class Task(NamedTuple):
    """What to run.

    Args:
        work: "attention" alone (8 heads of 64), or a model's "forward", "training" step, "prefill" in chunks, or
            "decode" of some tokens behind so many.
        mask: a name in `MASKS`.
        way: how it is said: "tiles", "dense", "flex" and "unmasked" for attention alone; for a model "pattern" and
            "no pattern" on the fork, else "4D", "causal", "sliding_attention" and "packed", which upstream knows too.
    """

    work: str
    mask: str
    way: str
    length: int


class Measure(NamedTuple):
    """Seconds, the most memory that the process held in MiB, how much of that it took for this, and the part of all
    pairs that is visible.
    """

    seconds: float
    memory: float
    grown: float
    visible: float = 1.0


MASKS: dict[str, str] = {
    "no mask": "causal",
    "causal": "causal",
    "window": "sliding_window(512)",
    "short window": "sliding_window(256)",
    "sink + window": "sink(4) | sliding_window(512)",
    "prefix-LM": "prefix_lm(until=3)",
    "documents": "causal & document",
    "chunked": "chunked(1024)",
    "block diffusion": "block_diffusion(32)",
    "shared prefix": "shared_prefix",
}
CHUNK = 2048  # tokens of a prefill that go in at once
TOKENS = 32  # tokens that are decoded
SHORT = 2.0  # seconds; what is shorter is timed again, several times, when memory is warm, as its price differs
MOST_TIMES = 10


def inputs(length: int) -> dict[str, Tensor]:
    """Documents of 1,024 tokens; half of a row and four answers to it; a prefix that is a quarter of a row."""
    slot = torch.arange(length)[None]
    ids = torch.full((1, length), 4).index_fill(1, torch.tensor([length // 4]), 3)
    return {"document_ids": slot // 1024, "segment_ids": (slot * 8 // length - 3).clamp(min=0), "input_ids": ids}


def needed(mask: str, length: int) -> dict[str, Tensor]:
    """The data that a mask reads, beside the tokens."""
    names = {"documents": "document_ids", "shared prefix": "segment_ids"}
    return {names[mask]: inputs(length)[names[mask]]} if mask in names else {}


def bound(mask: str, length: int) -> tuple[Any, Any]:
    from transformers.mask_patterns import Pattern

    data = needed(mask, length) | ({"input_ids": inputs(length)["input_ids"]} if mask == "prefix-LM" else {})
    return Pattern.parse(MASKS[mask]).placed(length, heads=8, **data)


def visible_part(mask: str, length: int) -> float:
    from transformers.mask_patterns.lowering.dense import key_ranges

    pattern, layout = bound(mask, length)
    ranges = key_ranges(pattern, layout.queries, layout)
    assert ranges is not None
    return float(ranges.counts().sum()) / length**2


def whole(mask: str, length: int) -> Tensor:
    """The mask for callers of upstream, bool `(1, 1, length, length)`, by its definition."""
    q, k = torch.arange(length)[:, None], torch.arange(length)[None]
    if mask == "block diffusion":
        half, size = length // 2, 32
        q_block, k_block, q_clean, k_clean = q % half // size, k % half // size, q >= half, k >= half
        alike = (q_clean == k_clean) & (q_block == k_block)
        return (alike | k_clean & (q_block > k_block))[None, None]
    data = inputs(length)
    segment = data["segment_ids"][0]
    rules: dict[str, Callable[[], Tensor]] = {
        "causal": lambda: k <= q,
        "window": lambda: (k <= q) & (q - k < 512),
        "short window": lambda: (k <= q) & (q - k < 256),
        "sink + window": lambda: (k <= q) & ((k < 4) | (q - k < 512)),
        "prefix-LM": lambda: (k <= q) | (k <= length // 4),
        "documents": lambda: (k <= q) & (q // 1024 == k // 1024),
        "chunked": lambda: (k <= q) & (q // 1024 == k // 1024),
        "shared prefix": lambda: (k <= q) & ((segment == 0)[None] | (segment[:, None] == segment[None])),
    }
    return rules[mask]()[None, None]


@cache
def model(way: str) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    window: dict[str, Any] = {}
    if way == "sliding_attention":
        window = {"layer_types": ["sliding_attention"] * 4, "use_sliding_window": True, "sliding_window": 512}
    return Qwen3Model(Qwen3Config(**sizes, **heads, **window, max_position_embeddings=2**17)).eval()


def attention_run(task: Task) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import flex_attention

    from transformers.mask_patterns.lowering.blocks import block_mask
    from transformers.mask_patterns.lowering.tile_plan import tile_plan
    from transformers.mask_patterns.tiled_sdpa import tiled_sdpa

    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, task.length, 8, 64, generator=random).transpose(1, 2) for _ in range(3))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    if task.way == "unmasked":
        return lambda: sdpa(q, k, v)
    if task.way == "dense":
        mask = whole(task.mask, task.length)
        return lambda: sdpa(q, k, v, attn_mask=mask)
    pattern, layout = bound(task.mask, task.length)
    if task.way == "flex":
        blocks = block_mask(pattern, layout)
        compiled: Any = torch.compile(flex_attention)
        return lambda: compiled(q, k, v, block_mask=blocks)
    plan = tile_plan(pattern, layout, always=True)
    assert plan is not None
    return lambda: tiled_sdpa(q, k, v, plan)


def said(task: Task, length: int) -> dict[str, Any]:
    """How a model's call says the mask, for rows of a length."""
    if task.way == "pattern":
        return {"mask_pattern": MASKS[task.mask], "mask_inputs": needed(task.mask, length)}
    if task.way == "4D":
        return {"attention_mask": whole(task.mask, length)}
    return {"position_ids": torch.arange(length)[None] % 1024} if task.way == "packed" else {}


def until(call: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """The same call for the tokens `start .. end - 1`, behind those before them."""
    own = dict(call)
    if "mask_inputs" in call:
        own["mask_inputs"] = {name: data[:, :end] for name, data in call["mask_inputs"].items()}
    if "attention_mask" in call:
        own["attention_mask"] = call["attention_mask"][:, :, start:end, :end]
    return own


def model_run(task: Task) -> Callable[[], object]:
    run = model(task.way)
    if task.work == "decode":
        return decoding(task)
    ids, call = inputs(task.length)["input_ids"], said(task, task.length)
    if task.work == "training":
        return lambda: run(ids, use_cache=False, **call).last_hidden_state.square().mean().backward()
    if task.work == "prefill":
        return lambda: filled(run, ids, call)
    return lambda: run(ids, use_cache=False, **call)


def filled(run: Any, ids: Tensor, call: dict[str, Any]) -> Any:
    """A cache of these tokens, chunk by chunk."""
    from transformers import DynamicCache

    past = DynamicCache()
    for start in range(0, ids.shape[1], CHUNK):
        end = min(start + CHUNK, ids.shape[1])
        run(ids[:, start:end], past_key_values=past, **until(call, start, end))
    return past


@cache
def cached(task: Task) -> tuple[Tensor, dict[str, Any], Any]:
    """Tokens, a call that says their mask, and a cache of all but the last ones."""
    total = task.length + TOKENS
    ids, call = inputs(total)["input_ids"], said(task, total)
    return ids, call, filled(model(task.way), ids[:, : task.length], call)


def decoding(task: Task) -> Callable[[], object]:
    ids, call, past = cached(task)

    def run() -> None:
        past.crop(task.length - past.get_seq_length())  # a number below 0: so many fewer
        for start in range(task.length, task.length + TOKENS):
            model(task.way)(ids[:, start : start + 1], past_key_values=past, **until(call, start, start + 1))

    return run


def measured(task: Task) -> Measure:
    with torch.set_grad_enabled(task.work == "training"):
        run = attention_run(task) if task.work == "attention" else model_run(task)
        if task.way == "flex":
            run()  # compiles
        reset_peak()
        before, seconds = held(), timed(run)
        memory = peak()
        if seconds < SHORT:
            seconds = median(timed(run) for _ in range(min(MOST_TIMES, ceil(SHORT / seconds))))
    part = visible_part(task.mask, task.length) if task.way == "tiles" else 1.0
    return Measure(seconds, memory, memory - before, part)


def timed(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def main() -> None:
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(tuple(measured(Task(*task))), answers)
        answers.flush()


if __name__ == "__main__":
    main()
