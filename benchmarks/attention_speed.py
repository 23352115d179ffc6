"""Time and memory of masks that hide much: tile by tile, against unpatched upstream and compiled FlexAttention.

Two processes, upstream's and the fork's, take turns, every way of saying a mask once in a turn; each time is the
median of the turns, each ratio the median of the ratios within a turn. Attention alone stands beside the ideal: the
time of SDPA without a mask, times the part of all pairs that is visible. Prints a table, and writes
results/attention_speed.json beside this file and docs/attention_speed.svg. For Linux, and an idle machine.

    python benchmarks/attention_speed.py [--works attention forward training prefill] [--rounds 5] [--most 16384]

`decode_speed.py` measures decoding. The fork comes from `transformers/`, upstream from that checkout's base commit.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from attention_worker import MASKS, Measure, Task
from matplotlib import pyplot as plt
from rich.progress import Progress


ROOT = Path(__file__).resolve().parents[1]
WORKS = ("attention", "forward", "training", "prefill")
LENGTHS = {
    "attention": (1024, 4096, 8192, 16384, 65536),
    "forward": (1024, 4096, 16384, 65536),
    "training": (4096,),
    "prefill": (16384,),
}
OURS = {"tiles", "pattern"}
MOST_OTHERS = 16384  # longer rows only tile by tile: a whole mask takes gigabytes, and minutes
Turns = dict[Task, list[Measure]]


class Worker:
    """A process that runs tasks on one tree of transformers."""

    def __init__(self, source: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(source)}
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
def workers() -> Iterator[dict[bool, Worker]]:
    """By whether it is the fork's."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["git", "-C", str(ROOT / "transformers"), "archive", "refs/fork/base", "src"]
        archive = subprocess.run(command, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        both = {True: Worker(ROOT / "transformers" / "src"), False: Worker(Path(folder) / "src")}
        try:
            yield both
        finally:
            for worker in both.values():
                worker.stop()


def tasks(work: str, mask: str, length: int) -> list[Task]:
    """The ways of one mask that take turns."""
    if work == "attention":
        ways = ["tiles", "dense", "flex", "unmasked"]
    else:
        others = {"window": ["sliding_attention"], "documents": ["packed"]}
        ways = ["pattern", "4D", "causal", *others.get(mask, [])]
    return [Task(work, mask, way, length) for way in ways if way in OURS or length <= MOST_OTHERS]


def is_fork(task: Task) -> bool:
    return task.work == "attention" or task.way in OURS


def measured(groups: Sequence[Sequence[Task]], rounds: int) -> Turns:
    """All turns of all tasks; a first turn warms up, and does not count."""
    turns: Turns = {task: [] for group in groups for task in group}
    with workers() as both, Progress() as progress:
        bar = progress.add_task("", total=len(turns) * (rounds + 1))
        for group in groups:
            for number in range(rounds + 1):
                for task in group:
                    progress.update(bar, description=f"{task.work}, {task.mask}, {task.length}, {task.way}")
                    found = both[is_fork(task)].run(task)
                    turns[task] += [found] * (number > 0)
                    progress.advance(bar)
    return turns


def row(task: Task, turns: Turns) -> dict[str, Any]:
    """What is known of one task, and how much slower than ours it was in the same turns."""
    seen = turns[task]
    ours = next(turns[other] for other in turns if other[:2] == task[:2] and other.length == task.length)
    known: dict[str, Any] = {
        **task._asdict(),
        "milliseconds": 1e3 * median(measure.seconds for measure in seen),
        "memory_mib": max(measure.memory for measure in seen),
        "to_ours": median(a.seconds / b.seconds for a, b in zip(seen, ours, strict=True)),
    }
    if task.way == "unmasked":
        known["ideal_milliseconds"] = known["milliseconds"] * ours[0].visible
        known["ours_to_ideal"] = median(b.seconds / (a.seconds * b.visible) for a, b in zip(seen, ours, strict=True))
    return known


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| work | mask | tokens | way | ms | peak MiB | time to ours | ours to ideal |", "|" + " --- |" * 8]
    for known in rows:
        ideal = f"{known['ours_to_ideal']:.2f}" if "ours_to_ideal" in known else ""
        lines.append(
            f"| {known['work']} | {known['mask']} | {known['length']:,} | {known['way']} | "
            f"{known['milliseconds']:.1f} | {known['memory_mib']:.0f} | {known['to_ours']:.2f} | {ideal} |"
        )
    return "\n".join(lines)


COLOURS = {"tiles": "#2166ac", "dense": "#b35806", "flex": "#7b3294", "ideal": "#888888"}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Attention alone: time over length, one plot a mask."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "attention_speed", "font.size": 8})
    masks = sorted({known["mask"] for known in rows}, key=list(MASKS).index)
    figure, axes = plt.subplots(
        2, -(-len(masks) // 2), figsize=(9, 4.5), layout="constrained", sharex=True, sharey=True
    )
    for axis, mask in zip(axes.flat, masks, strict=False):
        for way, colour in COLOURS.items():
            name, time = ("unmasked", "ideal_milliseconds") if way == "ideal" else (way, "milliseconds")
            own = [(k["length"], k[time]) for k in rows if (k["mask"], k["way"]) == (mask, name)]
            axis.plot(*zip(*own, strict=True), color=colour, label=way, marker=".") if own else None
        axis.set(title=mask, xscale="log", yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(frameon=False)
    figure.supxlabel("tokens")
    figure.supylabel("milliseconds, 8 heads of 64")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--masks", nargs="+", choices=list(MASKS), default=list(MASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=65536, help="tokens in the longest row")
    options = parser.parse_args()
    places = [(work, mask, length) for work in options.works for length in LENGTHS[work] for mask in options.masks]
    turns = measured([tasks(*place) for place in places if place[2] <= options.most], options.rounds)
    rows = [row(task, turns) for task in turns]
    print(table(rows))
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "argv": sys.argv[1:]}
    folder = Path(__file__).with_name("results")
    folder.mkdir(exist_ok=True)
    (folder / "attention_speed.json").write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")
    if alone := [known for known in rows if known["work"] == "attention"]:
        draw(alone, ROOT / "docs/attention_speed.svg")


if __name__ == "__main__":
    main()
