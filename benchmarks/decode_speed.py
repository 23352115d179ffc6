"""The time of one more token: under patterns, and by unpatched upstream's plain causal decode.

Two processes, upstream's and the fork's, hold the same random model. In each round every mask has a turn, in random
order, and upstream has two: a few tokens are generated behind a cache of so many, all of `generate()` included, with
the time of each. Two processes of the same code differ by a few percent, so the rounds are shared out among several
pairs. Prints the median time, and the median of the ratios to upstream's first time in the same round; needs rich.

    python benchmarks/decode_speed.py [--model small] [--lengths 1024 8192] [--backends sdpa eager] [--rounds 48]

The models: `small` has 4 layers of width 256; `0.6B` has the sizes of Qwen3-0.6B, for which 16 rounds do. The fork
comes from `transformers/`, upstream from that checkout's base commit.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from random import sample
from statistics import median
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


ROOT = Path(__file__).resolve().parents[1]
UPSTREAM, AGAIN = "upstream", "upstream again"
PATTERNS = ("none", "causal", "sink(4) | sliding_window(512)", "prefix_lm(64)", "document(separator=3) & causal")
Place: TypeAlias = "tuple[str, int]"  # backend, keys
TOKENS = {"small": 32, "0.6B": 8}  # per turn
PAIRS = 4  # of processes
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "vocab_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "vocab_size": 151936,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}


class Worker:
    """A process with one model, which generates when told."""

    def __init__(self, source: Path, model: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--serve", "--model", model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def times(self, backend: str, length: int, pattern: str | None) -> list[float]:
        """Seconds of each new token."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((backend, length, pattern), self._process.stdin)
        self._process.stdin.flush()
        answer: list[float] = pickle.load(self._process.stdout)
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(name: str) -> None:
    """Generate behind caches of the lengths asked for, which are filled once and cut back after each turn."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    model, caches = make_model(name), dict[Any, Any]()
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(turn(model, TOKENS[name], caches, *question), answers)
        answers.flush()


def make_model(name: str) -> Any:
    import torch

    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES[name], max_position_embeddings=2**17)).eval()


def filled_cache(model: Any, ids: Any, said: dict[str, str]) -> Any:
    """A cache in which the first layer's keys stand for those of all: what they are does not matter to time."""
    import torch

    from transformers import DynamicCache

    cache, layers = DynamicCache(), model.config.num_hidden_layers
    model.config.num_hidden_layers = 1
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        for part in ids.split(1024, dim=1):
            model.model(part, past_key_values=cache, **said)
    model.config.num_hidden_layers = layers
    cache.layers.extend(deepcopy(cache.layers[0]) for _ in range(1, layers))
    return cache


def turn(
    model: Any, tokens: int, caches: dict[Any, Any], backend: str, length: int, pattern: str | None
) -> list[float]:
    from time import perf_counter

    import torch

    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(perf_counter())

        def end(self) -> None:
            pass

    said = {} if pattern in (None, "none") else {"mask_pattern": pattern}
    ids = torch.randint(4, 2000, (1, length), generator=torch.Generator().manual_seed(0))
    if length not in caches:
        first = {} if pattern is None else {"mask_pattern": "causal"}  # which remembers the tokens, for all patterns
        caches[length] = filled_cache(model, ids[:, :-1], first)
    cache = caches[length]
    model.set_attn_implementation(backend)
    clock = Clock()
    clock.times = []
    settings = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.generate(ids, past_key_values=cache, streamer=clock, **settings, **said)
    cache.crop(length - 1 - cache.get_seq_length())
    return [after - before for before, after in zip(clock.times[2:], clock.times[3:], strict=False)]


@contextmanager
def workers(model: str) -> Iterator[dict[bool, Worker]]:
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", ROOT / "transformers", "archive", "refs/fork/base", "src"], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        both = {True: Worker(Path(folder) / "src", model), False: Worker(ROOT / "transformers" / "src", model)}
        try:
            yield both
        finally:
            for worker in both.values():
                worker.stop()


def measured(model: str, places: Sequence[Place], rounds: int) -> dict[Place, dict[str, list[float]]]:
    """The median seconds per token of every turn, by backend and keys."""
    times: dict[Place, dict[str, list[float]]] = {
        place: {name: [] for name in (UPSTREAM, AGAIN, *PATTERNS)} for place in places
    }
    each = -(-rounds // PAIRS)
    with Progress() as progress:
        bar = progress.add_task(model, total=PAIRS * len(places) * (each + 1))
        for _ in range(PAIRS):
            with workers(model) as both:
                for place in places:
                    for number in range(each + 1):
                        take_turns(both, place, times[place], warm=number > 0)
                        progress.advance(bar)
    return times


def take_turns(both: dict[bool, Worker], place: Place, times: dict[str, list[float]], warm: bool) -> None:
    """A round; the first warms up, and does not count."""
    for name in sample(sorted(times), len(times)):
        is_upstream = name in (UPSTREAM, AGAIN)
        found = both[is_upstream].times(*place, None if is_upstream else name)
        times[name].extend([median(found)] if warm else [])


def ratio(times: list[float], base: list[float]) -> float:
    return median(time / upstream for time, upstream in zip(times, base, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="small")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--backends", nargs="+", default=["sdpa", "eager"])
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.model)
    table = Table("model", "backend", "keys", "mask", "ms per token", "to upstream")
    places = [(backend, length) for backend in options.backends for length in options.lengths]
    for (backend, length), times in measured(options.model, places, options.rounds).items():
        for name, seen in times.items():
            told = f"{1e3 * median(seen):.2f}", f"{ratio(seen, times[UPSTREAM]):.3f}"
            table.add_row(options.model, backend, f"{length:,}", name, *told)
    Console().print(table)
    return None


if __name__ == "__main__":
    main()
