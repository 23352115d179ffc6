"""Time and memory to build a mask from ranges: of every pattern that has them, for a batch of 4 rows of 8,192 tokens.

Of each pattern what a forward makes: its data bound and its ranges, then what each backend takes - the plan of tiles
for SDPA on a CPU, and FlexAttention's block mask. Beside them upstream's own way to make a prefix-LM mask. Patterns
take turns; times are medians, memory is the most that the process grew by meanwhile, and the size is that of the
mask: of its ranges, or upstream's tensor. Prints a table, and writes
results/mask_building.json beside this file. For Linux.

    python benchmarks/mask_building.py [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from measures import held, machine, peak, reset_peak, write_results
from rich.progress import track
from torch import Tensor

from transformers import Qwen3Config
from transformers.mask_patterns import Pattern
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.blocks import block_mask
from transformers.mask_patterns.lowering.dense import key_ranges
from transformers.mask_patterns.lowering.tile_plan import tile_plan
from transformers.mask_patterns.positions import Layout
from transformers.mask_patterns.ranges import Ranges
from transformers.masking_utils import create_causal_mask


BATCH, LENGTH, HEADS, GROUPS = 4, 8192, 8, 2
SEPARATOR = 3
PATTERNS = (
    "causal",
    "bidirectional",
    "sliding_window(512)",
    "sliding_window(512, symmetric=true)",
    "sink(4) | sliding_window(512)",
    "dilated(4, 64)",
    "global_tokens(16) | sliding_window(512)",
    "chunked(1024)",
    "block_causal(32)",
    "prefix_lm",
    "prefix_lm(until=3)",
    "gist(token=3)",
    "causal & document",
    "causal & document(separator=3)",
    "document(prefix_lm(64))",
    "shared_prefix",
    "parallel_context",
    "tree",
    "block_diffusion(32)",
    "per_head(0: causal, 1: sink(4) | sliding_window(512))",
    "~sliding_window(512)",
    "sink(4) | causal & document & sliding_window(512)",
)


class Cost(NamedTuple):
    """Of one build."""

    milliseconds: float
    memory_mib: float
    size_mib: float | None


def inputs() -> dict[str, Tensor]:
    """Rows that differ: documents of a thousand tokens, four answers, a separator, prefixes, a tree at the end."""
    slot, row = torch.arange(LENGTH)[None], torch.arange(BATCH)[:, None]
    ids = torch.full((BATCH, LENGTH), 4)
    ids[:, 1000::1024] = SEPARATOR
    return {
        "input_ids": ids,
        "document_ids": (slot + 100 * row) // 1024,
        "segment_ids": ((slot + 100 * row) * 8 // LENGTH - 3).clamp(0, 4),
        "prefix_lengths": 1000 + 100 * row[:, 0],
        "tree_prefix": torch.full((BATCH,), LENGTH - 63),
        "tree_parents": ((torch.arange(63)[None] - 1) // 2).expand(BATCH, -1),
    }


def cost(build: Callable[[], object]) -> Cost:
    reset_peak()
    before, start = held(), perf_counter()
    kept = build()
    seconds, most = perf_counter() - start, peak()
    return Cost(1e3 * seconds, most - before, size(kept))


def size(kept: object) -> float | None:
    """Of the tensors of a mask, in MiB; None of a plan and of blocks, which are many small ones."""
    tensors = [kept.start, kept.end] if isinstance(kept, Ranges) else [kept] if isinstance(kept, Tensor) else []
    return sum(tensor.nbytes for tensor in tensors) / 2**20 if tensors else None


def typical(costs: Sequence[Cost]) -> Cost:
    times, memory, sizes = zip(*costs, strict=True)
    return Cost(median(times), median(memory), sizes[0])


def stages(pattern: str, data: dict[str, Tensor], layout: Layout) -> dict[str, Callable[[], object]]:
    parsed = Pattern.parse(pattern)

    def bound() -> Pattern:
        return parsed.bind(Rows(layout, data)).simplified()

    return {
        "ranges": lambda: key_ranges(bound(), layout.queries, layout),
        "tiles": lambda: tile_plan(bound(), layout),
        "blocks": lambda: block_mask(bound(), layout),
    }


def upstream_prefix(data: dict[str, Tensor]) -> Callable[[], object]:
    """Upstream's mask of `prefix_lm`, as its documentation makes it."""
    config = Qwen3Config(hidden_size=64, num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=8)
    config._attn_implementation = "sdpa"
    lengths = data["prefix_lengths"]

    def in_prefix(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return k < lengths[batch]

    embeds = torch.empty(BATCH, LENGTH, 64)
    return lambda: create_causal_mask(
        config, inputs_embeds=embeds, attention_mask=None, past_key_values=None, or_mask_function=in_prefix
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    data = inputs()
    layout = Layout.of(BATCH, LENGTH, heads=HEADS, groups=GROUPS)
    builds = {(text, stage): build for text in PATTERNS for stage, build in stages(text, data, layout).items()}
    builds["prefix_lm", "upstream"] = upstream_prefix(data)
    seen: dict[tuple[str, str], list[Cost]] = {key: [] for key in builds}
    for number in track(range(options.rounds + 1), "rounds"):
        for key, build in builds.items():
            seen[key] += [cost(build)] * (number > 0)  # the first one warms up
    rows = [{"pattern": text, "form": form, **typical(costs)._asdict()} for (text, form), costs in seen.items()]
    print("| pattern | form | ms | peak MiB | MiB |\n| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        known = "" if row["size_mib"] is None else f"{row['size_mib']:.2f}"
        print(f"| {row['pattern']} | {row['form']} | {row['milliseconds']:.2f} | {row['memory_mib']:.2f} | {known} |")
    write_results("mask_building", {**machine(), "batch": BATCH, "length": LENGTH, "rows": rows})


if __name__ == "__main__":
    main()
