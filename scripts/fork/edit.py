"""`make new-patch`, `edit-patch N=` and `drop-patch N=`: changing a series without git's plumbing.

New commits are made aside, and looked at by the landing guard; checkout and patches change when all is well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fork import carry, landing, series
from fork.checkout import Checkout, Edits, State
from fork.derive import OVERLAY_AUTHOR, diff
from fork.errors import ForkError
from fork.export import export, require_applied
from fork.git import Git
from fork.header import read_header, require_proofs
from fork.message import WRITTEN, author, compose, describe
from fork.pins import Pin
from fork.progress import Stop
from fork.project import SUBMODULE, Project
from fork.recipe import read_recipe
from fork.render import render
from fork.replace import keep, replace
from fork.upstream import applied_pin


@dataclass(frozen=True)
class Desk:
    """The checkout whose series is to be changed, what is applied to it, and what somebody edited in it."""

    project: Project
    checkout: Checkout
    pin: Pin
    state: State
    edits: Edits

    @property
    def patches(self) -> dict[str, str]:
        """The commit of each patch, by its name."""
        commits = self.checkout.git.out("rev-list", "--reverse", f"{self.state.base}..{self.state.applied}").split()
        return dict(zip(read_recipe(self.project.root, self.pin).patches, commits[1:], strict=True))

    @property
    def upstream(self) -> list[str]:
        """The edited files that upstream has."""
        known = set(self.checkout.git.lines("ls-tree", "-r", "-z", "--name-only", self.state.base))
        return [path for path in self.edits.changed if path in known]

    def find(self, number: str) -> str:
        """The patch of a number."""
        for name in self.patches:
            if number.isdigit() and int(name.partition("-")[0]) == int(number):
                return name
        raise ForkError(
            f"N is {number!r}, expected the number of a patch: {', '.join(self.patches)}", next="the command with N="
        )


def sit_down(root: Path) -> Desk:
    """The desk, if checkout and project say the same but for what somebody edited."""
    project = Project(root)
    checkout = Checkout.of(project)
    state = require_applied(checkout)
    pin = applied_pin(root, checkout)
    if not series.is_current(checkout, state, pin, read_recipe(root, pin), series.Source.AUTO):
        raise ForkError(
            f"overlay or patches have changed since they were applied to {SUBMODULE}/, expected both to be the same",
            next="make apply",
        )
    edits = checkout.edits(state)
    if edits.commits:
        raise ForkError(
            f"{SUBMODULE}/ holds commits that are not exported, expected patches only:\n{Edits(edits.commits)}",
            next="make export",
        )
    return Desk(project, checkout, pin, state, edits)


def new_patch(root: Path, message: str) -> None:
    """Make a patch of what was edited in upstream's files."""
    desk = sit_down(root)
    _require_edits(desk)
    number = len(desk.patches) + 1
    text = compose(desk.project, message, describe(desk.checkout.git, desk.upstream))
    _require_header(desk, "the new patch", text, _mend("new-patch", message))
    commit = _commit(desk, desk.state.applied, text, author(desk.checkout.git))
    _adopt(desk, commit)
    print(f'next:  make prove ARGS="--patch {number}"')


def edit_patch(root: Path, number: str, message: str) -> None:
    """Put what was edited in upstream's files into a patch; without edits, or with a message, reword it."""
    desk = sit_down(root)
    name = desk.find(number)
    commit, git = desk.patches[name], desk.checkout.git
    text = git.out("log", "-1", "--format=%B", commit)
    if message or not desk.upstream:
        text = compose(desk.project, message, text)
        _require_header(desk, name, text, _mend(f"edit-patch N={number}", message))
    edit = _commit(desk, desk.state.applied, "edit", OVERLAY_AUTHOR) if desk.upstream else None
    with _worktree(desk, commit) as tree:
        if edit:
            later = ", ".join(_later_on_the_same(desk, name)) or "none"
            _carry(tree, commit, edit, f"the edit does not fit into {name} (later patches of the same files: {later})")
        tip = _recommit(tree, commit, text)
        tip = _carry_later(desk, tree, name, tip)
    if git.tree(tip) != git.tree(edit or desk.state.applied):
        raise ForkError(
            f"with the edit in {name}, the later patches would make other files, expected the same", next="make status"
        )
    _adopt(desk, tip)
    print(f'next:  make prove ARGS="--patch {int(number)}"')


def _require_header(desk: Desk, name: str, text: str, next: str) -> None:
    """A message that says everything, and names tests that are there."""
    require_proofs(desk.project.root, name, read_header(desk.checkout.git, name, text, next), next)


def _mend(command: str, message: str) -> str:
    """What to do about a message that lacks something."""
    file = message or WRITTEN
    return f"mend the message in {file}, then make {command} MESSAGE={file}"


