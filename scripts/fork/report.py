"""What a rebase did, patch by patch: in the terminal, and as Markdown in `.fork/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from unidiff.patch import PatchSet

from fork import smoke
from fork.derive import derive
from fork.errors import ForkError
from fork.git import Git
from fork.progress import Area, Fate, Progress
from fork.prove import Outcome
from fork.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """A patch: its name before and after, what became of it, and how many lines it changes."""

    old: str
    new: str
    fate: Fate
    lines: tuple[int, int]
    note: str

    def cells(self) -> tuple[str, ...]:
        """As a table has it."""
        before, after = self.lines
        changed = f"{before}" if before == after else f"{before} -> {after}"
        return self.old.removesuffix(".patch"), self.fate.value, changed, self.note


def publish(area: Area, progress: Progress, made: Recipe, scratch: Path) -> None:
    """Print the report and write it; runs the smoke test, if there is an environment for it."""
    git = area.git
    fresh = derive(git, progress.bases[1], made, scratch)
    old_tip = list(progress.patches.values())[-1]
    rows = list_rows(git, progress, list(fresh.patches.items()))
    ranges = git.out(
        "range-diff",
        "--no-color",
        "--creation-factor=95",
        f"{progress.overlays[0]}..{old_tip}",
        f"{fresh.overlay}..{fresh.tip}",
    )
    tests = try_smoke(area, old_tip, fresh.tip, smoke.proofs(git, fresh.patches), scratch)
    file = area.project.state / f"rebase-{progress.old.tag}-{progress.new.tag}.md"
    file.write_text(markdown(progress, rows, tests, ranges), encoding="utf-8")
    show(rows)
    print("\n".join([*summary(progress, rows), *tests, f"report: {file.relative_to(area.project.root)}"]))


def list_rows(git: Git, progress: Progress, made: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each patch of the old series, in order."""
    left, rows = list(made), []
    for each in progress.done:
        name, commit = left.pop(0) if each.commit else ("", "")
        before = count_lines(git, progress.patches[each.patch])
        rows.append(Row(each.patch, name, each.fate, (before, count_lines(git, commit) if commit else 0), each.note))
    return rows


def count_lines(git: Git, commit: str) -> int:
    """How many lines a commit adds and removes."""
    return sum(file.added + file.removed for file in PatchSet(git.run("diff-tree", "-p", f"{commit}^", commit).stdout))


def try_smoke(area: Area, old: str, new: str, tests: list[str], scratch: Path) -> list[str]:
    """The tests that differ, a line each; or why none was run."""
    try:
        found = smoke.compare(area.project.root, area.git, old, new, tests, scratch)
    except ForkError as error:
        return [f"smoke test: not run ({error.message})"]
    differing = [f"  {test}: {found.old[test].value} -> {found.new[test].value}" for test in found.differing()]
    passed = list(found.new.values()).count(Outcome.PASSED)
    return [f"smoke test: {passed} of {len(tests)} pass on the new release, {len(differing)} differ", *differing]


def summary(progress: Progress, rows: Sequence[Row]) -> list[str]:
    """The count of each fate, and what has been recorded without being known before."""
    counts = ", ".join(f"{[row.fate for row in rows].count(fate)} {fate.value}" for fate in Fate)
    lines = [f"{len(rows)} patches in, {sum(bool(row.new) for row in rows)} out: {counts}"]
    if progress.recorded_anew:
        pin = progress.new
        lines.append(f"recorded anew, as the package index gave it: {pin.version} has sha256 {pin.sdist_sha256}")
    return lines


def show(rows: Sequence[Row]) -> None:
    """The table, in the terminal."""
    table = Table(*(Column(name, overflow="fold") for name in ("patch", "became", "lines", "")))
    for row in rows:
        table.add_row(row.old.partition("-")[0], *row.cells()[1:])  # the lines above name it in full
    Console(soft_wrap=True, markup=False, highlight=False).print(table)


def markdown(progress: Progress, rows: Sequence[Row], tests: Sequence[str], ranges: str) -> str:
    """The whole report."""
    table = "\n".join(f"| {' | '.join(row.cells())} |" for row in rows)
    told = "\n".join(f"- {line.strip()}" for line in [*summary(progress, rows), *tests])
    return (
        f"# From {progress.old.version} to {progress.new.version}\n\n{told}\n\n"
        f"| patch | became | changed lines | |\n| --- | --- | --- | --- |\n{table}\n\n"
        f"The patches before and after, as `git range-diff` sees them:\n\n```diff\n{ranges}\n```\n"
    )
