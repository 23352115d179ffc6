"""Killed at any moment, the next run puts everything right."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from killer import Killer, leftovers
from test_export_series import project
from test_series import HOOKS, commit_edit, files, head
from tiny_upstream import Tiny, git


MOMENTS = 16


@pytest.mark.parametrize("source", ["git", "sdist"])
def test_a_first_apply_killed_at_random_moments(tiny: Tiny, source: str) -> None:
    killer = Killer(tiny, ("apply", "--source", source), moments=Random(source))
    killer.time()
    expected = head(tiny), files(tiny)
    shutil.rmtree(tiny.checkout)
    for _ in range(MOMENTS // 2):
        killer.kill()
        if tiny.checkout.exists():
            assert (head(tiny), files(tiny)) == expected  # whole, or not there
            shutil.rmtree(tiny.checkout)
    assert killer.killed >= MOMENTS // 8
    tiny.ok("apply", "--source", source)
    assert (head(tiny), files(tiny)) == expected
    assert leftovers(tiny) == []


def test_a_move_killed_at_random_moments(tiny: Tiny) -> None:
    """To and fro between two states of the overlay, each run taking over what the last one left."""
    for number in range(20):
        (tiny.root / "overlay" / f"many-{number}.txt").write_text(f"{number}\n" * 2000)
    tiny.ok("apply")
    (tiny.checkout / "notes.txt").write_text("mine\n")
    hooks, expected = tiny.root / "overlay" / HOOKS, {}
    killer = Killer(tiny, ("apply",))
    for text in ("one = 1\n", "two = 2\n"):
        for number in range(20):
            (tiny.root / "overlay" / f"many-{number}.txt").write_text(f"{number} {text}" * 2000)
        hooks.write_text(text)
        killer.time()
        expected[text] = head(tiny), files(tiny)
    for turn in range(MOMENTS):
        text = ("one = 1\n", "two = 2\n")[turn % 2]
        for number in range(20):
            (tiny.root / "overlay" / f"many-{number}.txt").write_text(f"{number} {text}" * 2000)
        hooks.write_text(text)
        killer.kill()
        if turn % 4 == 3:
            out = tiny.ok("apply").out
            assert "rescued" not in out
            assert (head(tiny), files(tiny)) == expected[text]
            assert leftovers(tiny) == []
    assert killer.killed >= MOMENTS // 4
    assert files(tiny)["notes.txt"] == "mine\n"


def test_an_export_killed_at_random_moments(tiny: Tiny, tmp_path: Path) -> None:
    tiny.ok("apply")
    commit_edit(tiny)
    (tiny.checkout / HOOKS).write_text("edited = 1\n")
    edited, before = files(tiny), tmp_path / "before"
    shutil.copytree(tiny.root, before, symlinks=True)
    killer = Killer(tiny, ("export",))
    killer.time()
    after = project(tiny)
    for _ in range(6):
        shutil.rmtree(tiny.root)
        shutil.copytree(before, tiny.root, symlinks=True)
        killer.kill()
        tiny.ok("export")
        assert project(tiny) == after
        assert files(tiny) == edited
        assert leftovers(tiny) == []


# The same, moment by moment, where chance would have to be lucky.


def half_moved(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    """A checkout whose journal is written and whose files are half those of the target."""
    tiny.ok("apply")
    (tiny.root / "overlay" / "a.txt").write_text("a\n" * 100)
    (tiny.root / "overlay" / HOOKS).write_text("changed = 1\n")
    tiny.ok("apply")
    expected = head(tiny), files(tiny)
    git(tiny.root, "checkout", "--quiet", "--", "overlay")
    (tiny.root / "overlay" / "a.txt").unlink()
    tiny.ok("apply")
    (tiny.root / "overlay" / "a.txt").write_text("a\n" * 100)
    (tiny.root / "overlay" / HOOKS).write_text("changed = 1\n")
    monkeypatch.setattr("fork.checkout.Checkout._settle", _killed)
    with pytest.raises(SystemExit):
        tiny.main("apply")
    monkeypatch.undo()
    git(tiny.checkout, "symbolic-ref", "HEAD", "refs/heads/masks")
    git(tiny.checkout, "reset", "--quiet", "--soft", "refs/fork/applied")
    git(tiny.checkout, "read-tree", "refs/fork/applied")
    (tiny.checkout / ".git" / "index.lock").write_text("")
    return expected


def _killed(*arguments: object) -> None:
    raise SystemExit(137)


def test_a_half_written_file_is_written_anew(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = half_moved(tiny, monkeypatch)
    (tiny.checkout / "a.txt").write_text("a\n" * 40)
    out = tiny.ok("apply").out
    assert "finished a move" in out
    assert "rescued" not in out
    assert (head(tiny), files(tiny)) == expected
    assert leftovers(tiny) == []


def test_the_projects_own_index_lock_is_removed_if_it_can_be_ours(tiny: Tiny) -> None:
    lock, fork = tiny.root / ".git" / "index.lock", tiny.root / ".fork"
    fork.mkdir()
    (fork / "lock").write_text("999999999\n")
    lock.write_text("")
    tiny.ok("apply")
    assert not lock.exists()
    (fork / "lock").write_text("999999999\n")
    lock.write_text("")
    tiny.ok("apply")
    assert lock.exists()  # the gitlink was hidden before: this one is the user's


def test_what_was_written_meanwhile_is_rescued_and_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = half_moved(tiny, monkeypatch)
    (tiny.checkout / "a.txt").write_text("mine\n")
    (tiny.checkout / "src/transformers/masking.py").write_text("mine too\n")
    out = tiny.ok("apply").out
    assert "rescued: a.txt, src/transformers/masking.py -> refs/fork/rescue/1" in out
    assert git(tiny.checkout, "show", "refs/fork/rescue/1:a.txt") == "mine\n"
    assert git(tiny.checkout, "show", "refs/fork/rescue/1:src/transformers/masking.py") == "mine too\n"
    assert (head(tiny), files(tiny)) == expected
    assert "refs/fork/rescue/1" in tiny.ok("clean").out


def test_commits_made_meanwhile_are_rescued_and_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = half_moved(tiny, monkeypatch)
    (tiny.checkout / ".git" / "index.lock").unlink()
    git(tiny.checkout, "commit", "--quiet", "--all", "--message", "Meanwhile")
    mine = head(tiny)
    assert "rescued: commits -> refs/fork/rescue/1" in tiny.ok("apply").out
    assert git(tiny.checkout, "rev-parse", "refs/fork/rescue/1^").strip() == mine
    assert (head(tiny), files(tiny)) == expected
