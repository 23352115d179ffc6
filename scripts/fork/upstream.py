"""Which upstream release a command is about: the one asked for, else the checkout's, else the default."""

from __future__ import annotations

from pathlib import Path

from fork.checkout import Checkout
from fork.errors import ForkError
from fork.pins import Pin, all_pins, default_pin
from fork.project import SUBMODULE, Project


def chosen_pin(root: Path, version: str = "") -> Pin:
    """The pin of a version (UPSTREAM=); of none, that of the checkout, and before there is one, the default."""
    if version:
        return find_pin(root, version)
    tag = applied_tag(Checkout.of(Project(root)))
    return next((pin for pin in all_pins(root) if pin.tag == tag), None) or default_pin(root)


def find_pin(root: Path, version: str) -> Pin:
    """The pin of a version, written as 5.17.0 or v5.17.0."""
    number = version.removeprefix("v")
    pins = all_pins(root)
    for pin in pins:
        if pin.version == number:
            return pin
    raise ForkError(
        f"patches/ has no series for transformers {number}, expected one of {', '.join(pin.version for pin in pins)}",
        next=f"make rebase TO={number}",
    )


def applied_pin(root: Path, checkout: Checkout) -> Pin:
    """The pin whose recipe is applied, which the project may have left since."""
    tag = applied_tag(checkout)
    for pin in all_pins(root):
        if pin.tag == tag:
            return pin
    raise ForkError(
        f"{SUBMODULE}/ holds {tag}, expected a pin in patches/{tag}/", next=f"git checkout -- patches/{tag}"
    )


def applied_tag(checkout: Checkout) -> str | None:
    """The tag whose recipe the checkout holds, or is being moved to."""
    state = (checkout.state("refs/fork/next") or checkout.state()) if checkout.exists() else None
    if state is None:
        return None
    return checkout.git.run("cat-file", "blob", state.inputs).stdout.partition("\n")[0].split()[-1]
