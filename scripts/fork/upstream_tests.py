"""`make test-upstream`: upstream's tests on the pin and on the patched tree, and what differs."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fork import series
from fork.checkout import Checkout
from fork.consistency import Checks, checks_of
from fork.develop import DECIDED, THREADS, ready
from fork.difference import Cases, Change, Comparison
from fork.env import Environment
from fork.errors import ForkError
from fork.git import LOCATION, Git
from fork.inventory import take
from fork.junit import Case, read_cases
from fork.pins import Pin
from fork.pip import clean_environment
from fork.project import Project
from fork.prove import Outcome, unpack
from fork.source import Source
from fork.upstream import chosen_pin


# What pytest ends with when it ran the tests: none failed, some failed.
RAN = (0, 1)
# How often what failed anew has to pass before it counts as unsteady.
AGAIN = 3
# The caller's variables that can change how a test ends.
TELLING = ("HF_", "RUN_", "TORCH", "TRANSFORMERS_")

FAMILIES = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
SUITES = (
    *(f"tests/models/{family}" for family in FAMILIES),
    "tests/utils/test_masking_utils.py",
    "tests/utils/test_cache_utils.py",
    "tests/generation",
)


@dataclass(frozen=True)
class Selection:
    """What pytest is given, the same for both trees."""

    driver: Path | None
    words: tuple[str, ...]

    @property
    def requirements(self) -> str:
        """What the tests import."""
        return "requirements-upstream.txt" if self.driver else "requirements-upstream-git.txt"

    def arguments(self, tree: Path, tests: Sequence[str] = ()) -> list[str]:
        """Options and paths, or certain tests by their node ids.

        In an sdist upstream's tests are driven by ours; a git checkout has them all.
        """
        root = self.root(tree)
        if self.driver is None:
            return [
                f"--rootdir={root}",
                *self.words,
                *(tests or (suite for suite in SUITES if (tree / suite).exists())),
            ]
        paths = [f"{root / test}" for test in tests] or [str(self.driver)]
        return ["-c", os.devnull, f"--rootdir={root}", f"--confcutdir={root}", *self.words, *paths]

    def root(self, tree: Path) -> Path:
        """The folder from which node ids count."""
        return self.driver.parent if self.driver else tree

    def key(self) -> Iterator[str]:
        """What makes two selections the same."""
        yield from self.words
        for file in sorted(self.driver.parent.glob("*.py")) if self.driver else ():
            yield f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


@dataclass(frozen=True)
class Runner:
    """Runs a selection on a commit's tree."""

    git: Git
    environment: Environment
    selection: Selection
    guard: Path
    jobs: int
    scratch: Path

    def run(self, commit: str, name: str, report: Path, tests: Sequence[str] = ()) -> None:
        """Write the JUnit report of the tests, all or certain ones, on a commit."""
        tree = self.tree(commit, name)
        unfinished = report.with_suffix(".tmp")
        print(f"== upstream's tests on {name}{f', {len(tests)} of them' if tests else ''}", flush=True)
        parallel = ["--numprocesses", str(self.jobs), "--dist", "worksteal"] if self.jobs > 1 else []
        status = subprocess.run(
            [self.environment.python, "-m", "pytest", "-q", "-p", "tree_guard", "-p", "no:cacheprovider",
             "--disable-warnings", "-o", "log_cli=false", "-o", "junit_family=xunit1", f"--junitxml={unfinished}",
             *parallel, *self.selection.arguments(tree, tests)],
            cwd=tree, env=self.variables(tree), stdin=subprocess.DEVNULL,
        ).returncode  # fmt: skip
        if status not in RAN:
            raise ForkError(
                f"pytest ended with status {status} on {name}, expected 0 or 1; what it said is above",
                next="see to that, then make test-upstream",
            )
        unfinished.replace(report)

    def tree(self, commit: str, name: str) -> Path:
        """A commit's files, unpacked under a name."""
        tree = self.scratch / name
        if not tree.exists():
            unpack(self.git, commit, tree)
            (tree / "tests" / "__init__.py").touch()  # upstream's test of configurations reads it; no sdist has it
        return tree

    def variables(self, tree: Path) -> dict[str, str]:
        """The environment of a run. What tests spawn finds the same tree, and nothing asks the network."""
        dropped = (*DECIDED, *LOCATION, "JOBS")
        kept = {name: value for name, value in clean_environment().items() if name not in dropped}
        kept = {name: value for name, value in kept.items() if not name.startswith("PYTEST_")}
        search = os.pathsep.join(map(str, (tree / "src", tree, self.guard)))
        return {"HF_HUB_OFFLINE": "1"} | kept | dict.fromkeys(THREADS, "1") | {
            "PYTHONPATH": search, "FORK_TREE": str(tree), "VIRTUAL_ENV": str(self.environment.home),
            "PATH": f"{self.environment.python.parent}{os.pathsep}{kept.get('PATH', '')}",
        }  # fmt: skip


