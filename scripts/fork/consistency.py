"""Upstream's own checks of its source, which only a git checkout holds: copies, generated models, ruff."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fork.bootstrap import PrivateEnvironment
from fork.derive import ABSENT, diff
from fork.difference import Cases
from fork.errors import ForkError
from fork.git import Git
from fork.junit import Case
from fork.prove import Outcome


@dataclass(frozen=True)
class Checks:
    """The checks of one pin: its ruff, and the Python files that the series touches."""

    ruff: Path
    python: Path
    touched: tuple[str, ...]

    def commands(self, tree: Path) -> dict[str, Sequence[str | Path]]:
        """Each check by its name. `--check_all`: without it, upstream looks only at what git calls changed."""
        here = [file for file in self.touched if (tree / file).exists()]
        return {
            "utils/check_copies.py": (self.python, "utils/check_copies.py"),
            "utils/check_modular_conversion.py": (self.python, "utils/check_modular_conversion.py", "--check_all"),
            "ruff check": (self.ruff, "check", "--no-cache", *here),
            "ruff format": (self.ruff, "format", "--no-cache", "--check", *here),
        }

    def run(self, tree: Path, variables: Mapping[str, str]) -> Cases:
        """Run each in a tree."""
        Git(tree).run("init", "--quiet", "--initial-branch=main")  # upstream's checks ask for the branch
        search = {"PATH": f"{self.ruff.parent}{os.pathsep}{variables.get('PATH', '')}"}
        cases = {}
        for name, command in self.commands(tree).items():
            print(f"== {name} on {tree.name}", flush=True)
            done = subprocess.run(
                command, cwd=tree, env={**variables, **search}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            if done.returncode:
                print(done.stdout)
            cases[name] = Case(Outcome.FAILED, last_line(done.stdout)) if done.returncode else Case(Outcome.PASSED)
        return cases


def checks_of(root: Path, git: Git, base: str, applied: str, python: Path) -> Checks:
    """The checks between two commits, with the ruff that upstream's setup.py names."""
    found = re.search(r'"(ruff==[\w.]+)"', git.run("cat-file", "blob", f"{base}:setup.py").stdout)
    if found is None:
        raise ForkError(f"setup.py of {base} names no ruff==..., expected one", next="make test-upstream SOURCE=sdist")
    requirements = root / ".fork" / f"{found[1]}.txt"
    requirements.write_text(f"{found[1]}\n")
    tools = PrivateEnvironment(requirements.with_suffix(""), requirements)
    tools.make()
    touched = [entry.path for entry in diff(git, base, applied) if entry.path.endswith(".py") and entry.new != ABSENT]
    return Checks(tools.home / "bin" / "ruff", python, tuple(touched))


def last_line(text: str) -> str:
    """What a command said at its end."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
