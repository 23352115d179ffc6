"""`make rebase TO=`, `rebase-continue` and `rebase-abort`: the series, carried to another release (DESIGN 4.2).

The work is done in `.fork/rebase/`; checkout, overlay and patches stay as they are until every patch is carried
or dropped by name. Killed at any moment, `rebase-continue` goes on: what git was doing by itself is done again,
what somebody resolved is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace as changed
from pathlib import Path

from packaging.version import Version

from fork import carry, report, series
from fork.checkout import Checkout
from fork.derive import commit_overlay, derive
from fork.errors import ForkError
from fork.pins import Pin, all_pins
from fork.progress import Area, Carried, Fate, Progress, Stop
from fork.project import Project
from fork.recipe import File, Recipe, read_recipe
from fork.release import bring, read_version
from fork.render import render
from fork.replace import replace
from fork.source import Source, fetch_base, known_base
from fork.upstream import chosen_pin


def start(root: Path, version: str, source: Source = Source.AUTO, upstream: str = "") -> None:
    """Begin to carry a pin's series (the checkout's, unless `upstream` says another) to a release."""
    project = Project(root)
    area, old = Area(project), chosen_pin(root, upstream)
    _refuse_second(area)
    if not version:
        raise ForkError("TO is empty, expected the version to go to", next="make rebase TO=VERSION")
    checkout = _require_exported(project)
    _refuse_series(root, old, version)
    with project.scratch() as scratch:
        release = bring(checkout.git, root, version, old, source, scratch)
        base = known_base(checkout.git, old, source) or fetch_base(checkout.git, root, old, source, scratch)
        recipe = read_recipe(root, old)
        made = derive(checkout.git, base, recipe, scratch)
        index = checkout.git.having(GIT_INDEX_FILE=scratch / "rebase-index")
        overlay = commit_overlay(index, release.base, recipe.overlay)
    progress = Progress(
        old, release.pin, release.anew, (base, release.base), (made.overlay, overlay), made.patches,
        listing=_listing(recipe, old),
    )  # fmt: skip
    _open(area, checkout, progress)
    print(f"rebase: {len(made.patches)} patches from {old.tag} to {release.pin.tag}, in {area.shown}")
    _run(area, progress)


def proceed(root: Path, drop: str = "", accept: str = "") -> None:
    """Go on after a stop. `drop` and `accept` name, by its number, the patch at which it stopped."""
    area = Area(Project(root))
    progress = _require(area)
    if _listing(read_recipe(root, progress.old), progress.old) != progress.listing:
        raise ForkError(
            f"patches/{progress.old.tag} has changed since this rebase began, expected it to stay",
            next=f"git stash, or make rebase-abort and make rebase TO={progress.new.version}",
        )
    for number in filter(None, (drop, accept)):
        _require_current(progress, number)
    _run(area, _settle(area, progress, bool(drop), bool(accept)))


def abort(root: Path) -> None:
    """Forget a rebase; checkout, overlay and patches are as they were."""
    area = Area(Project(root))
    if not area.folder.exists():
        raise ForkError("no rebase is going on, expected one", next="make rebase TO=VERSION")
    _close(area)
    print("the rebase is given up; transformers/ and patches/ are as they were")


def resume(root: Path) -> str:
    """What goes on after an interruption: before there is anything to continue, the rebase itself."""
    return "rebase-continue" if Area(Project(root)).read() else "rebase TO=VERSION"


def _listing(recipe: Recipe, pin: Pin) -> tuple[str, ...]:
    """What the series is, without the overlay, which may change meanwhile."""
    return tuple(line for line in recipe.listing(pin).splitlines() if " patches/" in line)


def _refuse_second(area: Area) -> None:
    progress = area.read()
    if progress:
        raise ForkError(
            f"a rebase from {progress.old.version} to {progress.new.version} is not finished "
            f"({len(progress.done)} of {len(progress.patches)} patches), expected none",
            next="make rebase-continue, or make rebase-abort",
        )


def _require_exported(project: Project) -> Checkout:
    """The checkout, made if it is missing, with nothing in it that the series does not say."""
    checkout = Checkout.of(project)
    if not checkout.exists():
        series.apply(project.root)
    checkout.recover()
    checkout.require_calm()
    edits = checkout.edits(checkout.state())
    if edits:
        raise ForkError(
            f"transformers/ holds edits that are not exported, which a rebase would leave behind:\n{edits}",
            next="make export (or git -C transformers stash), then the rebase again",
        )
    return checkout


def _refuse_series(root: Path, old: Pin, version: str) -> None:
    """A series that is there already is somebody's work."""
    wanted = read_version(version)
    for pin in all_pins(root):
        if Version(pin.version) == wanted and read_recipe(root, pin).patches:
            same = "is where the series comes from" if pin == old else f"has a series in patches/{pin.tag}"
            raise ForkError(
                f"transformers {pin.version} {same}, expected a release without one",
                next=f"make install UPSTREAM={pin.version}; to make it anew: git rm 'patches/{pin.tag}/*.patch', then "
                f"make rebase TO={pin.version} UPSTREAM=<another>",
            )


