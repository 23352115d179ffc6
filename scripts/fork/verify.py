"""Every pin, from its pristine source: applies, comes back byte for byte, and keeps the rules."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unidiff.patch import PatchSet

from fork import series
from fork.carry import GENERATED
from fork.checkout import Checkout
from fork.derive import ABSENT, Series, derive, diff
from fork.errors import ForkError
from fork.git import Git
from fork.header import read_header, require_proofs
from fork.landing import parse, write_record
from fork.pins import Pin, all_pins, default_pin, gitlink
from fork.project import Project
from fork.recipe import Recipe, read_recipe
from fork.render import render
from fork.source import Source, fetch_base, known_base


T = TypeVar("T")

AIM = 150


@dataclass(frozen=True)
class Pristine:
    """One pin's recipe, applied to its pristine source."""

    root: Path
    git: Git
    pin: Pin
    recipe: Recipe
    series: Series
    scratch: Path


def verify(root: Path) -> None:
    """Run every check on every pin; a line each. The caller holds the lock."""
    project = Project(root)
    checkout = Checkout.of(project)
    if not checkout.exists():
        series.apply(root)
    failures = [*_run("gitlink", root, check_gitlink), *_run("version", root, check_version)]
    for pin in all_pins(root):
        with project.scratch() as scratch:
            failures += _verify_pin(checkout.git, root, pin, scratch)
    if failures:
        raise ForkError(
            f"{len(failures)} checks failed, expected none:\n" + "\n".join(f"  {name}" for name in failures),
            next="make status",
        )


def _verify_pin(git: Git, root: Path, pin: Pin, scratch: Path) -> list[str]:
    """The names of the checks that fail for a pin."""
    made: list[Pristine] = []

    def check_applies(root: Path) -> str:
        base = known_base(git, pin, Source.AUTO) or fetch_base(git, root, pin, Source.AUTO, scratch)
        recipe = read_recipe(root, pin)
        made.append(Pristine(root, git, pin, recipe, derive(git, base, recipe, scratch), scratch))
        return f"{len(recipe.patches)} patches on {base}: tree {git.tree(made[0].series.tip)}"

    failures = _run(f"{pin.tag} applies", root, check_applies)
    for name, check in CHECKS.items():
        if made:
            failures += _run(f"{pin.tag} {name}", made[0], check)
    return failures


def _run(name: str, subject: T, check: Callable[[T], str]) -> list[str]:
    """Run a check and print its line; its name if it failed."""
    try:
        print(f"ok    {name}: {check(subject)}")
        return []
    except ForkError as error:
        print(f"FAIL  {name}: {error.message}\n      next:  {error.next}")
        return [name]


def check_gitlink(root: Path) -> str:
    """The project records the pin, never the patched commit."""
    pin, recorded = default_pin(root), gitlink(root)
    if recorded != pin.commit:
        raise ForkError(
            f"the gitlink is {recorded}, expected {pin.commit} of {pin.tag}",
            next=f"git update-index --add --cacheinfo 160000,{pin.commit},transformers",
        )
    return f"{recorded} is {pin.tag}"


def check_version(root: Path) -> str:
    """The version that pip shows carries the project's own."""
    own = _setting(root / "setup.cfg", "metadata", "version")
    tag = _setting(root / "overlay" / "setup.cfg", "egg_info", "tag_build")
    if tag != f"+masks.{own}":
        raise ForkError(
            f"overlay/setup.cfg has tag_build = {tag}, expected +masks.{own} as in setup.cfg",
            next="edit overlay/setup.cfg",
        )
    return tag


def _setting(file: Path, section: str, key: str) -> str:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(file, encoding="utf-8")
    return parser.get(section, key, fallback="")


def check_headers(made: Pristine) -> str:
    """Each patch says what, why, its upstream status and its proof."""
    for name, commit in made.series.patches.items():
        header = read_header(made.git, name, made.git.out("log", "-1", "--format=%B", commit))
        require_proofs(made.root, name, header)
    return "subject, reason, Upstream-Status and Proved-By in each"


def check_export(made: Pristine) -> str:
    """Exporting what was applied gives the same bytes."""
    back = render(made.git, made.series.base, made.series.tip, (), made.scratch).files(made.pin)
    here = made.recipe.files(made.pin)
    differ = sorted(path for path in {*back, *here} if back.get(path) != here.get(path))
    if differ:
        raise ForkError(
            "exported, these files would change; expected the same bytes: " + ", ".join(differ),
            next="make apply export, then git diff",
        )
    return f"{len(here)} files byte for byte"


def check_landing(made: Pristine) -> str:
    """Each change lies where `landing.json` says, which says so of each."""
    record = write_record(made.series.landing) if made.series.landing else None
    if record != made.recipe.landing:
        raise ForkError(
            f"patches/{made.pin.tag}/landing.json does not record the changes as they land; expected it to",
            next="make apply export, then git diff",
        )
    return f"{sum(len(changes) for changes in made.series.landing.values())} changes in their scopes"


def check_size(made: Pristine) -> str:
    """How many lines the series changes. An aim, so it never fails."""
    text = made.git.run("diff-tree", "-p", "--unified=0", made.series.overlay, made.series.tip).stdout
    written = generated = 0
    for file in PatchSet(text):
        source = made.git.run("cat-file", "blob", f"{made.series.overlay}:{file.path}").stdout
        lines = file.added + file.removed
        written, generated = (written, generated + lines) if GENERATED in source else (written + lines, generated)
    return f"{written} changed lines (aim: under {AIM}), {generated} more in generated files"


def check_compiles(made: Pristine) -> str:
    """Each Python file of overlay and patches compiles."""
    paths = [
        entry.path
        for entry in diff(made.git, made.series.base, made.series.tip)
        if entry.path.endswith(".py") and entry.new != ABSENT
    ]
    for path in paths:
        parse(made.git.run("cat-file", "blob", f"{made.series.tip}:{path}").stdout, path)
    return f"{len(paths)} Python files"


CHECKS: dict[str, Callable[[Pristine], str]] = {
    "headers": check_headers,
    "export": check_export,
    "landing": check_landing,
    "size": check_size,
    "compiles": check_compiles,
}
