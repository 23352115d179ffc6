"""From base, overlay and patches to commits: a pure function, without a working tree.

One commit for the overlay and one for each patch, made in a temporary index. Until a ref names them they
are loose objects that nobody sees, so there is nothing to undo when the run is killed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fork import landing
from fork.errors import ForkError
from fork.git import COMMITTER, Git
from fork.recipe import File, Recipe


OVERLAY_AUTHOR = {
    "GIT_AUTHOR_NAME": COMMITTER[0],
    "GIT_AUTHOR_EMAIL": COMMITTER[1],
    "GIT_AUTHOR_DATE": "946684800 +0000",
    "GIT_COMMITTER_DATE": "946684800 +0000",
}
ABSENT = "0" * 40


@dataclass(frozen=True)
class Series:
    """The commits: base, overlay, and one a patch by the patch's name."""

    base: str
    overlay: str
    patches: Mapping[str, str] = field(default_factory=dict)
    landing: landing.Landing = field(default_factory=dict)

    @property
    def tip(self) -> str:
        """The last commit."""
        return [self.overlay, *self.patches.values()][-1]

    def steps(self) -> list[tuple[str, str, str]]:
        """(patch, the commit before it, its commit), in order."""
        commits = [self.overlay, *self.patches.values()]
        return list(zip(self.patches, commits, commits[1:], strict=False))


@dataclass(frozen=True)
class Entry:
    """A path that differs between two trees."""

    path: str
    old_mode: str
    new_mode: str
    old: str
    new: str


def derive(git: Git, base: str, recipe: Recipe, scratch: Path, without: str | None = None) -> Series:
    """The commits that a recipe makes on a base.

    `without` leaves one patch out; then, and only then, the others may be merged (three-way) into place.
    """
    index = git.having(GIT_INDEX_FILE=scratch / "derive-index")
    overlay = commit_overlay(index, base, recipe.overlay)
    parent, commits, landed = overlay, {}, {}
    for name, content in recipe.patches.items():
        if name == without:
            continue
        commit = _commit_patch(index, parent, name, content, scratch, merge=without is not None)
        _check_entries(git, base, parent, commit, name, None if without else content)
        landed[name] = landing.changes(git, parent, commit)
        parent = commits[name] = commit
    landing.check(landing.read_record(recipe.landing), landed)
    return Series(base, overlay, commits, landed)


def commit_overlay(index: Git, base: str, overlay: Mapping[str, File]) -> str:
    """The overlay on the base. `index` has a GIT_INDEX_FILE of its own, and is left at this commit."""
    index.run("read-tree", base)
    upstream = set(index.lines("ls-files", "-z"))
    for path in sorted(overlay):
        if path in upstream:
            raise ForkError(
                f"overlay/{path} is a file of upstream's, expected only new files in overlay/",
                next=f"git rm 'overlay/{path}', then make the edit in transformers/ and commit it as a patch",
            )
    lines = [f"{file.mode} {write_blob(index, file.content)}\t{path}\0" for path, file in overlay.items()]
    index.run("update-index", "-z", "--add", "--index-info", input="".join(lines))
    author = index.having(**OVERLAY_AUTHOR)
    return author.out("commit-tree", "-p", base, "-m", "Overlay", index.out("write-tree"))


def write_blob(git: Git, content: bytes) -> str:
    """Store bytes as they are; the blob's id."""
    return git.run_bytes("hash-object", "-w", "--stdin", "--no-filters", input=content).stdout.decode().strip()


def _commit_patch(index: Git, parent: str, name: str, content: bytes, scratch: Path, merge: bool) -> str:
    """Apply a patch to the index and commit it, as `git am` does."""
    message, diff = scratch / "message", scratch / "diff"
    told = index.run_bytes("mailinfo", "-b", "--no-scissors", str(message), str(diff), input=content).stdout
    mail = dict(line.split(": ", 1) for line in told.decode().splitlines() if ": " in line)
    _require_written(diff, content, name)
    done = index.run("apply", "--cached", *(["--3way"] if merge else []), str(diff), check=False)
    if done.returncode:
        raise ForkError(
            f"{name} does not apply, expected it to fit exactly. git said:\n{done.stderr.strip()}",
            next=f"git log -p -- 'patches/*/{name}'",
        )
    try:
        author = index.having(
            GIT_AUTHOR_NAME=mail["Author"],
            GIT_AUTHOR_EMAIL=mail["Email"],
            GIT_AUTHOR_DATE=mail["Date"],
            GIT_COMMITTER_DATE=mail["Date"],
        )
    except KeyError as missing:
        raise ForkError(
            f"{name} has no {missing} in its header, expected what make export writes",
            next=f"git checkout -- 'patches/*/{name}'",
        ) from None
    text = f"{mail.get('Subject', '')}\n\n{message.read_text(encoding='utf-8')}".strip() + "\n"
    return author.out("commit-tree", "-p", parent, "-F", "-", index.out("write-tree"), input=text)


def _require_written(diff: Path, content: bytes, name: str) -> None:
    """A full disk makes mailinfo write less than it read, and say nothing; what is left may apply."""
    written = diff.read_bytes()
    if not written or not content.endswith(written):
        raise ForkError(
            f"git mailinfo wrote {len(written)} bytes of {name} into {diff.parent}, expected the whole diff; "
            f"{shutil.disk_usage(diff.parent).free // 1024} KiB are free there",
            next=f"make room there, and see that patches/*/{name} holds a diff; then the command again",
        )


def _check_entries(git: Git, base: str, before: str, after: str, name: str, content: bytes | None) -> None:
    """A patch edits upstream's files only, and was made for exactly the blobs that are here."""
    entries = diff(git, before, after)
    if not entries:
        raise ForkError(f"{name} changes nothing, expected an edit", next=f"git rm 'patches/*/{name}'")
    in_base = {entry.path: entry.old for entry in diff(git, base, after)}
    made_for = _made_for(content.decode(errors="replace")) if content else {}
    for entry in entries:
        if in_base.get(entry.path, entry.old) == ABSENT:
            raise ForkError(
                f"{name} adds or edits {entry.path}, which upstream does not have; "
                f"expected edits of upstream's files only",
                next=f"put the file into overlay/{entry.path}, and its lines out of the patch",
            )
        # Only a file's first patch is made for the pin; the later ones are made for each other.
        if content and in_base.get(entry.path) == entry.old != made_for.get(entry.path):
            raise ForkError(
                f"{name} was made for {entry.path} as blob {made_for.get(entry.path)}, expected {entry.old}, "
                f"which the pin has: it belongs to another version of upstream",
                next=f"git log -- 'patches/*/{name}'",
            )


def _made_for(patch: str) -> dict[str, str]:
    """The blob that a patch expects, by path."""
    found = re.findall(
        r"^diff --git a/(.+) b/\1\n(?:(?:old|new|deleted file) mode .*\n)*index ([0-9a-f]{40})\.\.",
        patch,
        re.M,
    )
    return dict(found)


def diff(git: Git, before: str, after: str) -> list[Entry]:
    """The paths that differ between two commits or trees."""
    words = git.lines("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", before, after)
    entries = []
    for told, path in zip(words[::2], words[1::2], strict=True):
        old_mode, new_mode, old, new, _ = told.lstrip(":").split()
        entries.append(Entry(path, old_mode, new_mode, old, new))
    return entries
