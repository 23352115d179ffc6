"""From commits back to overlay and patches: what `export` writes and `verify` compares.

Which side a path belongs to is decided by the base alone: what upstream has is patched, all else is overlay.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from unidiff.patch import PatchSet

from fork import landing
from fork.derive import Entry, commit_overlay, derive, diff
from fork.errors import ForkError
from fork.git import Git
from fork.header import read_header
from fork.project import SUBMODULE
from fork.recipe import File, Recipe


# Ten lines each way are enough for git to find nearly every place in upstream's files; where the block is
# there twice all the same, the context grows until it is not.
CONTEXT = 10

# A patch is the same whatever the repository's own configuration: each option that has a setting is given.
FORMAT = (
    "--full-index",
    "--zero-commit",
    "--no-signature",
    "--no-stat",
    "--no-numbered",
    "--subject-prefix=PATCH",
    "--suffix=.patch",
    "--no-renames",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--diff-algorithm=myers",
    "--binary",
    "--no-attach",
    "--no-thread",
    "--no-cover-letter",
    "--no-base",
    "--no-signoff",
    "--no-notes",
    "--no-from",
    "--no-to",
    "--no-cc",
    "--no-add-header",
    "--no-encode-email-headers",
    "--filename-max-length=64",
    "--indent-heuristic",
)


def render(git: Git, base: str, head: str, changed: Iterable[str], scratch: Path) -> Recipe:
    """The recipe that makes `head`, with the overlay files among `changed` taken from the working tree."""
    if not git.run("merge-base", "--is-ancestor", base, head, check=False).returncode == 0:
        raise ForkError(
            f"{SUBMODULE}/ is at {head}, expected commits on top of the pin's {base}",
            next=f"git -C {SUBMODULE} checkout masks",
        )
    upstream = set(git.lines("ls-tree", "-r", "-z", "--name-only", base))
    found = {**read_overlay(git, head, upstream), **read_edits(git, changed, upstream)}
    overlay = {path: file for path, file in sorted(found.items()) if file is not None}
    index = git.having(GIT_INDEX_FILE=scratch / "render-index")
    commits = rewrite(index, base, head, upstream, overlay)
    patches, record, parent = {}, {}, commits[0]
    for number, commit in enumerate(commits[1:], start=1):
        name, content = format_patch(git, parent, commit, number, scratch)
        read_header(git, name, git.out("log", "-1", "--format=%B", commit))
        patches[name], record[name] = content, landing.changes(git, parent, commit)
        parent = commit
    recipe = Recipe(overlay, patches, landing.write_record(record) if record else None)
    check_faithful(git, base, recipe, commits, scratch)
    return recipe


def read_overlay(git: Git, head: str, upstream: set[str]) -> dict[str, File]:
    """The files of a commit that upstream does not have."""
    found = {}
    for line in git.lines("ls-tree", "-r", "-z", head):
        told, path = line.split("\t", 1)
        mode, _, blob = told.split()
        if path in upstream:
            continue
        _require_plain(path, mode)
        found[path] = File(git.run_bytes("cat-file", "blob", blob).stdout, mode == "100755")
    return found


def read_edits(git: Git, changed: Iterable[str], upstream: set[str]) -> dict[str, File | None]:
    """Uncommitted edits of overlay files; None for a file that was deleted."""
    ours = [path for path in changed if path in upstream]
    if ours:
        raise ForkError(
            "these edits of upstream's files are not committed, expected a commit for each patch:\n"
            + "\n".join(f"  {path}" for path in ours),
            next=f"git -C {SUBMODULE} commit -a (a new patch), or commit -a --fixup=<its commit> and "
            f"rebase --interactive --autosquash refs/fork/base (a changed one); then make export",
        )
    found: dict[str, File | None] = {}
    for path in changed:
        file = git.where / path
        if file.is_symlink():
            _require_plain(path, "120000")
        executable = file.exists() and bool(file.stat().st_mode & stat.S_IXUSR)
        found[path] = File(file.read_bytes(), executable) if file.exists() else None
    return found


def _require_plain(path: str, mode: str) -> None:
    if mode not in ("100644", "100755"):
        raise ForkError(
            f"{path} is a link or a repository (mode {mode}), expected a plain file in the overlay",
            next=f"git -C {SUBMODULE} rm '{path}'",
        )


def rewrite(index: Git, base: str, head: str, upstream: set[str], overlay: dict[str, File]) -> list[str]:
    """The same edits of upstream's files on top of the whole overlay: its commit, then one for each patch."""
    merges = index.out("log", "--merges", "--format=%h %s", f"{base}..{head}")
    if merges:
        raise ForkError(
            f"{SUBMODULE}/ holds merges, expected one line of commits:\n{merges}",
            next=f"git -C {SUBMODULE} rebase refs/fork/base",
        )
    commits = [commit_overlay(index, base, overlay)]
    for commit in index.out("rev-list", "--reverse", f"{base}..{head}").split():
        entries = [entry for entry in diff(index, f"{commit}^", commit) if entry.path in upstream]
        subject = index.out("log", "-1", "--format=%h %s", commit)
        if entries:
            commits.append(_recommit(index, commits[-1], commit, entries))
        elif subject.partition(" ")[2] != "Overlay":
            print(f"no patch: {subject} (it changes only files of the overlay)")
    return commits


