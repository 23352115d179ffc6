"""Every patch is needed: without it, the test that it names fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from fork.checkout import Checkout
from fork.derive import Series, derive
from fork.develop import ready_for_tests, workers
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


Ends = Mapping[str, tuple[Outcome, str]]


@dataclass(frozen=True)
class Bench:
    """Where proofs are run: source trees in a temporary folder, and the research environment's Python."""

    root: Path
    git: Git
    recipe: Recipe
    whole: Series
    python: Path
    scratch: Path

    def named(self, patch: str) -> Sequence[str]:
        """The tests that a patch names."""
        text = self.git.out("log", "-1", "--format=%B", self.whole.patches[patch])
        return read_header(self.git, patch, text).proofs

    def run(self, tests: Sequence[str], commit: str, place: Path) -> tuple[Mapping[str, Outcome], str]:
        """How tests end on a commit's tree, and what pytest said."""
        tree = place / "tree"
        unpack(self.git, commit, tree)
        report, said = run_pytest(self.root, self.python, tests, tree, place)
        shutil.rmtree(tree)
        return read_outcomes(report, tests), said

    def whole_run(self, tests: Sequence[str]) -> Ends:
        """How each test ends with all patches; one by one where a test that is not there stopped pytest."""
        print(f"with all patches: {len(tests)} tests ...", flush=True)
        outcomes, said = self.run(tests, self.whole.tip, self.scratch)
        if Outcome.MISSING in outcomes.values() and len(tests) > 1:
            return {test: end for one in tests for test, end in self.whole_run([one]).items()}
        return {test: (outcome, said) for test, outcome in outcomes.items()}

    def without(self, patch: str, tests: Sequence[str]) -> Ends:
        """How they end on the series without one patch."""
        if not tests:
            return {}
        print(f"without {patch}: {', '.join(tests)} ...", flush=True)
        place = self.scratch / patch
        place.mkdir()
        try:
            commit = derive(self.git, self.whole.base, self.recipe, place, patch).tip
        except ForkError as error:
            return dict.fromkeys(tests, (Outcome.NOT_DROPPED, error.message))
        outcomes, said = self.run(tests, commit, place)
        return {test: (outcome, said) for test, outcome in outcomes.items()}


def prove(root: Path, only: str | None, source: Source = Source.AUTO, upstream: str = "") -> None:
    """Prove each patch, or the one whose number or name starts with `only`. The caller holds the lock."""
    environment = ready_for_tests(root, source, upstream)
    project, recipe = Project(root), read_recipe(root, chosen_pin(root))
    checkout = Checkout.of(project)
    state = checkout.state()
    assert state is not None  # applied just now
    with project.scratch() as scratch:
        whole = derive(checkout.git, state.base, recipe, scratch)
        bench = Bench(root, checkout.git, recipe, whole, environment.python, scratch)
        proofs = prove_patches(bench, chosen(recipe, only))
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


def prove_patches(bench: Bench, patches: Sequence[str]) -> list[Proof]:
    """Run all tests on the whole series, and those that pass there once more without their patch.

    Importing torch and transformers takes longer than most tests, so several processes go side by side.
    """
    named = {patch: bench.named(patch) for patch in patches}
    whole = bench.whole_run(list(dict.fromkeys(test for tests in named.values() for test in tests)))
    passing = {patch: [test for test in tests if whole[test][0] is Outcome.PASSED] for patch, tests in named.items()}
    with ThreadPoolExecutor(workers()) as pool:
        without = dict(zip(passing, pool.map(bench.without, passing, passing.values()), strict=True))
    proofs = []
    for patch, tests in named.items():
        for test in tests:
            ended, said = without[patch].get(test, (Outcome.NOT_RUN, whole[test][1]))
            proofs.append(Proof(patch, test, whole[test][0], ended, said))
    return proofs


def unpack(git: Git, commit: str, folder: Path) -> None:
    """Write a commit's files into a folder. A git worktree would stay registered when the run is killed."""
    index = git.having(GIT_INDEX_FILE=folder.with_suffix(".index"))
    index.run("read-tree", commit)
    index.run("checkout-index", "--all", "--quiet", f"--prefix={folder}/")


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


def read_outcomes(report: Path, tests: Sequence[str]) -> dict[str, Outcome]:
    """The outcome of each test by its node id; of one with parameters, the worst of its cases."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
    found = {}
    for test in tests:
        file, *scopes = test.split("::")
        module, name = file.removesuffix(".py").replace("/", "."), scopes[-1]
        place = ".".join([module, *scopes[:-1]])
        mine = [case for case in cases if case.get("classname") == place
                and (case.get("name") == name or str(case.get("name")).startswith(f"{name}["))]  # fmt: skip
        uncollected = [case for case in cases if case.get("name") == module]
        found[test] = worst(mine or uncollected)
    return found


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
