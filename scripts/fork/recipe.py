"""The project's side: the overlay and the patches that a checkout is made from."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fork.errors import ForkError
from fork.pins import Pin
from fork.project import Project


# Raised when the same recipe would give another commit, so that every checkout is made again.
FORMAT = 1


@dataclass(frozen=True)
class File:
    """A file's content and whether it may be executed."""

    content: bytes
    executable: bool = False

    @property
    def mode(self) -> str:
        """As git writes it."""
        return "100755" if self.executable else "100644"


@dataclass(frozen=True)
class Recipe:
    """Overlay files by their path in the checkout, patches by name in order, and the landing record."""

    overlay: Mapping[str, File]
    patches: Mapping[str, bytes]
    landing: bytes | None

    def files(self, pin: Pin) -> dict[str, File]:
        """Every file of it by its path in the project."""
        found = {f"overlay/{path}": file for path, file in self.overlay.items()}
        found |= {f"patches/{pin.tag}/{name}": File(content) for name, content in self.patches.items()}
        if self.landing is not None:
            found[f"patches/{pin.tag}/landing.json"] = File(self.landing)
        return found

    def listing(self, pin: Pin) -> str:
        """A line for each file, the same if and only if the files are."""
        lines = [
            f"{hashlib.sha256(file.content).hexdigest()} {file.mode} {path}\n"
            for path, file in sorted(self.files(pin).items())
        ]
        return f"format {FORMAT} {pin.tag}\n" + "".join(lines)


def read_recipe(root: Path, pin: Pin) -> Recipe:
    """The project's overlay, and the patches and landing record for one pin."""
    folder = Project(root).patches / pin.tag
    landing = folder / "landing.json"
    return Recipe(
        overlay=read_overlay(root),
        patches={patch.name: patch.read_bytes() for patch in sorted(folder.glob("*.patch"))},
        landing=landing.read_bytes() if landing.exists() else None,
    )


def read_overlay(root: Path) -> dict[str, File]:
    """The overlay's files: tracked or not, but nothing that the project ignores."""
    project = Project(root)
    listed = project.git.lines("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "overlay")
    found = {}
    for name in sorted(set(listed)):
        path = root / name
        if path.is_symlink() or path.is_dir():
            raise ForkError(f"{name} is a link or a repository, expected a file", next=f"rm '{path}'")
        if path.exists():  # else deleted, and not yet committed
            executable = bool(path.stat().st_mode & stat.S_IXUSR)
            found[name.removeprefix("overlay/")] = File(path.read_bytes(), executable)
    return found
