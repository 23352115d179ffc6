"""Every patch is needed: without it, the test that it names fails."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from fork import series
from fork.checkout import Checkout
from fork.derive import derive
from fork.env import locate
from fork.errors import ForkError
from fork.git import Git
from fork.header import read_header
from fork.project import Project
from fork.recipe import Recipe, read_recipe
from fork.source import Source
from fork.upstream import chosen_pin


class Outcome(Enum):
    """How a test ended."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    MISSING = "missing"
    NOT_DROPPED = "cannot be dropped alone"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Proof:
    """A patch, the test it names, and how that ended with and without the patch."""

    patch: str
    test: str
    whole: Outcome
    without: Outcome
    said: str

    @property
    def holds(self) -> bool:
        """Whether the test shows that the patch is needed."""
        return self.whole is Outcome.PASSED and self.without is Outcome.FAILED


@dataclass(frozen=True)
class Bench:
    """Where proofs are run: a source tree in a temporary folder, and the research environment's Python."""

    root: Path
    git: Git
    base: str
    recipe: Recipe
    python: Path
    scratch: Path

    def run(self, test: str, without: str | None = None) -> tuple[Outcome, str]:
        """Run one test on the tree of the series, or of the series without one patch."""
        try:
            commit = derive(self.git, self.base, self.recipe, self.scratch, without).tip
        except ForkError as error:
            return Outcome.NOT_DROPPED, error.message
        tree = self.scratch / (without or "whole")
        if not tree.exists():
            unpack(self.git, commit, tree)
        return run_test(self.root, self.python, test, tree, self.scratch)


def prove(root: Path, only: str | None, source: Source = Source.AUTO, upstream: str = "") -> None:
    """Prove each patch, or the one whose number or name starts with `only`. The caller holds the lock."""
    series.apply(root, source, upstream)
    project, pin = Project(root), chosen_pin(root)
    checkout, recipe = Checkout.of(project), read_recipe(root, pin)
    state = checkout.state()
    assert state is not None  # applied just now
    with project.scratch() as scratch:
        bench = Bench(root, checkout.git, state.base, recipe, locate(root).python, scratch)
        proofs = [proof for patch in chosen(recipe, only) for proof in prove_patch(bench, patch)]
    print_table(proofs)
    lost = [proof for proof in proofs if not proof.holds]
    if lost:
        raise ForkError(
            "these patches are not proved; expected each test to pass with its patch and to fail without:\n"
            + "\n".join(f"{proof.patch}: {proof.test}\n{proof.said}" for proof in lost),
            next=f"mend the patch or its test, then make prove ARGS='--patch {lost[0].patch[:4]}'",
        )


def chosen(recipe: Recipe, only: str | None) -> list[str]:
    """The patches to prove."""
    if only is None:
        return list(recipe.patches)
    found = [patch for patch in recipe.patches if patch.startswith((only.zfill(4), only))]
    if not found:
        raise ForkError(f"no patch is number {only!r}, expected one of {', '.join(recipe.patches)}", next="make prove")
    return found


def prove_patch(bench: Bench, patch: str) -> list[Proof]:
    """Run the tests that a patch names, with it and without it."""
    tip = derive(bench.git, bench.base, bench.recipe, bench.scratch).patches[patch]
    header = read_header(bench.git, patch, bench.git.out("log", "-1", "--format=%B", tip))
    proofs = []
    for test in header.proofs:
        print(f"{patch}: {test} ...", flush=True)
        whole, with_it = bench.run(test)
        if whole is Outcome.PASSED:
            without, said = bench.run(test, without=patch)
        else:
            without, said = Outcome.NOT_RUN, with_it
        proofs.append(Proof(patch, test, whole, without, said))
    return proofs


def unpack(git: Git, commit: str, folder: Path) -> None:
    """Write a commit's files into a folder. A git worktree would stay registered when the run is killed."""
    index = git.having(GIT_INDEX_FILE=folder.with_suffix(".index"))
    index.run("read-tree", commit)
    index.run("checkout-index", "--all", "--quiet", f"--prefix={folder}/")


def run_test(root: Path, python: Path, test: str, tree: Path, scratch: Path) -> tuple[Outcome, str]:
    """Run one test; how it ended, and what pytest said."""
    report, said = run_pytest(root, python, ["-x", test], tree, scratch)
    cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
    return worst(cases), said


def run_pytest(root: Path, python: Path, words: Sequence[str], tree: Path, scratch: Path) -> tuple[Path, str]:
    """Run pytest in a process of its own that imports transformers from `tree`; its report and last words."""
    report = scratch / "report.xml"
    report.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTEST_"))}
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-o", "addopts=", "-o", f"cache_dir={scratch / 'cache'}",
         f"--junitxml={report}", *words],
        cwd=root,
        env={**kept, "PYTHONPATH": str(tree / "src"), "FORK_TREE": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    said = "\n".join(f"    {line}" for line in done.stdout.strip().splitlines()[-12:])
    return report, said


def worst(cases: Sequence[ElementTree.Element]) -> Outcome:
    """The worst of the cases that pytest reported; an error in collecting is no failure of the test."""
    if any(case.find("error") is not None for case in cases):
        return Outcome.ERROR
    if any(case.find("failure") is not None for case in cases):
        return Outcome.FAILED
    if not cases:
        return Outcome.MISSING
    return Outcome.SKIPPED if all(case.find("skipped") is not None for case in cases) else Outcome.PASSED


def print_table(proofs: list[Proof]) -> None:
    """One row a proof."""
    table = Table(*(Column(name, overflow="fold") for name in ("patch", "test", "with it", "without it", "")))
    for proof in proofs:
        table.add_row(
            proof.patch.partition("-")[0],  # the progress lines above name patch and test in full
            proof.test.partition("::")[2],
            proof.whole.value,
            proof.without.value,
            "proved" if proof.holds else "NOT PROVED",
        )
    Console(soft_wrap=True, markup=False, highlight=False).print(table)
