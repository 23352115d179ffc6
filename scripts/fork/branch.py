"""`make branch`: the applied series as a plain git branch, for who wants the fork on a server.

The commits are those of the checkout, whose ids are the same on every machine: the base, the overlay in one
commit, and one a patch. The branch is not `masks`, which is a researcher's.
"""

from __future__ import annotations

from pathlib import Path

from fork import series
from fork.checkout import Checkout
from fork.errors import ForkError
from fork.git import Git
from fork.pins import Pin
from fork.project import SUBMODULE, Project
from fork.sdist import archive_name
from fork.source import Source, base_ref
from fork.upstream import chosen_pin


def branch_name(pin: Pin) -> str:
    """The branch for a pin."""
    return f"mask-patterns/{pin.tag}"


def made_ref(pin: Pin) -> str:
    """The ref that remembers where we put the branch."""
    return f"refs/fork/branches/{pin.tag}"


def branch(root: Path, source: Source = Source.AUTO, upstream: str = "") -> str:
    """Put the branch on the last commit of the series; its id. The caller holds the lock."""
    series.apply(root, source, upstream)
    pin, checkout = chosen_pin(root), Checkout.of(Project(root))
    state, git, name = checkout.state(), checkout.git, branch_name(chosen_pin(root))
    assert state is not None  # applied just now
    before = git.commit(f"refs/heads/{name}")
    refuse_anothers(git, pin, before, state.applied)
    checkout.refs(f"update refs/heads/{name} {state.applied}", f"update {made_ref(pin)} {state.applied}")
    print(f"branch {name} in {SUBMODULE}/ is at {state.applied}")
    print(describe_base(git, pin, state.base))
    print(f"next:  {push_words(git, name, before, state.applied)}")
    return state.applied


def refuse_anothers(git: Git, pin: Pin, before: str | None, to: str) -> None:
    """The branch moves only from where we left it."""
    name = branch_name(pin)
    if before not in (None, to, git.commit(made_ref(pin))):
        raise ForkError(
            f"the branch {name} in {SUBMODULE}/ is at {before}, where somebody else put it; expected none, or ours",
            next=f"git -C {SUBMODULE} branch --move {name} another-name, then make branch",
        )
    if git.run("symbolic-ref", "--quiet", "HEAD", check=False).stdout.strip() == f"refs/heads/{name}":
        raise ForkError(
            f"the branch {name} is checked out in {SUBMODULE}/, expected the branch masks there",
            next=f"git -C {SUBMODULE} checkout masks, then make branch",
        )


def describe_base(git: Git, pin: Pin, base: str) -> str:
    """What the branch stands on."""
    if base == git.commit(base_ref(pin, Source.GIT)):
        return f"it stands on upstream's own commit of {pin.tag}, {base}"
    return (
        f"it stands on an import of {archive_name(pin.version)}, {base}: not upstream's commit, "
        "and without upstream's history, so it shares no commit with upstream's repository "
        "(make branch SOURCE=git does)"
    )


def push_words(git: Git, name: str, before: str | None, to: str) -> str:
    """The command that publishes it."""
    forced = ""
    if before and git.run("merge-base", "--is-ancestor", before, to, check=False).returncode:
        forced = "--force-with-lease "
    words = f"git -C {SUBMODULE} push {forced}<your repository> {name}"
    if git.out("rev-parse", "--is-shallow-repository") == "true":
        words += f" (one without upstream's history takes it after git -C {SUBMODULE} fetch --unshallow)"
    return words
