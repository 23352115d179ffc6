"""What a forward under a window spends its time on: beside one without attention, and plain causal.

Without attention, layers go on with their queries: what that takes is the rest of the model, and no mask can be
faster. Forwards take turns; then one under the window goes through torch's profiler.

    python benchmarks/forward_profile.py [--length 16384] [--rounds 5]
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from typing import Any

import torch
from attention_worker import inputs, model, timed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from transformers import AttentionInterface


WINDOW = "sliding_window(512)"
NOTHING = "no attention"


def nothing(module: Any, q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """An attention function that attends to nothing."""
    return q.transpose(1, 2).contiguous(), None


def seconds(name: str, ids: Tensor) -> float:
    """Of a forward under a pattern, or of one without attention."""
    run, said = model("pattern"), {} if name == NOTHING else {"mask_pattern": name}
    run.set_attn_implementation("nothing" if name == NOTHING else "sdpa")
    return timed(partial(run, ids, use_cache=False, **said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ids = inputs(options.length)["input_ids"]
    AttentionInterface.register("nothing", nothing)
    with torch.no_grad():
        turns = [{name: seconds(name, ids) for name in (WINDOW, NOTHING, "causal")} for _ in range(options.rounds + 1)]
        for name in turns[0]:
            print(f"{name}: {median(turn[name] for turn in turns[1:]):.2f} s")  # the first one warms up
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            seconds(WINDOW, ids)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=50))


if __name__ == "__main__":
    main()
