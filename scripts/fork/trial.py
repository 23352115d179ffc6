"""One series on one release, with no hand in it: what becomes of each patch, and whether the result works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from fork import carry
from fork.companions import environment_for, read_metadata
from fork.derive import Series, commit_overlay, derive
from fork.errors import ForkError
from fork.git import Git
from fork.junit import read_cases
from fork.pins import Pin
from fork.progress import Fate, Stop
from fork.project import SUBMODULE, Project
from fork.prove import Outcome, run_pytest
from fork.recipe import read_recipe
from fork.sdist import archive_name, download, read_sha256
from fork.source import import_sdist


SMOKE = "tests/models/test_any_release.py"


class Took(str, Enum):
    """How a release took a series."""

    CLEAN = "clean"
    ADAPTED = "adapted"
    CONFLICT = "conflict"
    ASTRAY = "wrong landing"


@dataclass(frozen=True)
class Stopped:
    """A patch that did not go by itself: why, and in which files, or what the landing guard said."""

    patch: str
    why: Stop
    said: str


@dataclass(frozen=True)
class Smoke:
    """How the smoke test ended: its tests by their end, and what the first that failed said."""

    passed: int
    failed: int
    said: str = ""


@dataclass(frozen=True)
class Trial:
    """What became of a series on a release. Without a smoke test where not every patch went by itself."""

    series: str
    adapted: tuple[str, ...]
    stopped: tuple[Stopped, ...]
    smoke: Smoke | None

    @property
    def took(self) -> Took:
        """The worst that happened to a patch."""
        if any(each.why is not Stop.LANDING for each in self.stopped):
            return Took.CONFLICT
        if self.stopped:
            return Took.ASTRAY
        return Took.ADAPTED if self.adapted else Took.CLEAN

    @property
    def works(self) -> bool:
        """Whether the smoke test passed, all of it."""
        return self.smoke is not None and self.smoke.passed > 0 and not self.smoke.failed

    @property
    def rank(self) -> tuple[int, ...]:
        """The higher, the better."""
        return self.works, -len(self.stopped), self.smoke.passed if self.smoke else 0, -len(self.adapted)


@dataclass(frozen=True)
class Fetched:
    """A release's source: its commit, the archive's hash, and its metadata."""

    version: str
    base: str
    sha256: str
    metadata: str


@dataclass(frozen=True)
class Workshop:
    """A repository away from the checkout's, thrown away with its folder: there nothing has to be undone."""

    project: Project
    folder: Path

    @classmethod
    def open(cls, project: Project, folder: Path) -> Workshop:
        """A new one."""
        shop = cls(project, folder)
        shop.tree.mkdir()
        shop.git.run("init", "--quiet", "--template=", "--object-format=sha1")
        return shop

    @property
    def tree(self) -> Path:
        """The working tree."""
        return self.folder / SUBMODULE

    @property
    def git(self) -> Git:
        """Git there; commit messages stay as they are."""
        return Git(self.tree, {"GIT_CEILING_DIRECTORIES": str(self.folder), "GIT_EDITOR": "true"})

    def fetch(self, version: str, sha256: str | None) -> Fetched:
        """A release from its sdist, which is not kept."""
        with self._scratch() as scratch:
            archive = download(version, scratch, sha256)
            pin = Pin(version, f"v{version}", None, sha256 or read_sha256(archive), "")
            if archive.name != archive_name(version):
                raise ForkError(
                    f"pip gave {archive.name}, expected {archive_name(version)}",
                    next="make releases, as pip writes it",
                )
            base = import_sdist(self.git, pin, scratch)
            metadata = read_metadata(scratch / archive.name.removesuffix(".tar.gz"))
        return Fetched(version, base, pin.sdist_sha256, metadata)

    def derive(self, pin: Pin) -> Series:
        """A pin's series on its own release."""
        base = self.fetch(pin.version, pin.sdist_sha256).base
        with self._scratch() as scratch:
            return derive(self.git, base, read_recipe(self.project.root, pin), scratch)

    def attempt(self, pin: Pin, series: Series, release: Fetched) -> Trial:
        """Carry the series, and if all of it went by itself, run the smoke test on what came out."""
        with self._scratch() as scratch:
            index = self.git.having(GIT_INDEX_FILE=scratch / "index")
            overlay = commit_overlay(index, release.base, read_recipe(self.project.root, pin).overlay)
            adapted, stopped = self._carry(series, overlay)
            smoke = None if stopped else self._smoke(pin, release, scratch)
        return Trial(pin.version, adapted, stopped, smoke)

    def _carry(self, series: Series, onto: str) -> tuple[tuple[str, ...], tuple[Stopped, ...]]:
        """Each patch in turn; one that does not go by itself is named, and the next is carried without it."""
        git, tip, adapted, stopped = self.git, onto, [], []
        carry.give_up(git, tip)
        for name, patch in series.patches.items():
            if carry.is_void(git, patch, onto):
                adapted.append(name)
                continue
            problem = self._carry_patch(name, tip, patch)
            if problem:
                stopped.append(problem)
                carry.give_up(git, tip)
                continue
            tip = git.out("rev-parse", "HEAD")
            adapted += [name] if carry.fate(git, patch, tip) is Fate.ADAPTED else []
        return tuple(adapted), tuple(stopped)

    def _carry_patch(self, name: str, tip: str, patch: str) -> Stopped | None:
        stop = carry.carry(self.git, tip, patch)
        if stop is not Stop.NOWHERE:
            return Stopped(name, stop, ", ".join(carry.unmerged(self.git)))
        try:
            wrong = carry.astray(self.git, patch, self.git.out("rev-parse", "HEAD"))
        except ForkError as unbound:
            wrong = unbound.message
        return Stopped(name, Stop.LANDING, wrong) if wrong else None

    def _smoke(self, pin: Pin, release: Fetched, scratch: Path) -> Smoke:
        """Run our test of any release on the working tree, which holds the whole series."""
        root = self.project.root
        python = environment_for(self.project, release.version, release.metadata, pin.torch).python
        report, said = run_pytest(root, python, ["--disable-warnings", SMOKE], self.tree, scratch)
        cases = read_cases(report, root) if report.exists() else {}
        lost = {test: case for test, case in cases.items() if case.outcome is not Outcome.PASSED}
        if not cases:
            return Smoke(0, 1, said.strip().splitlines()[-1].strip())
        told = [f"{test.partition('::')[2] or test}: {case.said}" for test, case in lost.items()]
        return Smoke(len(cases) - len(lost), len(lost), next(iter(told), ""))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with TemporaryDirectory(dir=self.folder) as folder:
            yield Path(os.path.abspath(folder))
