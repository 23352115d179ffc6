"""The checkout's commits and overlay edits, into the project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fork import series
from fork.checkout import Checkout, State
from fork.derive import derive, write_blob
from fork.errors import ForkError
from fork.pins import Pin
from fork.project import SUBMODULE, Project
from fork.recipe import Recipe, read_recipe
from fork.render import render
from fork.replace import replace
from fork.upstream import applied_pin


@dataclass(frozen=True)
class Sides:
    """The recipes of project and checkout, and what the project held at the last apply, by path."""

    project: Recipe
    checkout: Recipe
    applied: Mapping[str, str]


def export(root: Path) -> None:
    """Write overlay and patches from the checkout, then apply them again. The caller holds the lock."""
    project = Project(root)
    checkout = Checkout.of(project)
    state = require_applied(checkout)
    pin = applied_pin(root, checkout)
    edits = checkout.edits(state)
    before = read_recipe(root, pin)
    with project.scratch() as scratch:
        held = render(checkout.git, state.base, checkout.head(), edits.changed, scratch)
        result = merge(Sides(before, held, parse_listing(checkout.inputs())), pin)
        lines = replace(project, before.files(pin), result.files(pin))
        if edits:
            tip = derive(checkout.git, state.base, held, scratch).tip
            listing = write_blob(checkout.git, held.listing(pin).encode())
            checkout.adopt(State(state.base, tip, listing))
    print("\n".join(lines) or "nothing to export: overlay and patches say what transformers/ holds")
    for name in dropped(before, result):
        print(f"dropped: {name} (no commit of that subject is left)")
    for path in edits.untracked:
        print(f"left alone: {path} is untracked (git -C {SUBMODULE} add '{path}' to export it)")
    series.apply(root)


def require_applied(checkout: Checkout) -> State:
    """A checkout that export can read: on its branch, calm, with a series applied."""
    if not checkout.exists():
        raise ForkError(f"{SUBMODULE}/ is not there, expected a checkout to export from", next="make apply")
    checkout.recover()
    state = checkout.state()
    if state is None:
        raise ForkError(f"no series was applied to {SUBMODULE}/, expected one", next="make apply")
    checkout.require_calm()
    if not checkout.on_branch():
        raise ForkError(
            f"{SUBMODULE}/ is at {checkout.head()} off its branch, expected the branch masks",
            next=f"git -C {SUBMODULE} checkout masks (then cherry-pick what you want to keep)",
        )
    return state


def parse_listing(listing: str) -> dict[str, str]:
    """Path -> hash and mode, of the recipe that was applied."""
    lines = (line.split(" ", 2) for line in listing.splitlines()[1:])
    return {path: f"{digest} {mode}" for digest, mode, path in lines}


def merge(sides: Sides, pin: Pin) -> Recipe:
    """Each side's changes since the last apply. The patches and their record count as one."""
    clashing = clashes(sides, pin)
    if clashing:
        raise ForkError(
            f"changed both in the project and in {SUBMODULE}/ since the last apply, expected one of them:\n"
            + "\n".join(f"  {path}  <->  {place_in_checkout(path)}" for path in clashing),
            next="git stash (the project's), make export, git stash pop and merge by hand",
        )
    now = parse_listing(sides.project.listing(pin))
    ours, theirs = sides.project.overlay, sides.checkout.overlay
    overlay = {}
    for path in sorted({*ours, *theirs}):
        listed = f"overlay/{path}"
        chosen = ours if now.get(listed) != sides.applied.get(listed) else theirs
        if path in chosen:
            overlay[path] = chosen[path]
    series = sides.project if _series(now) != _series(sides.applied) else sides.checkout
    return Recipe(overlay, series.patches, series.landing)


def clashes(sides: Sides, pin: Pin) -> list[str]:
    """The paths that both sides changed, each in its own way."""
    was = sides.applied
    now, held = (parse_listing(recipe.listing(pin)) for recipe in (sides.project, sides.checkout))
    found = [
        path
        for path in sorted({*was, *now, *held})
        if path.startswith("overlay/") and len({was.get(path), now.get(path), held.get(path)}) == 3
    ]
    before, here, there = _series(was), _series(now), _series(held)
    if before != here and before != there and here != there:
        found += [path for path in sorted({*before, *here}) if before.get(path) != here.get(path)]
    return found


def _series(listing: Mapping[str, str]) -> dict[str, str]:
    return {path: told for path, told in listing.items() if path.startswith("patches/")}


def place_in_checkout(path: str) -> str:
    """Where the checkout holds what the project holds at a path."""
    return f"{SUBMODULE}/{path.removeprefix('overlay/')}" if path.startswith("overlay/") else f"{SUBMODULE}'s commits"


def dropped(before: Recipe, after: Recipe) -> list[str]:
    """Patches whose subject is in no patch any more."""
    slugs = {name.partition("-")[2] for name in after.patches}
    return [name for name in before.patches if name.partition("-")[2] not in slugs]
