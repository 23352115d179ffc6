"""A rebase that is killed, at any moment, is continued or given up cleanly."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from killer import Killer, leftovers
from later_release import Later
from test_export_series import project
from test_rebase import CONFLICT, MODELING, no_environment, resolve, series, tree
from test_series import files, head
from tiny_upstream import Tiny, git


__all__ = ["no_environment"]

MOMENTS = 4


def go_on(tiny: Tiny) -> None:
    """Whatever was left: begin or continue, resolve the conflict, and finish."""
    progress = tiny.root / ".fork" / "rebase" / "progress.json"
    if not progress.exists() and "0001-Ask-the-hook-for-the-mask.patch" in series(tiny):
        return  # killed after the end
    result = tiny.main(*(["rebase-continue"] if progress.exists() else ["rebase", "--to", "9.10.0"]))
    if result.status:
        assert "conflicts with v9.10.0" in result.err
        resolve(tiny)
        tiny.ok("rebase-continue")


def test_a_start_that_is_killed(tiny: Tiny, later: Later, tmp_path: Path) -> None:
    later.known("9.10.0", {MODELING: CONFLICT[MODELING]})
    tiny.ok("apply")
    kept, before = head(tiny), files(tiny)
    copy = tmp_path / "before"
    shutil.copytree(tiny.root, copy, symlinks=True)
    killer = Killer(tiny, ("rebase", "--to", "9.10.0"), status=1)
    killer.time()
    resolve(tiny)
    tiny.ok("rebase-continue")
    whole = project(tiny)
    for turn in range(MOMENTS):
        shutil.rmtree(tiny.root)
        shutil.copytree(copy, tiny.root, symlinks=True)
        killer.kill()
        assert (head(tiny), files(tiny)) == (kept, before)
        if turn % 2:
            tiny.main("rebase-abort")
            assert not tree(tiny).exists()
        go_on(tiny)
        assert project(tiny) == whole
        assert (head(tiny), files(tiny)) == (kept, before)
        assert leftovers(tiny) == []
        assert git(tiny.checkout, "worktree", "list").count("\n") == 1
    assert killer.killed >= 1


def test_a_continuation_that_is_killed_keeps_what_was_resolved(tiny: Tiny, later: Later, tmp_path: Path) -> None:
    later.known("9.10.0", {MODELING: CONFLICT[MODELING]})
    tiny.fails("rebase", "--to", "9.10.0")
    resolve(tiny)
    copy = tmp_path / "before"
    shutil.copytree(tiny.root, copy, symlinks=True)
    killer = Killer(tiny, ("rebase-continue",), moments=Random(1))
    killer.time()
    whole = project(tiny)
    for _ in range(MOMENTS):
        shutil.rmtree(tiny.root)
        shutil.copytree(copy, tiny.root, symlinks=True)
        killer.kill()
        if (tree(tiny).parent / "progress.json").exists():
            tiny.ok("rebase-continue")  # never asks for the same resolution again
        assert project(tiny) == whole
        assert leftovers(tiny) == []


@pytest.mark.parametrize("moment", ["render", "report.publish"])
def test_killed_at_its_end_it_ends_again(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    later.known("9.10.0", {})
    with monkeypatch.context() as patched:
        patched.setattr(f"fork.rebase.{moment}", _killed)
        with pytest.raises(SystemExit):
            tiny.main("rebase", "--to", "9.10.0")
    assert tree(tiny).exists()
    out = tiny.ok("rebase-continue").out
    assert "2 patches in, 2 out: 2 unchanged" in out
    assert "rescued" not in out
    assert not tree(tiny).exists()


def _killed(*arguments: object) -> None:
    raise SystemExit(137)


def test_what_a_run_killed_before_its_record_left_is_no_rebase(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", {})
    tree(tiny).mkdir(parents=True)
    (tree(tiny) / "half.py").write_text("half = ")
    assert "no rebase is going on" in tiny.fails("rebase-continue")
    tiny.ok("rebase", "--to", "9.10.0")


def test_a_worktree_that_was_killed_in_the_making_is_made_anew(tiny: Tiny, later: Later) -> None:
    """Git locks a worktree until it is whole, and neither prunes nor replaces one that is locked."""
    later.known("9.10.0", {})
    tiny.ok("apply")
    git(tiny.checkout, "worktree", "add", "--quiet", "--detach", str(tree(tiny)), "refs/fork/base")
    made = tiny.checkout / ".git" / "worktrees" / tree(tiny).name
    (made / "locked").write_text("initializing\n")
    (tiny.root / ".fork" / "lock").write_text("999999999\n")
    shutil.rmtree(tree(tiny))
    tiny.ok("rebase", "--to", "9.10.0")
    assert not made.exists()
    assert git(tiny.checkout, "worktree", "list").count("\n") == 1
