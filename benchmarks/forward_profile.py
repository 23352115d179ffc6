"""What a forward under a window spends its time on: beside one without attention, and plain causal.

Without attention, layers go on with their queries: what that takes is the rest of the model, and no mask can be
faster. Forwards take turns; then one under the window goes through torch's profiler. Beside each time stand the
seconds that the system took, and the pages that it gave: what glibc frees it gives back, and takes anew page by page,
unless told to keep it, by MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 before the command.

    python benchmarks/forward_profile.py [--length 16384] [--rounds 5]
"""

from __future__ import annotations

import argparse
from functools import partial
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import Any, NamedTuple

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


class Spent(NamedTuple):
    """Of one forward: its seconds, those of them that the system took on all cores together, and pages it gave."""

    seconds: float
    system: float
    pages: int


def spent(name: str, ids: Tensor) -> Spent:
    """On a forward under a pattern, or on one without attention."""
    run, said = model("pattern"), {} if name == NOTHING else {"mask_pattern": name}
    run.set_attn_implementation("nothing" if name == NOTHING else "sdpa")
    before = getrusage(RUSAGE_SELF)
    seconds = timed(partial(run, ids, use_cache=False, **said))
    after = getrusage(RUSAGE_SELF)
    return Spent(seconds, after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ids = inputs(options.length)["input_ids"]
    AttentionInterface.register("nothing", nothing)
    with torch.no_grad():
        turns = [{name: spent(name, ids) for name in (WINDOW, NOTHING, "causal")} for _ in range(options.rounds + 1)]
        for name in turns[0]:
            seconds, system, pages = map(median, zip(*(turn[name] for turn in turns[1:]), strict=True))  # one warms up
            print(f"{name}: {seconds:.2f} s; the system {system:.2f} s, for {pages:,.0f} pages")
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            spent(WINDOW, ids)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=50))


if __name__ == "__main__":
    main()
