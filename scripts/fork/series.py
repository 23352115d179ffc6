"""The patch series, from the project into the checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fork.checkout import Checkout, Edits, State, hide_gitlink, prepare
from fork.derive import Series, derive, write_blob
from fork.errors import ForkError
from fork.git import Git
from fork.pins import Pin
from fork.project import SUBMODULE, Project
from fork.recipe import Recipe, read_recipe
from fork.render import render
from fork.source import Source, fetch_base, known_base, submodule_url
from fork.upstream import chosen_pin


__all__ = ["Applied", "Source", "apply", "is_current"]


@dataclass(frozen=True)
class Applied:
    """What the checkout holds after `apply`."""

    commit: str
    tree: str
    changed: bool


def apply(root: Path, source: Source = Source.AUTO, upstream: str = "") -> Applied:
    """Make the checkout if it is missing, and put overlay and patches on it. The caller holds the lock.

    `upstream` is the version of a pin; without it, the checkout stays on its own.
    Edits that were not exported are never overwritten: if something would have to change under them, that is
    an error; if nothing has, they stay.
    """
    project = Project(root)
    pin, checkout = chosen_pin(root, upstream), Checkout.of(project)
    recipe = read_recipe(root, pin)
    hide_gitlink(project)
    if not checkout.exists():
        return _report(_build(project, pin, recipe, source), pin, recipe, changed=True)
    checkout.recover()
    state = checkout.state()
    if state and is_current(checkout, state, pin, recipe, source):
        return _report(checkout, pin, recipe, changed=False)
    checkout.require_calm()
    _move(checkout, state, pin, recipe, source)
    return _report(checkout, pin, recipe, changed=True)


def is_current(checkout: Checkout, state: State, pin: Pin, recipe: Recipe, source: Source) -> bool:
    """Whether the recipe is applied, on the right base, and what is checked out stands on it."""
    sources = (Source.GIT, Source.SDIST) if source is Source.AUTO else (source,)
    return (
        state.base in [known_base(checkout.git, pin, one) for one in sources]
        and checkout.inputs() == recipe.listing(pin)
        and checkout.stands_on(state.applied)
    )


def _build(project: Project, pin: Pin, recipe: Recipe, source: Source) -> Checkout:
    """A new checkout: built beside its place, and renamed into it when it is whole."""
    with project.scratch() as scratch:
        building = Checkout(project, scratch / SUBMODULE)
        building.folder.mkdir()
        building.git.run("init", "--quiet", "--template=", "--initial-branch=masks", "--object-format=sha1")
        building.git.run("remote", "add", "origin", submodule_url(project.root))
        prepare(building.git)
        base = fetch_base(building.git, project.root, pin, source, scratch)
        series = derive(building.git, base, recipe, scratch)
        building.git.run("checkout", "--quiet", "--force", "-B", "masks", series.tip, "--")
        building.record(_state(building.git, series, pin, recipe))
        building.folder.rename(project.checkout)
    return Checkout.of(project)


def _move(checkout: Checkout, state: State | None, pin: Pin, recipe: Recipe, source: Source) -> None:
    """Take an existing checkout to where the recipe says."""
    prepare(checkout.git)
    with checkout.project.scratch() as scratch:
        base = known_base(checkout.git, pin, source)
        base = base or fetch_base(checkout.git, checkout.project.root, pin, source, scratch)
        series = derive(checkout.git, base, recipe, scratch)
        to = _state(checkout.git, series, pin, recipe)
        edits = checkout.edits(state)
        if not edits:
            checkout.move(to)
        elif state and state.base == base and _is_exported(checkout, base, edits, recipe, scratch):
            checkout.adopt(to)
        else:
            raise ForkError(
                f"{SUBMODULE}/ holds edits that are not exported, and overlay, patches or pin have changed; "
                f"expected one or the other:\n{edits}",
                next="make export",
            )


def _is_exported(checkout: Checkout, base: str, edits: Edits, recipe: Recipe, scratch: Path) -> bool:
    """Whether the project says what the checkout holds: an export was cut short before its end."""
    try:
        return render(checkout.git, base, checkout.head(), edits.changed, scratch) == recipe
    except ForkError:
        return False


def _state(git: Git, series: Series, pin: Pin, recipe: Recipe) -> State:
    return State(series.base, series.tip, write_blob(git, recipe.listing(pin).encode()))


def _report(checkout: Checkout, pin: Pin, recipe: Recipe, changed: bool) -> Applied:
    """Say what is there, and return it."""
    state = checkout.state()
    assert state is not None  # apply has just recorded it
    done = "applied" if changed else "nothing to do:"
    print(f"{done} {pin.tag} + overlay + {len(recipe.patches)} patches, {SUBMODULE}/ at {state.applied}")
    edits = checkout.edits(state) if not changed else Edits()
    if edits:
        print(f"not exported (make export):\n{edits}")
    return Applied(state.applied, checkout.git.tree(state.applied), changed)
