"""What a rebase cannot do, it says before anything is changed, and with the command to run next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from later_release import Later
from test_export_series import project
from test_lock import hold
from test_rebase import CONFLICT, no_environment, resolve, series, tree
from test_series import MASKING, commit_edit, files, head
from tiny_upstream import Tiny, git

from fork.progress import Area, Progress


__all__ = ["no_environment"]


def unknown_version(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    return "there is no transformers 9.10.0, expected one of ..., 9.9.0"


def no_sdist(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    (later.wheelhouse / "transformers-9.10.0-py3-none-any.whl").write_bytes(b"")
    return "transformers 9.10.0 has no sdist"


def no_network(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    patched.setenv("PIP_FIND_LINKS", "")
    return "pip found no transformers-9.10.0.tar.gz"


def hash_mismatch(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    pin = later.known("9.10.0", {})
    file = tiny.root / "patches" / "v9.10.0" / "pin.cfg"
    file.write_text(file.read_text().replace(pin.sdist_sha256, "f" * 64))
    return "f" * 64


def an_edit(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    (tiny.checkout / MASKING).write_text("mine = 1\n")
    return f"edits that are not exported, which a rebase would leave behind:\n  {MASKING}"


def a_commit(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    commit_edit(tiny, subject="My own")
    return "My own"


def a_commit_on_another_branch(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    git(tiny.checkout, "checkout", "--quiet", "-b", "theirs")
    commit_edit(tiny, subject="Theirs")
    return "Theirs"


def a_merge(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    git(tiny.checkout, "rebase", "--quiet", "--interactive", "HEAD~1", GIT_SEQUENCE_EDITOR="sed -i s/pick/edit/")
    return "a rebase is going on in transformers/"


def old_git(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    folder = later.wheelhouse / "bin"
    folder.mkdir()
    (folder / "git").write_text("#!/bin/sh\necho git version 2.25.1\n")
    (folder / "git").chmod(0o755)
    patched.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return "git version 2.25.1 is too old, expected 2.32 or newer"


def a_broken_release(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    (later.wheelhouse / "transformers-9.10.0.tar.gz").write_bytes(b"no archive")
    return "9.10.0"


def a_file_of_the_overlays(tiny: Tiny, later: Later, patched: pytest.MonkeyPatch) -> str:
    later.known("9.10.0", {"src/transformers/mask_patterns/hooks.py": "theirs = 1\n"})
    return "overlay/src/transformers/mask_patterns/hooks.py is a file of upstream's"


@pytest.mark.parametrize(
    "spoil",
    [unknown_version, no_sdist, no_network, hash_mismatch, an_edit, a_commit, a_commit_on_another_branch, a_merge,
     old_git, a_broken_release, a_file_of_the_overlays],
)  # fmt: skip
def test_refused_before_anything_has_changed(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tiny, Later, pytest.MonkeyPatch], str]
) -> None:
    tiny.ok("apply")
    with monkeypatch.context() as patched:
        expected = spoil(tiny, later, patched)
        words = ["--source", "sdist"] if spoil is hash_mismatch else []
        before = project(tiny), (tiny.checkout / ".git" / "HEAD").read_text(), files(tiny)
        said = tiny.fails("rebase", "--to", "9.10.0", *words)
    assert expected in said
    assert not tree(tiny).parent.exists()
    assert list(tiny.root.glob("patches/v9.10.0/*.patch")) == []
    assert (project(tiny), (tiny.checkout / ".git" / "HEAD").read_text(), files(tiny)) == before
    assert list((tiny.root / ".fork").glob("tmp-*")) == []


@pytest.mark.parametrize("version", ["", "newest", "9.9.0", "9.9"])
def test_a_version_that_makes_no_sense_is_refused(tiny: Tiny, version: str) -> None:
    tiny.ok("apply")
    assert "expected" in tiny.fails("rebase", "--to", version)


def test_a_second_run_is_told_who_is_at_work(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", {})
    holder = hold(tiny, "time.sleep(60)")
    try:
        for command in (["rebase", "--to", "9.10.0"], ["rebase-continue"], ["rebase-abort"], ["drop-patch"]):
            assert f"process {holder.pid}" in tiny.fails(*command)
    finally:
        holder.kill()
        holder.wait()
    tiny.ok("rebase", "--to", "9.10.0")


@pytest.mark.parametrize(
    ("number", "said", "moment"),
    [(30, "Read-only file system", 0), (28, "No space left on device", 2), (28, "No space left on device", 3)],
)
def test_a_disk_that_refuses_loses_nothing(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch, number: int, said: str, moment: int
) -> None:
    """At the first record, at a patch, and at the record of a conflict."""
    later.known("9.10.0", CONFLICT)
    tiny.ok("apply")
    kept = head(tiny), files(tiny), series(tiny, "v9.9.0")
    written: list[Progress] = []
    write = Area.write

    def refuse(area: Area, progress: Progress) -> Progress:
        written.append(progress)
        if len(written) > moment:
            raise OSError(number, said)
        return write(area, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Area, "write", refuse)
        assert f"{said}; nothing is lost" in tiny.fails("rebase", "--to", "9.10.0")
    assert (head(tiny), files(tiny), series(tiny, "v9.9.0")) == kept
    again = ["rebase-continue"] if moment else ["rebase", "--to", "9.10.0"]
    assert "conflicts with v9.10.0" in tiny.fails(*again)
    resolve(tiny)
    tiny.ok("rebase-continue")


@pytest.mark.parametrize(
    ("place", "again"), [("fork.rebase.bring", "rebase TO=VERSION"), ("fork.carry.carry", "rebase-continue")]
)
def test_an_interruption_says_what_goes_on(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch, place: str, again: str
) -> None:
    later.known("9.10.0", {})

    def interrupt(*words: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(place, interrupt)
        stopped = tiny.main("rebase", "--to", "9.10.0")
    assert stopped.status == 130
    assert stopped.err.endswith(f"nothing is lost\nnext:  make {again}\n")
    tiny.ok(*again.replace("TO=VERSION", "--to 9.10.0").split())


def test_a_worktree_that_somebody_removed_is_said(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    shutil.rmtree(tree(tiny))
    assert "make rebase-abort" in tiny.fails("rebase-continue")
    tiny.ok("rebase-abort")
    tiny.fails("rebase", "--to", "9.10.0")
    progress = tree(tiny).parent / "progress.json"
    progress.write_text(progress.read_text()[:100])
    assert "is unreadable" in tiny.fails("rebase-continue")
    tiny.ok("rebase-abort")


@pytest.mark.parametrize("spoil", ["other", "two"])
def test_commits_that_are_not_the_patch_are_refused(tiny: Tiny, later: Later, spoil: str, tmp_path: Path) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    resolve(tiny)
    git(tree(tiny), "rebase", "--continue", GIT_EDITOR="true")
    if spoil == "two":
        git(tree(tiny), "commit", "--quiet", "--allow-empty", "--message", "Another")
    else:
        git(tree(tiny), "checkout", "--quiet", "refs/fork/base")
    said = tiny.fails("rebase-continue")
    assert "expected one commit on" in said
    assert "reset --soft" in said
    tiny.ok("rebase-continue", "--drop", "2")
