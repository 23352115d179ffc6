"""The private environments in which the fork's tools run. Standard library only: this makes them.

An environment is ready when its stamp, written last, equals the requirements it was made from. Any other,
such as one whose making was killed, is made anew.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fork.errors import ForkError, refused
from fork.pip import clean_environment, own_pip, pip_install


@dataclass(frozen=True)
class PrivateEnvironment:
    """A virtual environment under `.fork/`, made from one requirements file."""

    home: Path
    requirements: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.home / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """A copy of the requirements, there once everything in them is installed."""
        return self.home / "ready"

    @property
    def ready(self) -> bool:
        """Whether it is whole and up to date."""
        wanted = self.requirements.read_bytes()
        return self.python.exists() and self.stamp.exists() and self.stamp.read_bytes() == wanted

    def make(self) -> None:
        """Make it if it is not ready; a second process waits for the first."""
        if self.ready:
            return
        with waiting_lock(self.home.with_suffix(".lock")):
            if not self.ready:
                self.build()

    def build(self) -> None:
        """Make it from nothing."""
        wanted = self.requirements.read_bytes()
        print(f"making {self.home} from {self.requirements.name}", file=sys.stderr)
        shutil.rmtree(self.home, ignore_errors=True)
        make_venv(self.home)
        log = self.home.with_suffix(".log")
        if pip_install(own_pip(self.python), ["--quiet", "--requirement", str(self.requirements)], log):
            raise ForkError(
                f"pip could not install {self.requirements} into {self.home} (its log: {log})",
                next="check the network, pip's configuration or WHEELHOUSE=, then make install",
            )
        unfinished = self.stamp.with_suffix(".tmp")
        unfinished.write_bytes(wanted)
        unfinished.replace(self.stamp)


def tool_environment(root: Path) -> PrivateEnvironment:
    """Where the fork's tool runs."""
    return PrivateEnvironment(root / ".fork" / "venv", root / "scripts" / "requirements.txt")


def lint_environment(root: Path) -> PrivateEnvironment:
    """Where ruff and mypy run."""
    return PrivateEnvironment(root / ".fork" / "lint", root / "scripts" / "requirements-lint.txt")


def make_venv(home: Path) -> None:
    """`python -m venv`, with its failure told."""
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(home)],
        env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise ForkError(
            f"{sys.executable} could not make the virtual environment {home}. It said:\n{said}",
            next="install Python's venv module (Debian: apt install python3-venv) or free space",
        )


@contextmanager
def waiting_lock(file: Path) -> Iterator[None]:
    """Hold a lock that dies with the process; wait for it if another holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make the tool's own environment; called from the root by `scripts/tool`."""
    try:
        tool_environment(Path.cwd()).make()
    except (ForkError, OSError) as error:
        other = error if isinstance(error, ForkError) else ForkError(str(error), next="make install")
        told = refused(str(error), Path.cwd()) or other
        print(told, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is half done\nnext:  the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
