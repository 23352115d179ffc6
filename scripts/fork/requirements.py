"""Who requires what in an environment: what `pip check` would say, and what must stay true.

Extras are left out, as `pip check` leaves them out: nothing records which were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from fork.inventory import Distribution, Inventory


@dataclass(frozen=True, order=True)
class Problem:
    """A requirement that is not met."""

    requirer: str
    requirement: str
    found: str

    def __str__(self) -> str:
        return f"{self.requirer} requires {self.requirement}, found {self.found}"


@dataclass(frozen=True, order=True)
class Constraint:
    """A requirement that is met, and has to stay so."""

    requirer: str
    name: str
    specifier: str

    @property
    def line(self) -> str:
        """As a constraints file has it."""
        return f"{self.name}{self.specifier}"

    def __str__(self) -> str:
        return f"{self.requirer} requires {self.line}"


def requirements(distribution: Distribution, markers: Mapping[str, str], extra: str = "") -> Iterator[Requirement]:
    """What a distribution requires here, and with an extra. Lines nobody can read are skipped."""
    for line in distribution.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({**markers, "extra": extra}):
            yield requirement


def met(requirement: Requirement, version: str) -> bool:
    """Whether a version satisfies a requirement. A version nobody can read satisfies none that names one."""
    if not requirement.specifier:
        return True
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def problems(inventory: Inventory) -> frozenset[Problem]:
    """What `pip check` would say."""
    found = []
    for distribution in inventory.visible.values():
        for requirement in requirements(distribution, inventory.markers):
            installed = inventory.get(requirement.name)
            if installed is None or not met(requirement, installed.version):
                version = installed.version if installed else "none"
                found.append(Problem(distribution.name, short(requirement), version))
    return frozenset(found)


def standing(inventory: Inventory, movable: frozenset[str]) -> frozenset[Constraint]:
    """What other packages require and have: everything but what the movable ones require."""
    found = []
    for distribution in inventory.visible.values():
        if distribution.name in movable:
            continue
        for requirement in requirements(distribution, inventory.markers):
            installed = inventory.get(requirement.name)
            if installed and requirement.specifier and met(requirement, installed.version):
                name = canonicalize_name(requirement.name)
                found.append(Constraint(distribution.name, name, str(requirement.specifier)))
    return frozenset(found)


def excluding(inventory: Inventory, name: str, version: str) -> list[Problem]:
    """Who would be broken by this version of a package, and is not already."""
    installed = inventory.get(name)
    return sorted(
        Problem(distribution.name, short(requirement), f"{name} {version} to be installed")
        for distribution in inventory.visible.values()
        for requirement in requirements(distribution, inventory.markers)
        if canonicalize_name(requirement.name) == name and not met(requirement, version)
        if installed is None or met(requirement, installed.version)
    )


def short(requirement: Requirement) -> str:
    """A requirement without its marker."""
    return f"{canonicalize_name(requirement.name)}{requirement.specifier}"
