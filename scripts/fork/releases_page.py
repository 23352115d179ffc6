"""docs/releases.md, from what is known of each release."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from packaging.version import Version

from fork.records import Record, Records
from fork.trial import Stopped, Trial


PAGE = "docs/releases.md"
HEAD = """\
# What to expect of a release

`make releases` takes every release of transformers on PyPI from {first} to {last}, carries the nearest series of
`patches/` onto it as `make rebase` does, with no hand in it, and runs a smoke test on what comes out. It writes this
page, and docs/releases.json with the hashes of the sdists.

- *clean*: every patch is as it was, down to the lines around it. *adapted*: git merged some into other lines, and
  each change landed in the class and function that it was written for, with every name that it loads bound. Else the
  patches are named that have to be resolved by hand, and nothing was run.
- The smoke test: tiny Qwen2 and Qwen3, on eager attention and SDPA, under `sink(1) | sliding_window(2)`,
  `prefix_lm(3)` and `causal & document`, a row padded and one not. Logits equal those of a plain reference, tokens of
  `generate()` with and without a cache are those that it predicts, and a saved pattern is obeyed. Clean but failing
  counts as broken.
- The series is that of the nearest pin, by releases between; where that one does not work, of the pin on the other
  side, if that is better.

The pins themselves have all our tests (see the README). For a release that works:

    make rebase TO=5.16.0 UPSTREAM=5.17.0       # the release, and the series from the table
    make install test UPSTREAM=5.16.0

"""


def page(records: Records) -> str:
    """The whole page."""
    newest = sorted(records, key=Version, reverse=True)
    table = "\n".join(row(version, records[version]) for version in newest)
    head = HEAD.format(first=newest[-1], last=newest[0])
    return (
        f"{head}## In short\n\n{summary(records)}\n\n## Release by release\n\n"
        f"| release | series of | patches | smoke test | what to expect |\n| --- | --- | --- | --- | --- |\n{table}\n"
    )


def summary(records: Records) -> str:
    """Neighbours that end alike, in a line each."""
    newest = sorted(records, key=Version, reverse=True)
    lines = []
    for told, alike in groupby(newest, key=lambda version: short(records[version].best)):
        group = list(alike)
        span = group[0] if len(group) == 1 else f"{group[-1]} to {group[0]}, {len(group)} releases"
        lines.append(f"- {span}: {told}")
    works = sum(record.best.works for record in records.values())
    return "\n".join([f"{works} of {len(records)} releases work without a hand touching them.", "", *lines])


def row(version: str, record: Record) -> str:
    """A release's line of the table."""
    best = record.best
    smoke = best.smoke
    tests = f"{smoke.passed} of {smoke.passed + smoke.failed}" if smoke else "not run"
    own = "a pin" if best.series == version else best.series
    return f"| {version} | {own} | {patches(best)} | {tests} | {expectation(best)} |"


def patches(trial: Trial) -> str:
    """What became of the patches."""
    if trial.stopped:
        return f"{trial.took.value}: {', '.join(numbers([each.patch for each in trial.stopped]))}"
    return f"{trial.took.value}: {', '.join(numbers(trial.adapted))}" if trial.adapted else trial.took.value


def numbers(names: Sequence[str]) -> list[str]:
    """Patches by their numbers."""
    return [name.partition("-")[0] for name in names]


def short(trial: Trial) -> str:
    """What to expect, in a word or two."""
    if trial.works:
        return "works"
    return "by hand" if trial.stopped else "broken"


def expectation(trial: Trial) -> str:
    """What to expect, and where the work lies."""
    if trial.stopped:
        return f"by hand: {'; '.join(map(work, trial.stopped))}"
    return short(trial) if trial.works or trial.smoke is None else f"broken: {plain(trial.smoke.said)}"


def work(stopped: Stopped) -> str:
    """Where a patch stopped."""
    where = plain(stopped.said) if stopped.said else "nothing left of it"
    return f"{stopped.patch.partition('-')[0]} {where}"


def plain(text: str) -> str:
    """As it may stand in a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
