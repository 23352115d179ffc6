"""Time and memory of masks that hide much: tile by tile, against unpatched upstream and compiled FlexAttention.

Two processes, upstream's and the fork's, take turns, every way of saying a mask once in a turn; each time is the
median of the turns, each ratio the median of the ratios within a turn. Attention alone stands beside the ideal: the
time of SDPA without a mask, times the part of all pairs that is visible. Prints a table, and keeps what it measured in
results/attention_speed.json beside this file, in place of what was there of the same work, mask and length: a long run
can go in slices. Draws docs/attention_speed.svg and docs/model_speed.svg. For Linux, and an idle machine.

    python benchmarks/attention_speed.py [--works attention forward training prefill decode] [--masks window documents]
        [--lengths 4096 16384] [--rounds 5] [--keep-memory]

All of it takes more than an hour. With `--keep-memory` glibc keeps what both processes free, which else it gives back
to the system and takes anew, page by page; what is measured then goes into results/attention_speed_kept_memory.json,
and nothing is drawn. The fork comes from `transformers/`, upstream from that checkout's base commit.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from attention_worker import MASKS, Measure, Task
from measures import ROOT, machine, read_results, write_results
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from speed_pictures import draw_attention, draw_model


LENGTHS = {
    "attention": (1024, 4096, 8192, 16384, 65536),
    "forward": (1024, 4096, 8192, 16384, 32768, 65536),
    "training": (4096, 8192),
    "prefill": (16384,),
    "decode": (1024, 16384),
}
OURS = {"tiles", "pattern", "no pattern"}
MOST_OTHERS = 16384  # longer rows only tile by tile: a whole mask takes gigabytes, and minutes
NAME, KEPT = "attention_speed", "attention_speed_kept_memory"
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}
Turns = dict[Task, list[Measure]]
Row = dict[str, Any]


class Worker:
    """A process that runs tasks on one tree of transformers."""

    def __init__(self, source: Path, settings: Mapping[str, str]) -> None:
        environment = os.environ | settings | {"PYTHONPATH": str(source)}
        command = [sys.executable, str(Path(__file__).with_name("attention_worker.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def run(self, task: Task) -> Measure:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(tuple(task), self._process.stdin)
        self._process.stdin.flush()
        return Measure(*pickle.load(self._process.stdout))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def workers(settings: Mapping[str, str]) -> Iterator[dict[bool, Worker]]:
    """By whether it is the fork's; `settings` are variables of their environment."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["git", "-C", str(ROOT / "transformers"), "archive", "refs/fork/base", "src"]
        archive = subprocess.run(command, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        sources = {True: ROOT / "transformers" / "src", False: Path(folder) / "src"}
        both = {is_fork: Worker(source, settings) for is_fork, source in sources.items()}
        try:
            yield both
        finally:
            for worker in both.values():
                worker.stop()


def tasks(work: str, mask: str, length: int) -> list[Task]:
    """The ways of one mask that take turns; none where it cannot be had: block diffusion decodes without a cache.

    Where upstream does the same as the fork, nothing else has a turn: it would leave two heaps that are not alike.
    """
    if (mask == "block diffusion" and work in ("prefill", "decode")) or (mask == "no mask" and work == "attention"):
        return []
    if work == "attention":
        ways = ["tiles", "dense", "flex", "unmasked"]
    elif mask == "no mask":
        ways = ["no pattern", "causal"]
    else:
        others = {"window": ["sliding_attention"], "documents": ["packed"]}
        ways = ["pattern", "4D", "causal", *others.get(mask, [])]
    if work in ("prefill", "decode"):
        ways = [way for way in ways if way != "packed"]  # upstream packs whole rows alone
    return [Task(work, mask, way, length) for way in ways if way in OURS or length <= MOST_OTHERS]


def is_fork(task: Task) -> bool:
    return task.work == "attention" or task.way in OURS


def measured(groups: Sequence[Sequence[Task]], rounds: int, settings: Mapping[str, str]) -> Iterator[Turns]:
    """All turns of each group of tasks; for rows that are not long a first turn warms up, and does not count.

    Two processes of the same code differ by as much as a tenth, attention alone by more, as the system happens to lay
    out their memory. There, and where both are to be as fast, each turn has its own.
    """
    with Progress() as progress:
        bar = progress.add_task("", total=sum(map(len, groups)) * rounds)
        for group in groups:
            turns: Turns = {task: [] for task in group}
            pairs = rounds if group[0].mask == "no mask" or group[0].work == "attention" else 1
            for _ in range(pairs):
                with workers(settings) as both:
                    for number in range(group[0].length >= MOST_OTHERS, rounds // pairs + 1):
                        for task in group:
                            progress.update(bar, description=f"{task.work}, {task.mask}, {task.length:,}, {task.way}")
                            found = both[is_fork(task)].run(task)
                            turns[task] += [found] * (number > 0)
                            progress.advance(bar, number > 0)
            yield turns


def row(task: Task, turns: Turns) -> Row:
    """What is known of one task, and how much slower than ours it was in the same turns."""
    seen = turns[task]
    ours = next(iter(turns.values()))
    known: Row = {
        **task._asdict(),
        "rounds": len(seen),
        "milliseconds": 1e3 * median(measure.seconds for measure in seen),
        "memory_mib": max(measure.memory for measure in seen),
        "grown_mib": median(measure.grown for measure in seen),
        "to_ours": median(a.seconds / b.seconds for a, b in zip(seen, ours, strict=True)),
        "visible": ours[0].visible,
    }
    if task.way == "unmasked":
        known["ideal_milliseconds"] = known["milliseconds"] * ours[0].visible
        known["ours_to_ideal"] = median(b.seconds / (a.seconds * b.visible) for a, b in zip(seen, ours, strict=True))
    return known


def place(known: Row) -> tuple[int, int, int]:
    """Where a group of rows stands in the table."""
    return list(LENGTHS).index(known["work"]), known["length"], list(MASKS).index(known["mask"])


def kept(new: Sequence[Row], name: str) -> list[Row]:
    """Rows beside those of other groups that were measured before on this machine, under this name of results."""
    here, before = machine(), read_results(name)
    alike = all(before.get(what) == here[what] for what in here if what != "command")
    groups = {place(known) for known in new}
    old = [known for known in before.get("rows", []) if alike and place(known) not in groups]
    rows = sorted([*old, *new], key=place)
    command = "python benchmarks/attention_speed.py" + " --keep-memory" * (name == KEPT)
    write_results(name, {**here, "command": command, "rows": rows})
    return rows


def table(rows: Sequence[Row]) -> Table:
    made = Table("work", "mask", "tokens", "way", "ms", "peak MiB", "time to ours", "ours to ideal")
    for known in rows:
        ideal = f"{known['ours_to_ideal']:.2f}" if "ours_to_ideal" in known else ""
        numbers = f"{known['milliseconds']:.1f}", f"{known['memory_mib']:.0f}", f"{known['to_ours']:.2f}", ideal
        made.add_row(known["work"], known["mask"], f"{known['length']:,}", known["way"], *numbers)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--masks", nargs="+", choices=list(MASKS), default=list(MASKS))
    parser.add_argument("--lengths", nargs="+", type=int, default=sorted({n for own in LENGTHS.values() for n in own}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-memory", action="store_true")
    options = parser.parse_args()
    places = [(work, mask, length) for work in options.works for length in LENGTHS[work] for mask in options.masks]
    groups = [group for place in places if place[2] in options.lengths and (group := tasks(*place))]
    new: list[Row] = []
    for turns in measured(groups, options.rounds, KEEP_MEMORY if options.keep_memory else {}):
        new += [row(task, turns) for task in turns]
        rows = kept(new, KEPT if options.keep_memory else NAME)
    Console(width=110).print(table(new))
    if not options.keep_memory:
        draw_attention(rows, ROOT / "docs/attention_speed.svg")
        draw_model(rows, ROOT / "docs/model_speed.svg")


if __name__ == "__main__":
    main()
