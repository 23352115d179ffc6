"""`make releases`: the nearest series on every release of upstream, by itself, and whether the result works.

What was found is in docs/releases.json and, to be read, in docs/releases.md. A release that was tried with the same
series, overlay and smoke test is not tried again, so a run that was cut short goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.version import Version
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fork import records
from fork.derive import Series
from fork.errors import ForkError
from fork.pins import Pin, all_pins
from fork.project import Project
from fork.recipe import read_recipe
from fork.records import Record
from fork.releases_page import PAGE, page, row
from fork.sdist import released
from fork.trial import SMOKE, Trial, Workshop


FIRST = Version("4.51.0")
# What the smoke test is made of.
TESTS = (SMOKE, *(f"tests/models/{name}.py" for name in ("conftest", "plain_reference", "releases", "small_models")))


def releases(root: Path, only: Sequence[str]) -> None:
    """Try what is not known yet, newest first, or these releases alone. The caller holds the lock."""
    pins = sorted(all_pins(root), key=lambda pin: Version(pin.version))
    versions = listed(pins)
    _refuse_strange(only, versions)
    known = records.read(root)
    wanted = {version: nearest(version, versions, pins) for version in only or versions}
    keys = {pin.version: key(root, pin) for pin in pins}
    left = [
        version
        for version, candidates in wanted.items()
        if version not in known or not known[version].holds([keys[pin.version] for pin in candidates])
    ]
    made: dict[str, Series] = {}
    with Project(root).scratch() as scratch, _bar() as bar:
        shop, task = Workshop.open(Project(root), scratch), bar.add_task("", total=len(left))
        for version in left:
            bar.update(task, description=f"transformers {version}")
            sha256 = known[version].sha256 if version in known else None
            known[version] = try_release(
                shop, version, {pin: keys[pin.version] for pin in wanted[version]}, sha256, made
            )
            records.write(root, known)
            (root / PAGE).write_text(page(known), encoding="utf-8")
            bar.advance(task)
            bar.console.print(row(version, known[version]))
    print(f"written: {PAGE}")


def listed(pins: Sequence[Pin]) -> list[str]:
    """The releases in pip's index, from the first that is tried to the newest pin; the newest first."""
    last = Version(pins[-1].version)
    found = sorted({Version(version) for version in released()}, reverse=True)
    between = [str(version) for version in found if FIRST <= version <= last]
    if not between:
        raise ForkError(
            "pip's index lists no release of transformers, expected those since 4.51.0",
            next="make releases with access to PyPI",
        )
    return between


def nearest(version: str, versions: Sequence[str], pins: Sequence[Pin]) -> list[Pin]:
    """The pins next to a release, the one with fewer releases between first; of a pin itself, that one."""
    wanted = Version(version)
    older = [pin for pin in pins if Version(pin.version) <= wanted][-1:]
    newer = [pin for pin in pins if Version(pin.version) >= wanted][:1]

    def between(pin: Pin) -> int:
        ends = sorted((Version(pin.version), wanted))
        return sum(ends[0] < Version(each) < ends[1] for each in versions)

    return sorted(dict.fromkeys([*older, *newer]), key=between)


def key(root: Path, pin: Pin) -> str:
    """What a trial depends on, in a word: series, overlay and smoke test."""
    files = [(root / test).read_bytes() for test in TESTS]
    return hashlib.sha256(b"\0".join([read_recipe(root, pin).listing(pin).encode(), *files])).hexdigest()[:12]


def try_release(
    shop: Workshop, version: str, candidates: Mapping[Pin, str], sha256: str | None, made: dict[str, Series]
) -> Record:
    """Try the nearest series, and the next one if that does not work."""
    pinned = {pin.version: pin.sdist_sha256 for pin in candidates}
    release = shop.fetch(version, pinned.get(version, sha256))
    trials: list[Trial] = []
    for pin in candidates:
        if pin.version not in made:
            made[pin.version] = shop.derive(pin)
        trials.append(shop.attempt(pin, made[pin.version], release))
        if trials[-1].works:
            break
    return Record(release.sha256, tuple(candidates.values())[: len(trials)], tuple(trials))


def _refuse_strange(only: Sequence[str], versions: Sequence[str]) -> None:
    for version in only:
        if version not in versions:
            raise ForkError(
                f"{version!r} is no release from {versions[-1]} to {versions[0]} in pip's index, expected one",
                next=f'make releases ARGS="{versions[0]}", or make releases for all',
            )


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(soft_wrap=True, markup=False, highlight=False))
