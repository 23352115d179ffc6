"""Pins: the upstream releases that the fork is kept for."""

from __future__ import annotations

import configparser
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fork.errors import ForkError
from fork.project import SUBMODULE, Project


@dataclass(frozen=True)
class Pin:
    """One upstream release, as its `pin.cfg` says. Without a commit, its source is the sdist alone."""

    version: str
    tag: str
    commit: str | None
    sdist_sha256: str
    torch: str

    def text(self) -> str:
        """The pin as its `pin.cfg` has it."""
        return "[pin]\n" + "".join(f"{name} = {value}\n" for name, value in asdict(self).items() if value)


SHAPES = {"commit": r"(|[0-9a-f]{40})", "sdist_sha256": r"[0-9a-f]{64}"}


def read_pin(file: Path) -> Pin:
    """The pin in a `pin.cfg`; every field must have its shape, and all but the commit must be there."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"), source=str(file))
        section = dict(parser["pin"])
    except (OSError, configparser.Error, KeyError) as problem:
        raise ForkError(
            f"{file} is no pin: {problem}; expected a [pin] section", next=f"git checkout {file}"
        ) from None
    for field in fields(Pin):
        value = section.get(field.name, "")
        if not re.fullmatch(SHAPES.get(field.name, r"\S+"), value):
            raise ForkError(
                f"{file}: {field.name} is {value!r}, expected {SHAPES.get(field.name, 'a value')}",
                next=f"git diff {file}",
            )
    pin = Pin(**{field.name: section.get(field.name) or None for field in fields(Pin)})  # type: ignore[arg-type]
    if pin.tag != file.parent.name:
        raise ForkError(
            f"{file}: tag is {pin.tag!r}, expected {file.parent.name!r} as its folder", next=f"edit {file}"
        )
    return pin


def all_pins(root: Path) -> list[Pin]:
    """Every pin that has a folder under `patches/`, by tag."""
    return [read_pin(file) for file in sorted(Project(root).patches.glob("*/pin.cfg"))]


def gitlink(root: Path) -> str | None:
    """The commit that the project records for the submodule."""
    entry = Project(root).git.out("ls-files", "--stage", "--", SUBMODULE)
    mode, _, rest = entry.partition(" ")
    return rest.split()[0] if mode == "160000" else None


def default_pin(root: Path) -> Pin:
    """The pin that the submodule's gitlink records; failing that, the only pin there is."""
    pins = all_pins(root)
    recorded = gitlink(root)
    for pin in pins:
        if pin.commit and pin.commit == recorded:
            return pin
    if len(pins) == 1:
        return pins[0]
    known = ", ".join(f"{pin.tag} = {pin.commit or 'not recorded'}" for pin in pins) or "no patches/*/pin.cfg"
    raise ForkError(
        f"the gitlink {SUBMODULE} is {recorded}, expected the commit of a pin: {known}",
        next=f"git checkout HEAD -- {SUBMODULE} patches",
    )
