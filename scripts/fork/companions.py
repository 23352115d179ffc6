"""Environments in which releases are tried: few, as a release takes the first that holds what it requires."""

from __future__ import annotations

import hashlib
import platform
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fork.bootstrap import PrivateEnvironment
from fork.env import Environment, Origin
from fork.errors import ForkError
from fork.install import COMPANIONS
from fork.inventory import Distribution, Inventory, take
from fork.project import SUBMODULE, Project
from fork.requirements import met, requirements


# What make install brings along, and what runs the smoke test.
ALWAYS = (*COMPANIONS, "hypothesis>=6.100", "pytest>=8")


def environment_for(project: Project, version: str, metadata: str, torch: str) -> PrivateEnvironment:
    """An environment that holds what a release requires, by its PKG-INFO, and torch; made if there is none."""
    told = HeaderParser().parsestr(metadata)
    refuse_python(version, told)
    wanted = [Requirement(f"torch=={torch}"), *map(Requirement, ALWAYS), *required(version, told)]
    folder = project.state / "releases"
    for file in sorted(folder.glob("*.txt")):
        there = PrivateEnvironment(file.with_suffix(""), file)
        if there.ready and holds(take(Environment(there.home, Origin.OWN)), wanted):
            return there
    made = PrivateEnvironment(*place(folder, wanted))
    made.make()
    return made


def read_metadata(tree: Path) -> str:
    """An unpacked sdist's PKG-INFO, with the requirements that older builders wrote into a file beside it."""
    told = (tree / "PKG-INFO").read_text(encoding="utf-8")
    beside = tree / "src" / f"{SUBMODULE}.egg-info" / "requires.txt"
    if "\nRequires-Dist: " in told or not beside.exists():
        return told
    always = beside.read_text(encoding="utf-8").partition("[")[0].split()
    return "".join(f"Requires-Dist: {line}\n" for line in always) + told


def required(version: str, told: Message) -> list[Requirement]:
    """What the release requires here, without extras."""
    lines = tuple(told.get_all("Requires-Dist", []))
    return list(requirements(Distribution(SUBMODULE, version, lines, Path(), None), {}))


def refuse_python(version: str, told: Message) -> None:
    """No environment of this Python is for a release that needs a newer one."""
    needed, here = told.get("Requires-Python", ""), platform.python_version()
    if not SpecifierSet(needed).contains(here, prereleases=True):
        raise ForkError(
            f"transformers {version} needs Python {needed}, this is {here}", next="make releases PYTHON=python3.12"
        )


def holds(inventory: Inventory, wanted: list[Requirement]) -> bool:
    """Whether an environment has all of it, in versions that do."""
    found = [(requirement, inventory.get(requirement.name)) for requirement in wanted]
    return all(there is not None and met(requirement, there.version) for requirement, there in found)


def place(folder: Path, wanted: list[Requirement]) -> tuple[Path, Path]:
    """An environment's folder and its file of requirements, which gives both their name."""
    text = "".join(sorted(f"{requirement}\n" for requirement in wanted))
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file.with_suffix(""), file
