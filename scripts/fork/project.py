"""Where things lie in the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fork.errors import ForkError
from fork.git import Git


SUBMODULE = "transformers"
SCRATCH = "tmp-"


@dataclass(frozen=True)
class Project:
    """The project's folders, by name."""

    root: Path

    @property
    def checkout(self) -> Path:
        """Upstream's source with overlay and patches on top: derived."""
        return self.root / SUBMODULE

    @property
    def overlay(self) -> Path:
        """New files, at the paths they have in the checkout."""
        return self.root / "overlay"

    @property
    def patches(self) -> Path:
        """One folder a pin."""
        return self.root / "patches"

    @property
    def state(self) -> Path:
        """The tool's own files: lock, temporary folders, tool environment."""
        return self.root / ".fork"

    @property
    def git(self) -> Git:
        """Git in the project's repository."""
        return Git(self.root)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder on the project's disk: what is built there can be renamed into place."""
        self.state.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=SCRATCH, dir=self.state) as folder:
            yield Path(folder)


def find_root(start: Path) -> Path:
    """The project that `start` lies in, also from inside the checkout."""
    git = Git(start)
    for around in ("--show-superproject-working-tree", "--show-toplevel"):
        found = git.run("rev-parse", around, check=False).stdout.removesuffix("\n")
        if found and (Path(found) / "patches").is_dir():
            return Path(found)
    raise ForkError(
        f"{start} lies in no clone of this project (a git repository with a patches/ folder)",
        next="cd into your clone and run the command again",
    )
