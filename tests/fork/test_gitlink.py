"""The patched commit never becomes the project's (DESIGN 4.1, rule 8)."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_series import commit_edit, files
from tiny_upstream import Tiny, git


HOOKS = "src/transformers/mask_patterns/hooks.py"


@pytest.fixture
def edited(tiny: Tiny) -> Tiny:
    """A project whose checkout holds a researcher's commit and an edit."""
    tiny.ok("apply")
    commit_edit(tiny)
    (tiny.checkout / HOOKS).write_text("edited = True\n")
    (tiny.root / "setup.cfg").write_text("[metadata]\nname = tiny\nversion = 1\nauthor = me\n")
    return tiny


def recorded(tiny: Tiny) -> str:
    return git(tiny.root, "ls-tree", "HEAD", "transformers").split()[2]


@pytest.mark.parametrize("words", [["commit", "--all"], ["add", "--all"], ["add", "."]])
def test_commands_that_sweep_do_not_take_it(edited: Tiny, words: list[str]) -> None:
    status = git(edited.root, "status", "--porcelain")
    assert status == " M setup.cfg\n"
    if words[0] == "add":
        git(edited.root, *words)
        words = ["commit"]
    git(edited.root, *words, "--quiet", "--message", "swept")
    assert recorded(edited) == edited.release.commit
    assert git(edited.root, "show", "--name-only", "--format=").split() == ["setup.cfg"]


def test_stash_leaves_the_checkout_alone(edited: Tiny) -> None:
    before = files(edited)
    git(edited.root, "stash")
    git(edited.root, "stash", "pop")
    assert files(edited) == before
    assert recorded(edited) == edited.release.commit


def test_pull_works_and_may_move_the_pin(edited: Tiny, tmp_path: Path) -> None:
    git(edited.root, "checkout", "--quiet", "--", "setup.cfg")
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(edited.root), str(other))
    (other / "new.txt").write_text("new\n")
    git(other, "add", "new.txt")
    git(other, "update-index", "--cacheinfo", f"160000,{'1' * 40},transformers")
    git(other, "commit", "--quiet", "--message", "Moves the pin")
    before = files(edited)
    git(edited.root, "pull", "--quiet", str(other), "main")
    assert (edited.root / "new.txt").exists()
    assert recorded(edited) == "1" * 40
    assert git(edited.root, "status", "--porcelain") == ""
    assert files(edited) == before


def test_submodule_update_is_put_right_by_the_next_apply(tiny: Tiny) -> None:
    tiny.ok("apply")
    git(tiny.root, "submodule", "init")
    git(tiny.root, "submodule", "update", "--force")
    assert git(tiny.checkout, "rev-parse", "HEAD").strip() == tiny.release.commit
    assert "not checked out" in tiny.ok("status").out
    applied = git(tiny.checkout, "rev-parse", "masks").strip()
    tiny.ok("apply")
    assert git(tiny.checkout, "rev-parse", "HEAD").strip() == applied


def test_export_does_not_mistake_the_bare_pin_for_a_dropped_series(tiny: Tiny) -> None:
    tiny.ok("apply")
    git(tiny.checkout, "checkout", "--quiet", "--detach", tiny.release.commit)
    assert "checkout masks" in tiny.fails("export")
    assert len(list(tiny.series.glob("*.patch"))) == 2


def test_verify_refuses_a_recorded_patched_commit(tiny: Tiny) -> None:
    tiny.ok("apply")
    patched = git(tiny.checkout, "rev-parse", "HEAD").strip()
    git(tiny.root, "update-index", "--cacheinfo", f"160000,{patched},transformers")
    result = tiny.main("verify")
    assert result.status == 1
    assert f"FAIL  gitlink: the gitlink is {patched}, expected {tiny.release.commit}" in result.out
