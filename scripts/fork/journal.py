"""What the environment was like before pip began to change it, kept until the change is whole.

pip cannot be killed without harm: it leaves packages half removed or half written, and renames what it
replaces to `~ame`. The journal lies in the environment from before the first change until after the last
check. The next run that finds one takes away what is broken now and was not then, and installs it again
under the constraints of then: what the broken packages require cannot be read any more.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.utils import canonicalize_name

from fork.env import Environment
from fork.errors import ForkError
from fork.inventory import Distribution, Inventory, recorded_files
from fork.requirements import Constraint, Problem, problems, standing


NAME = "fork-journal.json"


@dataclass(frozen=True)
class Journal:
    """An environment before a change."""

    constraints: frozenset[Constraint]
    problems: frozenset[Problem]
    present: frozenset[str]
    damaged: frozenset[str]
    leftovers: frozenset[str]

    def broken(self, inventory: Inventory) -> list[Distribution]:
        """What is not whole now, and was whole or absent then."""
        return [found for found in inventory.own if str(found.folder) not in self.damaged and not found.whole]

    def stashed(self, inventory: Inventory) -> list[Path]:
        """What pip has put aside since."""
        return [leftover for leftover in inventory.leftovers if str(leftover) not in self.leftovers]

    def lost(self, inventory: Inventory) -> list[str]:
        """What was there then and is gone."""
        return sorted(self.present - inventory.visible.keys())

    def standing(self, inventory: Inventory) -> list[Constraint]:
        """The constraints of then, of packages that are still there."""
        return sorted(each for each in self.constraints if each.requirer in inventory.visible)

    def new_problems(self, inventory: Inventory) -> list[Problem]:
        """What `pip check` would say now and would not have said then."""
        known = {(each.requirer, each.requirement) for each in self.problems}
        return sorted(each for each in problems(inventory) if (each.requirer, each.requirement) not in known)


def of(inventory: Inventory, movable: frozenset[str]) -> Journal:
    """The journal of an environment as it is now."""
    return Journal(
        constraints=standing(inventory, movable),
        problems=problems(inventory),
        present=frozenset(inventory.visible),
        damaged=frozenset(str(found.folder) for found in inventory.distributions if not found.whole),
        leftovers=frozenset(map(str, inventory.leftovers)),
    )


def path(environment: Environment) -> Path:
    """Where an environment's journal lies."""
    return environment.home / NAME


def read(environment: Environment) -> Journal | None:
    """The journal that a run which did not end has left."""
    file = path(environment)
    if not file.exists():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return Journal(
            constraints=frozenset(Constraint(**each) for each in told["constraints"]),
            problems=frozenset(Problem(**each) for each in told["problems"]),
            present=frozenset(told["present"]),
            damaged=frozenset(told["damaged"]),
            leftovers=frozenset(told["leftovers"]),
        )
    except (ValueError, KeyError, TypeError) as problem:
        raise ForkError(
            f"{file} is no journal of ours ({problem}); expected what an interrupted install leaves",
            next=f"rm '{file}', then make install",
        ) from None


def write(environment: Environment, journal: Journal) -> None:
    """Write the journal; it is there whole or not at all, also after a power cut."""
    told = {
        "constraints": [asdict(each) for each in sorted(journal.constraints)],
        "problems": [asdict(each) for each in sorted(journal.problems)],
        "present": sorted(journal.present),
        "damaged": sorted(journal.damaged),
        "leftovers": sorted(journal.leftovers),
    }
    unfinished = path(environment).with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path(environment))


def close(environment: Environment) -> None:
    """The change is whole."""
    path(environment).unlink(missing_ok=True)


def mend(inventory: Inventory, journal: Journal) -> None:
    """Take away what the killed run left broken. Killed itself, it can be done again."""
    broken = journal.broken(inventory)
    remaining = {found.name for found in inventory.own if found not in broken}
    for found in broken:
        remove_package(found.folder, inventory.prefix)
    for leftover in journal.stashed(inventory):
        if leftover.suffix == ".dist-info" and stashed_name(leftover) not in remaining:
            remove_files(recorded_files(leftover) or [], inventory.prefix)
        remove(leftover)
    if "transformers" not in remaining:
        # Files without metadata: they would hide the checkout.
        for place in {found.folder.parent for found in inventory.own}:
            remove(place / "transformers")


def stashed_name(leftover: Path) -> str:
    """The name of a distribution that pip has put aside."""
    return canonicalize_name(PathDistribution(leftover).metadata["Name"] or "")


def remove_package(folder: Path, prefix: Path) -> None:
    """Remove what a metadata folder records, then the folder."""
    remove_files(recorded_files(folder) or [], prefix)
    remove(folder)


def remove_files(files: Iterable[Path], prefix: Path) -> None:
    """Remove files inside the environment, and the folders that are empty then."""
    inside = [file for file in map(Path, map(os.path.abspath, files)) if file.is_relative_to(prefix)]
    ours = [file for file in inside if not file.parent.name.endswith(".dist-info")]
    for file in ours:
        file.unlink(missing_ok=True)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink(missing_ok=True)
    for parent in sorted({parent for file in ours for parent in file.parents}, reverse=True):
        if parent.is_relative_to(prefix) and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def remove(place: Path) -> None:
    """Remove a file or a folder."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