def _recommit(index: Git, parent: str, commit: str, entries: list[Entry]) -> str:
    """One commit's edits of upstream's files, with its author, date and message."""
    lines = [f"{entry.new_mode} {entry.new}\t{entry.path}\0" for entry in entries]
    index.run("update-index", "-z", "--index-info", input="".join(lines))
    told = index.out("log", "-1", "--date=raw", "--format=%an%x00%ae%x00%ad%x00%s%x00%b", commit)
    name, email, date, subject, body = told.split("\0")
    author = index.having(GIT_AUTHOR_NAME=name, GIT_AUTHOR_EMAIL=email, GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
    message = f"{subject}\n\n{body}".strip() + "\n"
    return author.out("commit-tree", "-p", parent, "-F", "-", index.out("write-tree"), input=message)


def format_patch(git: Git, parent: str, commit: str, number: int, scratch: Path) -> tuple[str, bytes]:
    """A commit as a patch file, with as much context as makes each place unique; its name and content."""
    context, folder = CONTEXT, scratch / "formatted"
    while True:
        words = [f"--unified={context}", f"--start-number={number}", "--output-directory", str(folder)]
        file = Path(git.out("format-patch", "--quiet", *FORMAT, *words, "-1", commit) or next(folder.iterdir()))
        content = file.read_bytes()
        file.unlink()
        if is_unambiguous(git, parent, content.decode(errors="surrogateescape")):
            return file.name, content
        context *= 2


def is_unambiguous(git: Git, parent: str, patch: str) -> bool:
    """Whether each hunk's old lines are in its file exactly once."""
    for file in PatchSet(patch):
        text = git.run("cat-file", "blob", f"{parent}:{file.path}").stdout
        lines = text.splitlines(keepends=True)
        for hunk in file:
            old = [line.value for line in hunk if line.is_context or line.is_removed]
            starts = range(len(lines) - len(old) + 1)
            if sum(lines[start : start + len(old)] == old for start in starts) > 1:
                return False
    return True


def check_faithful(git: Git, base: str, recipe: Recipe, commits: list[str], scratch: Path) -> None:
    """What was rendered must make the same commits again."""
    series = derive(git, base, recipe, scratch)
    for name, made, meant in zip(series.patches, series.patches.values(), commits[1:], strict=True):
        if made != meant:
            raise ForkError(
                f"{name} would not come back as it is: its message or its diff does not survive as a patch; "
                f"expected a message without lines like '---', 'diff --git' or 'From: '",
                next=f"git -C {SUBMODULE} rebase --interactive refs/fork/base, reword it, then make export",
            )