def _open(area: Area, checkout: Checkout, progress: Progress) -> None:
    """The worktree, on the new release's overlay; recorded once it is whole."""
    _close(area)  # what a run that was killed here has left
    area.folder.mkdir(parents=True)
    checkout.git.run("worktree", "add", "--quiet", "--detach", "--force", str(area.tree), progress.overlays[1])
    area.write(progress)


def _close(area: Area) -> None:
    """Forget the worktree. The file goes first: without it, the rest is nobody's."""
    (area.folder / "progress.json").unlink(missing_ok=True)
    shutil.rmtree(area.folder, ignore_errors=True)
    checkout = Checkout.of(area.project)
    if checkout.exists():
        checkout.git.run("worktree", "prune")


def _require(area: Area) -> Progress:
    progress = area.read()
    if progress is None:
        _close(area)  # what a run that was killed at its end has left
        raise ForkError("no rebase is going on, expected one to continue", next="make rebase TO=VERSION")
    if not (area.tree / ".git").exists() or area.git.commit(progress.tip) is None:
        raise ForkError(
            f"{area.shown} is no worktree of transformers/ any more, expected the one that the rebase works in",
            next=f"make rebase-abort, then make rebase TO={progress.new.version}",
        )
    return progress


def _require_current(progress: Progress, number: str) -> None:
    """What is dropped or accepted is the patch at which the rebase stopped, and no other by mistake."""
    at = progress.next
    if progress.stop is Stop.NOWHERE or at is None or int(at.partition("-")[0]) != int(number):
        raise ForkError(
            f"the rebase has not stopped at patch {number}, but at {at or 'its end'}; expected that one's number",
            next="make rebase-continue",
        )


def _run(area: Area, progress: Progress) -> None:
    """Carry what is left, and finish."""
    while progress.next:
        progress = area.write(changed(progress, stop=Stop.NOWHERE))
        patch = progress.patches[str(progress.next)]
        if carry.is_void(area.git, patch, progress.bases[1]):
            progress = _dropped(area, progress, f"{', '.join(carry.edited(area.git, patch))}: not there")
            continue
        stop = carry.carry(area.git, progress.tip, patch)
        if stop is not Stop.NOWHERE:
            raise _stopped(area, changed(progress, stop=stop))
        progress = _land(area, progress, carry.fate(area.git, patch, area.git.out("rev-parse", "HEAD")))
    _finish(area, progress)


def _settle(area: Area, progress: Progress, drop: bool, accept: bool) -> Progress:
    """Take in what somebody did at the stop."""
    git = area.git
    if progress.stop is Stop.NOWHERE or drop:
        carry.give_up(git, progress.tip)  # killed while git was at work by itself; or not wanted
        return _dropped(area, progress, "by --drop") if drop else progress
    if carry.is_going_on(git):
        _require_resolved(area, progress)
        if carry.go_on(git) is not Stop.NOWHERE:
            raise _stopped(area, changed(progress, stop=Stop.EMPTY))
    _require_committed(area, progress)
    commits = git.out("rev-list", f"{progress.tip}..HEAD").split()
    if git.run("merge-base", "--is-ancestor", progress.tip, "HEAD", check=False).returncode or len(commits) > 1:
        raise ForkError(
            f"{area.shown} is at {git.out('rev-parse', 'HEAD')}, expected one commit on {progress.tip} for "
            f"{progress.next}, or none to drop it",
            next=f"git -C {area.shown} reset --soft {progress.tip} and commit; then make rebase-continue",
        )
    if not commits:
        return _dropped(area, progress, "skipped, or nothing was left of it")
    fate = Fate.CONFLICTED if progress.conflicted else Fate.ADAPTED
    return _land(area, progress, fate, accept)


def _require_resolved(area: Area, progress: Progress) -> None:
    """Nothing in conflict, and something staged."""
    if carry.unmerged(area.git):
        raise _stopped(area, progress)
    markers = carry.leftover_markers(area.git)
    if markers:
        raise ForkError(
            "conflict markers are still in what you staged, expected them resolved:\n" + "\n".join(markers),
            next=f"edit the files in {area.shown}, git -C {area.shown} add them, then make rebase-continue",
        )
    if not area.git.lines("diff-index", "-z", "--cached", "--name-only", "HEAD"):
        raise _stopped(area, changed(progress, stop=Stop.EMPTY))


