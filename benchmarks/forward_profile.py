"""What a forward under a window spends its time on: beside one under a window of one token, and plain causal.

A window of one token leaves attention next to nothing to do: what it takes is the rest of the model, and no mask can
be faster. Forwards take turns; then one under the window goes through torch's profiler.

    python benchmarks/forward_profile.py [--length 16384] [--rounds 5]
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch
from attention_worker import inputs, model, timed
from torch.profiler import ProfilerActivity, profile


WINDOW = "sliding_window(512)"
PATTERNS = (WINDOW, "sliding_window(1)", "causal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run, ids = model("pattern"), inputs(options.length)["input_ids"]
    forward = {text: partial(run, ids, use_cache=False, mask_pattern=text) for text in PATTERNS}
    with torch.no_grad():
        turns = [{text: timed(forward[text]) for text in PATTERNS} for _ in range(options.rounds + 1)]
        for text in PATTERNS:
            print(f"{text}: {median(turn[text] for turn in turns[1:]):.2f} s")  # the first one warms up
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            forward[WINDOW]()
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=50))


if __name__ == "__main__":
    main()
