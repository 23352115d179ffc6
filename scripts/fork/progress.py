"""How far a rebase is: what it carries, where to, and what became of each patch. Kept in `.fork/rebase/`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path

from fork.errors import ForkError
from fork.git import Git
from fork.pins import Pin
from fork.project import SUBMODULE, Project


class Fate(str, Enum):
    """What became of a patch."""

    UNCHANGED = "unchanged"
    ADAPTED = "adapted"
    CONFLICTED = "conflicted"
    DROPPED = "dropped"


class Stop(str, Enum):
    """Where a rebase waits for somebody; nowhere while it works by itself."""

    NOWHERE = "nowhere"
    CONFLICT = "conflict"
    EMPTY = "empty"
    LANDING = "landing"


@dataclass(frozen=True)
class Carried:
    """A patch that is done: its commit on the new release, none if it was dropped, and what is to be told of it."""

    patch: str
    commit: str | None
    fate: Fate
    note: str = ""


@dataclass(frozen=True)
class Progress:
    """A rebase of one pin's series onto another pin."""

    old: Pin
    new: Pin
    recorded_anew: bool
    bases: tuple[str, str]
    overlays: tuple[str, str]
    patches: Mapping[str, str]
    done: tuple[Carried, ...] = ()
    stop: Stop = Stop.NOWHERE
    conflicted: bool = False
    listing: tuple[str, ...] = field(default=(), repr=False)

    @property
    def tip(self) -> str:
        """The commit on the new release that the next patch goes on."""
        return [self.overlays[1], *(each.commit for each in self.done if each.commit)][-1]

    @property
    def next(self) -> str | None:
        """The patch that is to be carried, or at which the rebase has stopped."""
        return next(iter(list(self.patches)[len(self.done) :]), None)

    def after(self, carried: Carried) -> Progress:
        """With one more patch done."""
        return replace(self, done=(*self.done, carried), stop=Stop.NOWHERE, conflicted=False)


@dataclass(frozen=True)
class Area:
    """Where a rebase works: a worktree of the checkout's repository, and the file that says how far it is."""

    project: Project

    @property
    def folder(self) -> Path:
        """Everything of it."""
        return self.project.state / "rebase"

    @property
    def tree(self) -> Path:
        """The worktree, in which conflicts are resolved."""
        return self.folder / SUBMODULE

    @property
    def shown(self) -> str:
        """The worktree, as a command to be run in the project's folder names it."""
        return str(self.tree.relative_to(self.project.root))

    @property
    def git(self) -> Git:
        """Git in the worktree; commit messages stay as they are."""
        return Git(self.tree, {"GIT_CEILING_DIRECTORIES": str(self.folder), "GIT_EDITOR": "true"})

    @property
    def _file(self) -> Path:
        return self.folder / "progress.json"

    def read(self) -> Progress | None:
        """The rebase that is going on, if one is."""
        if not self._file.exists():
            return None
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
            told |= {"old": Pin(**told["old"]), "new": Pin(**told["new"]), "stop": Stop(told["stop"])}
            told |= {
                "bases": tuple(told["bases"]),
                "overlays": tuple(told["overlays"]),
                "listing": tuple(told["listing"]),
            }
            told["done"] = tuple(Carried(**(each | {"fate": Fate(each["fate"])})) for each in told["done"])
            return Progress(**told)
        except (ValueError, KeyError, TypeError) as problem:
            raise ForkError(
                f"{self._file} is unreadable ({problem!r}), expected what make rebase wrote", next="make rebase-abort"
            ) from None

    def write(self, progress: Progress) -> Progress:
        """Record how far it is; the file is there whole or as it was."""
        unfinished = self._file.with_suffix(".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(asdict(progress), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._file)
        return progress