def _require_committed(area: Area, progress: Progress) -> None:
    """Edits in the worktree belong to a commit."""
    edited = area.git.lines("diff-index", "-z", "--name-only", "HEAD")
    if edited:
        raise ForkError(
            f"{', '.join(edited)} in {area.shown} is edited and not committed, expected it in {progress.next}",
            next=f"git -C {area.shown} commit --all --amend --no-edit, then make rebase-continue",
        )


def _dropped(area: Area, progress: Progress, why: str) -> Progress:
    patch = str(progress.next)
    print(f"dropped: {patch} ({why})")
    return area.write(progress.after(Carried(patch, None, Fate.DROPPED, why)))


def _land(area: Area, progress: Progress, fate: Fate, accept: bool = False) -> Progress:
    """The landing guard: a patch that merged has to be where it was meant to be."""
    git, patch = area.git, str(progress.next)
    commit = git.out("rev-parse", "HEAD")
    astray, unbound = None, None
    try:
        astray = carry.astray(git, progress.patches[patch], commit)
    except ForkError as error:
        unbound = error.message
    if unbound or (astray and not accept):
        area.write(changed(progress, stop=Stop.LANDING))
        moved = "" if unbound else f'; if it belongs there now: make rebase-continue ARGS="--accept {int(patch[:4])}"'
        raise ForkError(
            f"{patch} merged clean, but landed wrong: {unbound or astray}",
            next=f"edit {area.shown} and git -C {area.shown} commit --all --amend --no-edit, "
            f"then make rebase-continue{moved}",
        )
    left = carry.left_out(git, progress.patches[patch], commit)
    notes = [f"accepted: {astray}"] * bool(astray) + [f"without {path}, which is not there" for path in left]
    print(f"{fate.value}: {'; '.join([patch, *notes])}")
    return area.write(progress.after(Carried(patch, commit, fate, "; ".join(notes))))


def _stopped(area: Area, progress: Progress) -> ForkError:
    """What stops the rebase, and the commands that go on."""
    area.write(changed(progress, conflicted=True))
    patch = str(progress.next)
    drop = f'make rebase-continue ARGS="--drop {int(patch[:4])}"'
    if progress.stop is Stop.EMPTY:
        return ForkError(
            f"{patch} changes nothing on {progress.new.tag}: upstream has the same, or its resolution is upstream's",
            next=f"{drop}, or make rebase-abort",
        )
    told = carry.describe(area.git, area.tree, progress.patches[patch])
    return ForkError(
        f"{patch} conflicts with {progress.new.tag}:\n{told}",
        next=f"resolve it in {area.shown}, git -C {area.shown} add the files, then make rebase-continue; "
        f"without this patch: {drop}; as if nothing had been: make rebase-abort",
    )


def _finish(area: Area, progress: Progress) -> None:
    """Write the new series, say what became of the old one, and forget the work."""
    project, pin = area.project, progress.new
    with project.scratch() as scratch:
        made = render(area.git, progress.bases[1], progress.tip, (), scratch)
        _require_all(progress, made)
        files = {path: file for path, file in made.files(pin).items() if path.startswith("patches/")}
        if pin not in all_pins(project.root):
            files[f"patches/{pin.tag}/pin.cfg"] = File(pin.text().encode())
        replace(project, _written(project, files), files)
        report.publish(area, progress, made, scratch)
    _close(area)
    print(f"written: patches/{pin.tag}/\nnext:  make verify, then make install test UPSTREAM={pin.version}")


def _written(project: Project, files: Mapping[str, File]) -> dict[str, File]:
    """What of it a run that was killed here has written; anything else in its place is not ours."""
    there = ((path, project.root / path) for path in files)
    return {path: files[path] for path, file in there if file.exists() and file.read_bytes() == files[path].content}


def _require_all(progress: Progress, made: Recipe) -> None:
    """Patches in are patches out and patches dropped by name."""
    carried = [each.patch for each in progress.done if each.commit]
    if len(carried) != len(made.patches):
        raise ForkError(
            f"{len(progress.patches)} patches went in and {len(progress.patches) - len(carried)} were dropped, "
            f"but {len(made.patches)} came out; expected {len(carried)}: {', '.join(made.patches)}",
            next="make rebase-abort, then make rebase again",
        )