def test_upstream(root: Path, source: Source, upstream: str, jobs: int, words: Sequence[str]) -> None:
    """Compare, write the reports, and fail if anything was lost. The caller holds the lock."""
    series.apply(root, source, upstream)
    project, pin = Project(root), chosen_pin(root)
    checkout = Checkout.of(project)
    state = checkout.state()
    assert state is not None  # applied just now
    selection = select(root, checkout.git, state.base, words)
    environment = ready(root, source, pin.version, selection.requirements)
    reports = project.state / "upstream"
    reports.mkdir(exist_ok=True)
    guard = root / "tests" / "upstream"
    with project.scratch() as scratch:
        runner = Runner(checkout.git, environment, selection, guard, jobs, scratch)
        known = baseline(runner, state.base, reports)
        patched = reports / "patched.xml"
        runner.run(state.applied, "patched", patched)
        before, after = (read_cases(file, selection.root(scratch / "patched")) for file in (known, patched))
        after = run_again(runner, state.applied, before, after)
        if selection.driver is None and not words:  # words choose among the tests
            checks = checks_of(root, checkout.git, state.base, state.applied, environment.python)
            held, holds = consistency(runner, checks, state.base)
            before, after = {**before, **held}, {**after, **holds}
        report(pin, before, after, reports)


def select(root: Path, git: Git, base: str, words: Sequence[str]) -> Selection:
    """The whole suites where the base has them, else our driver of upstream's mixins."""
    whole = git.run("cat-file", "-e", f"{base}:tests/models", check=False).returncode == 0
    return Selection(None if whole else root / "tests" / "upstream" / "model_tests.py", tuple(words))


def baseline(runner: Runner, base: str, reports: Path) -> Path:
    """How the tests end on the pin: known from before, if nothing that it depends on has changed."""
    known = reports / f"pin-{baseline_key(runner, base)}.xml"
    if known.exists():
        print(f"== upstream's tests on the pin: known from before, {known}")
    else:
        runner.run(base, "pin", known)
    return known


def baseline_key(runner: Runner, base: str) -> str:
    """A name for base commit, environment and selection together."""
    inventory = take(runner.environment)
    installed = sorted(f"{each.name} {each.version}" for each in inventory.visible.values())
    installed = [each for each in installed if not each.startswith("transformers ")]
    told = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(TELLING))
    lines = [base, *runner.selection.key(), *installed, *map(str, sorted(inventory.markers.items())), *told]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def run_again(runner: Runner, applied: str, before: Cases, after: Cases) -> dict[str, Case]:
    """What failed anew is run some more: upstream has tests that fail now and then, of processes above all.

    What passes each time is told as unsteady; what fails again is a failure.
    """
    root, report = runner.selection.root(runner.scratch / "patched"), runner.scratch / "again.xml"
    failed = [each.test for each in Comparison("", before, after).differences if each.change is Change.NEW_FAILURE]
    passing = [test for test in failed if (root / test.partition("::")[0]).is_file()]
    for _ in range(AGAIN):
        if passing:
            runner.run(applied, "patched", report, passing)
            again = read_cases(report, root)
            passing = [test for test in passing if again.get(test, after[test]).outcome is Outcome.PASSED]
    said = f"failed once, then passed {AGAIN} times; it had said: "
    return {**after, **{test: Case(Outcome.PASSED, said + after[test].said, unsteady=True) for test in passing}}


def consistency(runner: Runner, checks: Checks, base: str) -> tuple[Cases, Cases]:
    """Upstream's checks of its source, before and after. What holds now is not run on the pin: nothing is lost."""
    patched = runner.scratch / "patched"
    after = checks.run(patched, runner.variables(patched))
    if all(case.outcome is Outcome.PASSED for case in after.values()):
        return after, after
    pin = runner.tree(base, "pin")
    return checks.run(pin, runner.variables(pin)), after


def report(pin: Pin, before: Cases, after: Cases, reports: Path) -> None:
    """Say what differs, in the terminal and in a file."""
    comparison = Comparison(f"Upstream's tests, {pin.tag}", before, after)
    comparison.print()
    page = reports / "report.md"
    page.write_text(comparison.markdown(), encoding="utf-8")
    print(f"written: {page}, and beside it the JUnit reports")
    if comparison.losses:
        raise ForkError(
            f"{len(comparison.losses)} of upstream's tests are lost (above), expected none",
            next=f"less '{page}', mend, then make test-upstream (ARGS=\"-k NAME\" for some of the tests)",
        )
