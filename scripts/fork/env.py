"""The research environment: which one it is, and making it when it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fork.bootstrap import make_venv, tool_environment
from fork.errors import ForkError


UNFINISHED = "fork-unfinished"


class Origin(Enum):
    """What made us take this environment."""

    NAMED = "VENV"
    ACTIVE = "VIRTUAL_ENV"
    CONDA = "CONDA_PREFIX"
    OWN = ".venv"


@dataclass(frozen=True)
class Environment:
    """A Python environment, by its folder."""

    home: Path
    origin: Origin

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.home / "bin" / "python"

    @property
    def unfinished(self) -> Path:
        """There while we make the environment; what holds it is ours to make again."""
        return self.home / UNFINISHED

    @property
    def works(self) -> bool:
        """Whether it is a whole environment, ours or anybody's."""
        kind = (self.home / "pyvenv.cfg").is_file() or (self.home / "conda-meta").is_dir()
        return kind and self.python.exists() and not self.unfinished.exists()

    @property
    def vacant(self) -> bool:
        """Whether we may make one in its place: nothing is there, or what we left unfinished."""
        if self.unfinished.exists():
            return True
        return not self.home.exists() or (self.home.is_dir() and not any(self.home.iterdir()))


def choose(root: Path, variables: Mapping[str, str] = os.environ) -> Environment:
    """VENV if given, else the active environment (conda's base is nobody's research), else `.venv`."""
    named, active = variables.get("VENV", ""), variables.get("VIRTUAL_ENV", "")
    conda = variables.get("CONDA_PREFIX", "")
    if named:
        return Environment(Path(os.path.abspath(Path(named).expanduser())), Origin.NAMED)
    if active:
        return Environment(Path(active), Origin.ACTIVE)
    if conda and variables.get("CONDA_DEFAULT_ENV", "") not in ("", "base"):
        return Environment(Path(conda), Origin.CONDA)
    return Environment(root / ".venv", Origin.OWN)


def locate(root: Path) -> Environment:
    """The research environment, which must be there."""
    environment = choose(root)
    refuse_tool_environment(root, environment)
    if environment.works:
        return environment
    if environment.vacant and environment.origin in (Origin.NAMED, Origin.OWN):
        raise ForkError(
            f"there is no environment at {environment.home} yet ({environment.origin.value}); expected one",
            next=f"make install{venv_argument(environment)}",
        )
    raise unusable(environment)


def prepare(root: Path) -> Environment:
    """The research environment, made if it is missing. What we did not make is never removed."""
    environment = choose(root)
    refuse_tool_environment(root, environment)
    if environment.works:
        return environment
    if not environment.vacant or environment.origin in (Origin.ACTIVE, Origin.CONDA):
        raise unusable(environment)
    make(environment)
    return environment


def make(environment: Environment) -> None:
    """Make a virtual environment in its place; killed half-way, the mark says so to the next run."""
    print(f"making the environment {environment.home}")
    environment.home.mkdir(parents=True, exist_ok=True)
    environment.unfinished.touch()
    for leftover in environment.home.iterdir():
        if leftover != environment.unfinished:
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    make_venv(environment.home)
    environment.unfinished.unlink()


def refuse_tool_environment(root: Path, environment: Environment) -> None:
    """Research does not happen in the tool's own environment."""
    if environment.home.resolve() == tool_environment(root).home.resolve():
        raise ForkError(
            f"{environment.origin.value} is {environment.home}, the tool's own environment; expected another",
            next="deactivate; make install",
        )


def unusable(environment: Environment) -> ForkError:
    """The error for a place that holds something, but no environment that works."""
    home, how = environment.home, environment.origin
    if how in (Origin.ACTIVE, Origin.CONDA):
        next = f"activate an environment that works, or unset {how.value}; then make install"
    else:
        next = "make install VENV=another/path, or move that folder away; then make install"
    return ForkError(
        f"{how.value} is {home}, where there is no working environment; expected pyvenv.cfg and bin/python",
        next=next,
    )


def venv_argument(environment: Environment) -> str:
    """What to add to a make command so that it means the same environment."""
    return f" VENV='{environment.home}'" if environment.origin is Origin.NAMED else ""
