"""`make test-pins`: the tests of the mask library on the other pins, each in a clone of its own.

A clone under `.fork/pins/<tag>` holds the project as it is now, committed or not, and has a checkout and an
environment for that pin alone, as releases need other companions. It is an ordinary clone: go there, and every command
works.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fork.checkout import hide_gitlink
from fork.develop import DECIDED
from fork.difference import COUNTED, Cases, counts
from fork.errors import ForkError
from fork.git import LOCATION, Git
from fork.junit import read_cases
from fork.lock import exclusive
from fork.pins import Pin, all_pins, default_pin
from fork.pip import clean_environment, wheelhouse
from fork.project import Project
from fork.prove import Outcome
from fork.source import Source, git_dir
from fork.upstream import find_pin


# The tests that depend on the pin.
FOLDERS = ("tests/masks", "tests/models")
# What pytest ends with when it ran the tests: none failed, some failed.
RAN = (0, 1)
# What would choose another environment than the clone's own.
CHOOSING = ("VIRTUAL_ENV", "CONDA_PREFIX", "PART")
SNAPSHOT = "refs/fork/pins"


@dataclass(frozen=True)
class Part:
    """One of `of` equal parts of the test files, which are together all of them."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """`2/8`."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        part = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= part.number <= part.of:
            raise ForkError(f"PART is {text!r}, expected k/n, the k-th of n parts", next="make test-pins PART=1/8")
        return part

    def __call__(self, files: Sequence[str]) -> list[str]:
        """Every so manieth file."""
        return list(files[self.number - 1 :: self.of])


def test_pins(root: Path, source: Source, upstream: str, part: str, words: Sequence[str]) -> None:
    """Test every pin but the default, or the one asked for; all files, or a part of them."""
    pins = [find_pin(root, upstream)] if upstream else [pin for pin in all_pins(root) if pin != default_pin(root)]
    files = sorted(str(file.relative_to(root)) for folder in FOLDERS for file in (root / folder).glob("test_*.py"))
    chosen = Part.parse(part or "1/1")(files)
    if not chosen:
        raise ForkError(
            f"PART is {part!r}, and there are {len(files)} test files; expected no more parts than files",
            next=f"make test-pins PART=1/{len(files)}",
        )
    ended: dict[str, Cases] = {}
    for pin in pins:
        clone = bring(root, pin)
        report = clone.with_suffix(clone.suffix + ".xml")
        run(clone, pin, source, report, [*chosen, *words])
        ended[pin.tag] = read_cases(report, clone)
    tell(Project(root).state / "pins" / "report.md", ended, part)


def bring(root: Path, pin: Pin) -> Path:
    """A pin's clone of the project, as the project's files are now."""
    with exclusive(root):
        project = Project(root)
        clone = project.state / "pins" / pin.tag
        commit = snapshot(project)
        git = Git(clone)
        if not (clone / ".git").exists():
            clone.mkdir(parents=True, exist_ok=True)
            git.run("init", "--quiet", "--template=")
            objects = git_dir(git) / "objects" / "info" / "alternates"
            objects.parent.mkdir(parents=True, exist_ok=True)
            objects.write_text(project.git.out("rev-parse", "--path-format=absolute", "--git-path", "objects") + "\n")
        git.run("checkout", "--quiet", "--force", "--detach", commit, "--")
    return clone


def snapshot(project: Project) -> str:
    """A commit of the project's files as they are, which only a ref of ours holds."""
    hide_gitlink(project)
    with project.scratch() as scratch:
        shutil.copy2(git_dir(project.git) / "index", scratch / "index")
        index = project.git.having(
            GIT_INDEX_FILE=scratch / "index", GIT_AUTHOR_NAME="make test-pins", GIT_AUTHOR_EMAIL="none"
        )
        index.run("add", "--all")
        head = project.git.out("rev-parse", "HEAD")
        commit = index.out("commit-tree", "-p", head, "-m", "What make test-pins tests", index.out("write-tree"))
    project.git.run("update-ref", SNAPSHOT, commit)
    return commit


def run(clone: Path, pin: Pin, source: Source, report: Path, words: Sequence[str]) -> None:
    """`make test` in a clone, in its own environment."""
    print(f"== {pin.tag}: make test in {clone}", flush=True)
    report.unlink(missing_ok=True)
    dropped = {*DECIDED, *LOCATION, *CHOOSING} - {"PYTHON"}
    variables = {name: value for name, value in clean_environment().items() if name not in dropped}
    if (folder := wheelhouse()) is not None:
        variables["WHEELHOUSE"] = str(folder)
    status = subprocess.run(
        ["sh", "scripts/tool", "test", "--source", source.value, "--upstream", pin.version, "--",
         "-o", "junit_family=xunit1", f"--junitxml={report}", *words],
        cwd=clone, env=variables, stdin=subprocess.DEVNULL,
    ).returncode  # fmt: skip
    if status not in RAN or not report.exists():
        raise ForkError(
            f"the tests did not run on {pin.tag} (status {status}); what was said is above",
            next=f"see to that in '{clone}', then make test-pins UPSTREAM={pin.version}",
        )


def tell(page: Path, ended: dict[str, Cases], part: str) -> None:
    """Say how the tests ended on each pin, in the terminal and in a file."""
    lines = [f"# Tests on other pins{f', part {part}' if part else ''}", "", "| pin | " + " | ".join(COUNTED) + " |"]
    lines.append("| --- |" + " ---: |" * len(COUNTED))
    lines += [f"| {tag} | " + " | ".join(map(str, counts(cases))) + " |" for tag, cases in ended.items()]
    lost = [
        f"{tag} {name}: {case.said}"
        for tag, cases in ended.items()
        for name, case in cases.items()
        if case.outcome is Outcome.FAILED
    ]
    lines += ["", *(f"- {line}" for line in lost)]
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(page.read_text(encoding="utf-8") + f"\nwritten: {page}, and beside it the JUnit reports")
    if lost:
        raise ForkError(
            f"{len(lost)} tests failed on other pins (above), expected none",
            next=f"less '{page}', mend, then make test-pins UPSTREAM={lost[0].split()[0].removeprefix('v')}",
        )
