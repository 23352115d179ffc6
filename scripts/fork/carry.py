"""One patch onto the new release: `git rebase --onto`, and what to say where it stops.

Patches are carried one at a time, so that what became of each is known, not guessed, and so that the landing
guard can stop at the patch that went astray before others are put on top of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unidiff.patch import PatchSet

from fork import landing
from fork.checkout import BUSY
from fork.errors import ForkError
from fork.git import Git
from fork.progress import Fate, Stop
from fork.source import git_dir


# Where git's own defaults, or a repository's configuration, would decide otherwise.
SETTINGS = {
    "core.commentChar": ";",
    "commit.cleanup": "default",
    "merge.conflictStyle": "diff3",
    "merge.directoryRenames": "false",
    "merge.renames": "true",
    "merge.renameLimit": "0",
    "rebase.autoSquash": "false",
    "rebase.autoStash": "false",
    "rebase.forkPoint": "false",
    "rebase.updateRefs": "false",
    "rerere.enabled": "false",
}
CONFIGURED = tuple(word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}"))
REBASE = (*CONFIGURED, "rebase", "--quiet", "--merge", "--empty=ask", "--keep-empty", "--reapply-cherry-picks")
SHOWN = 30
# What upstream's converter writes at the head of a file that it makes.
GENERATED = "This file was automatically generated from"


def carry(git: Git, onto: str, patch: str) -> Stop:
    """Put a commit on another one, in a worktree; whether that went through.

    Generated files that the new release lacks are left out: nobody could say what to do there.
    """
    done = git.run(*REBASE, "--onto", onto, f"{patch}^", patch, check=False)
    stop = _stop(git, done.stderr if done.returncode else "")
    left = left_out(git, patch, onto) if stop is Stop.CONFLICT else []
    if left:
        git.run("rm", "--quiet", "--cached", "--", *left)
        for path in left:
            (git.where / path).unlink(missing_ok=True)
        stop = Stop.CONFLICT if unmerged(git) else go_on(git)
    return stop


def is_void(git: Git, patch: str, commit: str) -> bool:
    """Whether a patch is about generated files alone, of which a commit has none."""
    return edited(git, patch) == left_out(git, patch, commit)


def edited(git: Git, patch: str) -> list[str]:
    """The files that a patch edits."""
    return git.lines("diff-tree", "-r", "-z", "--name-only", "--no-renames", f"{patch}^", patch)


def left_out(git: Git, patch: str, commit: str) -> list[str]:
    """The generated files that a patch edits and a commit does not have: models that came later, or are gone."""
    paths = edited(git, patch)
    there = set(git.lines("ls-tree", "-r", "-z", "--name-only", commit, "--", *paths))
    gone = [path for path in paths if path not in there]
    return [path for path in gone if GENERATED in git.run("cat-file", "blob", f"{patch}^:{path}").stdout]


def go_on(git: Git) -> Stop:
    """Take what was resolved and staged."""
    done = git.run(*CONFIGURED, "rebase", "--continue", check=False)
    return _stop(git, done.stderr if done.returncode else "")


def _stop(git: Git, said: str) -> Stop:
    if not said and not is_going_on(git):
        return Stop.NOWHERE
    if unmerged(git):
        return Stop.CONFLICT
    if is_going_on(git) and not git.lines("diff-index", "-z", "--cached", "--name-only", "HEAD"):
        return Stop.EMPTY
    raise ForkError(f"git rebase stopped without a conflict. Git said:\n{said.strip()}", next="make rebase-continue")


def is_going_on(git: Git) -> bool:
    """Whether git is in the middle of a rebase there."""
    folder = git_dir(git)
    return any((folder / name).exists() for name in BUSY)


def give_up(git: Git, commit: str) -> None:
    """Put the worktree on a commit, whatever it was in the middle of."""
    git.run("rebase", "--quit", check=False)
    git.run("reset", "--quiet", "--hard", commit)


def unmerged(git: Git) -> list[str]:
    """The paths in conflict."""
    return list(dict.fromkeys(line.split("\t", 1)[1] for line in git.lines("ls-files", "-z", "--unmerged")))


def fate(git: Git, old: str, new: str) -> Fate:
    """Whether a patch that merged clean is the same, down to the lines around it."""
    return Fate.UNCHANGED if _patch_id(git, old) == _patch_id(git, new) else Fate.ADAPTED


def _patch_id(git: Git, commit: str) -> str:
    text = git.run_bytes("diff-tree", "-p", f"{commit}^", commit).stdout
    return git.run("patch-id", "--stable", input=text).stdout.partition(" ")[0]


def astray(git: Git, old: str, new: str) -> str | None:
    """Where a patch's changes went, if not where they were meant to go. An unbound name is a ForkError.

    Where upstream has renamed a class and kept its old name for it, that is the same place.
    """
    gone = left_out(git, old, new)
    meant = [change for change in landing.changes(git, f"{old}^", old) if change.file not in gone]
    return landing.moved(landing.renamed(git, meant, new), landing.changes(git, f"{new}^", new))


def describe(git: Git, tree: Path, patch: str) -> str:
    """Each conflict: file, line, what the patch does there and where, and the lines as git left them."""
    meant = landing.changes(git, f"{patch}^", patch)
    return "\n".join(line for path in unmerged(git) for line in _describe_file(git, tree, path, patch, meant))


def _describe_file(git: Git, tree: Path, path: str, patch: str, meant: list[landing.Change]) -> Iterator[str]:
    scopes = dict.fromkeys(" and ".join(change.scopes) for change in meant if change.file == path)
    file = tree / path
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    starts = [number for number, line in enumerate(lines, 1) if line.startswith("<<<<<<<")]
    yield f"{path}{f':{starts[0]}' if starts else ''}  (the patch changes {', '.join(scopes) or 'it'})"
    if not starts:
        yield "    the new release has no such file, or both sides moved it; the patch does there:"
        yield from (f"    {line}" for line in _hunks(git, patch, path)[:SHOWN])
    for start in starts:
        ends = (number for number, line in enumerate(lines[start:], start + 1) if line.startswith(">>>>>>>"))
        end = next(ends, start)
        yield from (f"    {number}: {line}" for number, line in enumerate(lines[start - 1 : end][:SHOWN], start))


def _hunks(git: Git, patch: str, path: str) -> list[str]:
    text = git.run("diff-tree", "-p", f"{patch}^", patch).stdout
    return [line for file in PatchSet(text) if file.path == path for hunk in file for line in str(hunk).splitlines()]


def leftover_markers(git: Git) -> list[str]:
    """Conflict markers in what is staged, which git would commit."""
    told = git.run("diff-index", "--cached", "--check", "HEAD", check=False).stdout
    return [line for line in told.splitlines() if "leftover conflict marker" in line]
