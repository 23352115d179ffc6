"""What is applied, what was edited, what has drifted."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fork.checkout import Checkout, State
from fork.export import parse_listing
from fork.pins import Pin, all_pins, default_pin, gitlink
from fork.progress import Area, Stop
from fork.project import Project
from fork.recipe import read_recipe
from fork.source import Source, known_base
from fork.upstream import chosen_pin


def status(root: Path) -> None:
    """Print the table; changes nothing."""
    pin, checkout = chosen_pin(root), Checkout.of(Project(root))
    table = Table(show_header=False)
    rows = [
        ("pin", f"transformers {pin.version}, {pin.tag}, {pin.commit or 'commit not recorded'}"),
        ("pins", _pins(root)),
        ("gitlink", _gitlink(root)),
    ]
    state = checkout.state() if checkout.exists() else None
    if state is None:
        rows.append(("checkout", "not made: make apply"))
    else:
        rows += _checkout_rows(root, checkout, state, pin)
    rows += _rebase_rows(root)
    for name, text in rows:
        table.add_row(name, text)
    Console(soft_wrap=True, markup=False, highlight=False).print(table)


def _pins(root: Path) -> str:
    default = default_pin(root)
    return ", ".join(f"{pin.version} (default)" if pin == default else pin.version for pin in all_pins(root))


def _gitlink(root: Path) -> str:
    pin, recorded = default_pin(root), gitlink(root)
    return "is the default pin's" if recorded == pin.commit else f"is {recorded}, not the pin"


def _checkout_rows(root: Path, checkout: Checkout, state: State, pin: Pin) -> list[tuple[str, str]]:
    git = checkout.git
    sources = [source for source in (Source.GIT, Source.SDIST) if known_base(git, pin, source) == state.base]
    edits, drift = checkout.edits(state), drifted(root, checkout, pin)
    applied = "applied" if checkout.stands_on(state.applied) else f"not checked out (HEAD is {checkout.head()})"
    if checkout.state("refs/fork/next"):
        applied = "half moved: make apply"
    return [
        ("source", sources[0].value if sources else "another pin's: make apply"),
        ("base", state.base),
        ("series", f"{applied}, {len(read_recipe(root, pin).patches)} patches"),
        ("commit", state.applied),
        ("tree", git.tree(state.applied)),
        ("edits", f"make export:\n{edits}" if edits else "none"),
        ("untracked", "\n".join(edits.untracked) or "none"),
        ("drift", f"make apply:\n{chr(10).join(drift)}" if drift else "none"),
    ]


def _rebase_rows(root: Path) -> list[tuple[str, str]]:
    """The rebase that waits, if one does."""
    progress = Area(Project(root)).read()
    if progress is None:
        return []
    far = f"to {progress.new.version}: {len(progress.done)} of {len(progress.patches)} patches"
    at = "cut short" if progress.stop is Stop.NOWHERE else f"{progress.stop.value}: {progress.next}"
    return [("rebase", f"{far}\n{at}\nmake rebase-continue, or make rebase-abort")]


def drifted(root: Path, checkout: Checkout, pin: Pin) -> list[str]:
    """The paths in overlay and patches that are not as they were at the last apply."""
    was = parse_listing(checkout.inputs())
    now = parse_listing(read_recipe(root, pin).listing(pin))
    return [path for path in sorted({*was, *now}) if was.get(path) != now.get(path)]
