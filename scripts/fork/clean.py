"""Throw away what can be made again, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from fork.checkout import Checkout
from fork.progress import Area
from fork.project import SCRATCH, SUBMODULE, Project


def clean(root: Path) -> None:
    """Remove `.fork/` and the checkout, except for what somebody made. The caller holds the lock."""
    project = Project(root)
    checkout = Checkout.of(project)
    if checkout.exists():
        own = [*rebasing(project), *somebodys(checkout)]
        if own:
            print(f"kept: {SUBMODULE}/, it holds\n" + "\n".join(f"  {line}" for line in own))
        else:
            gone = project.checkout.rename(project.state / f"{SCRATCH}checkout")
            project.checkout.mkdir()  # as in a new clone
            shutil.rmtree(gone)
            print(f"removed: {SUBMODULE}/ (make install puts it back, also for environments that use it)")
    for path in sorted(project.state.iterdir()):
        if path.name == "rescued":
            print(f"kept: {path.relative_to(root)}/, files that were not kept anywhere else")
        elif path == Area(project).folder and rebasing(project):
            print(f"kept: {path.relative_to(root)}/, a rebase that is not finished (make rebase-abort forgets it)")
        elif path.is_dir():
            shutil.rmtree(path)
            print(f"removed: {path.relative_to(root)}/")
        elif path.name != "lock":
            path.unlink()


def rebasing(project: Project) -> list[str]:
    """The rebase that is going on, whose worktree belongs to the checkout's repository."""
    progress = Area(project).read()
    return [f"a rebase to {progress.new.version}"] if progress else []


def somebodys(checkout: Checkout) -> list[str]:
    """What in the checkout cannot be made again."""
    if checkout.git.commit("HEAD") is None:
        return [f"no commit checked out (mv {SUBMODULE} aside by hand)"]
    checkout.recover()
    state = checkout.state()
    edits = checkout.edits(state)
    ours = [f"--no-merged={state.applied}"] if state else []  # such as the branch of make branch
    places = ("refs/heads", "refs/stash", "refs/fork/rescue")
    refs = checkout.git.out("for-each-ref", "--format=%(refname)", *ours, *places)
    others = [ref for ref in refs.split() if ref != "refs/heads/masks"]
    return [*edits.commits, *edits.changed, *edits.untracked, *others]