def drop_patch(root: Path, number: str) -> None:
    """Take a patch out of the series. It is kept where git does not have it."""
    desk = sit_down(root)
    if desk.edits:
        raise ForkError(f"{SUBMODULE}/ holds edits, expected none:\n{desk.edits}", next="make export")
    name = desk.find(number)
    text = desk.checkout.git.out("log", "-1", "--format=%B", desk.patches[name])
    proofs = ", ".join(read_header(desk.checkout.git, name, text).proofs)
    before, file = read_recipe(root, desk.pin), f"patches/{desk.pin.tag}/{name}"
    with _worktree(desk, f"{desk.patches[name]}^") as tree, desk.project.scratch() as scratch:
        tip = _carry_later(desk, tree, name, tree.out("rev-parse", "HEAD"))
        after = render(desk.checkout.git, desk.state.base, tip, (), scratch)
    committed = desk.project.git.run_bytes("cat-file", "blob", f"HEAD:{file}", check=False).stdout
    kept = f"git show HEAD:{file}" if committed == before.patches[name] else ""
    kept = kept or f"it is kept as {keep(desk.project, root / file)}"
    print("\n".join(replace(desk.project, before.files(desk.pin), after.files(desk.pin))))
    series.apply(root)
    print(f"dropped: {name} ({kept}); what it was for is not so any more: {proofs}")


def _require_edits(desk: Desk) -> None:
    if not desk.upstream:
        raise ForkError(
            f"no file of upstream's is edited in {SUBMODULE}/, expected an edit to make a patch of",
            next=f"edit a file in {SUBMODULE}/, then make new-patch (a new file belongs into overlay/)",
        )


def _commit(desk: Desk, parent: str, message: str, who: Mapping[str, str]) -> str:
    """A commit of the edits in upstream's files; index and branch stay as they are."""
    with desk.project.scratch() as scratch:
        index = desk.checkout.git.having(GIT_INDEX_FILE=scratch / "edit-index", **who)
        index.run("read-tree", parent)
        index.run("update-index", "--add", "--remove", "--", *desk.upstream)
        commit = index.out("commit-tree", "-p", parent, "-F", "-", index.out("write-tree"), input=message)
        landing.changes(index, parent, commit)  # a name that is bound nowhere is said before anything changes
        return commit


@contextmanager
def _worktree(desk: Desk, commit: str) -> Iterator[Git]:
    """A worktree on a commit, for as long as it is needed."""
    with desk.project.scratch() as scratch:
        folder = scratch / SUBMODULE
        desk.checkout.git.run("worktree", "prune")  # that of a run which was killed
        desk.checkout.git.run("worktree", "add", "--quiet", "--detach", str(folder), commit)
        try:
            yield Git(folder, {"GIT_CEILING_DIRECTORIES": str(scratch), "GIT_EDITOR": "true"})
        finally:
            desk.checkout.git.run("worktree", "remove", "--force", str(folder), check=False)


def _carry(tree: Git, onto: str, commit: str, otherwise: str) -> None:
    """Put a commit on another; where that is not possible, or goes astray, nothing has happened."""
    stop = carry.carry(tree, onto, commit)
    if stop is not Stop.NOWHERE:
        told = carry.describe(tree, tree.where, commit) if stop is Stop.CONFLICT else "nothing is left of it"
        raise ForkError(f"{otherwise}:\n{told}", next="edit or drop that patch first; nothing was changed")
    astray = carry.astray(tree, commit, tree.out("rev-parse", "HEAD"))
    if astray:
        raise ForkError(f"{otherwise}: {astray}", next="edit or drop that patch first; nothing was changed")


def _recommit(tree: Git, commit: str, text: str) -> str:
    """What the worktree holds in place of a commit, with its author and date."""
    told = tree.out("log", "-1", "--date=raw", "--format=%an%x00%ae%x00%ad", commit)
    names = (f"GIT_AUTHOR_{what}" for what in ("NAME", "EMAIL", "DATE"))
    who = tree.having(**dict(zip(names, told.split("\0"), strict=True)))
    return who.out("commit-tree", "-p", f"{commit}^", "-F", "-", tree.tree("HEAD"), input=text)


def _later_on_the_same(desk: Desk, name: str) -> list[str]:
    """The patches behind one that change files that are edited too."""
    git, edited, patches = desk.checkout.git, set(desk.upstream), desk.patches
    behind = list(patches)[list(patches).index(name) + 1 :]
    return [later for later in behind
            if edited & {entry.path for entry in diff(git, f"{patches[later]}^", patches[later])}]  # fmt: skip


def _carry_later(desk: Desk, tree: Git, name: str, tip: str) -> str:
    """The patches behind one, on another commit."""
    patches = desk.patches
    for later in list(patches)[list(patches).index(name) + 1 :]:
        _carry(tree, tip, patches[later], f"{later} builds on {name}, and does not fit any more")
        tip = tree.out("rev-parse", "HEAD")
    return tip


def _adopt(desk: Desk, tip: str) -> None:
    """Take a commit that holds the files as they are, and export it."""
    desk.checkout.git.run("reset", "--quiet", "--mixed", tip)
    export(desk.project.root)
