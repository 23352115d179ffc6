"""`make branch`: the series on a server, as plain git has it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_upstream import TAG, VERSION, Tiny, git


BRANCH = f"mask-patterns/{TAG}"
OVERLAY_FILE = "overlay/src/transformers/mask_patterns/__init__.py"


def bare(folder: Path) -> Path:
    """An empty repository on a server."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--bare")
    return folder


def tip(where: Path, name: str = BRANCH) -> str:
    return git(where, "rev-parse", name).strip()


@pytest.mark.parametrize("source", ["git", "sdist"])
def test_the_branch_is_the_applied_series_on_its_base(tiny: Tiny, source: str) -> None:
    told = tiny.ok("branch", "--source", source).out
    assert tip(tiny.checkout) == tip(tiny.checkout, "masks")
    subjects = git(tiny.checkout, "log", "--format=%s", f"refs/fork/base..{BRANCH}").splitlines()
    assert subjects == ["Show the hook the embeddings", "Ask the hook for the mask", "Overlay"]
    base = git(tiny.checkout, "rev-parse", f"{BRANCH}~3").strip()
    assert (base == tiny.release.commit) == (source == "git")
    assert ("upstream's own commit" if source == "git" else "not upstream's commit") in told
    assert git(tiny.checkout, "symbolic-ref", "HEAD").strip() == "refs/heads/masks"
    tiny.ok("branch", "--source", source)


def test_two_clones_make_the_same_branch(tiny: Tiny, tmp_path: Path) -> None:
    other = Tiny(tmp_path / "another", tiny.release, tiny.capture)
    shutil.copytree(tiny.root, other.root, symlinks=True)
    for clone in (tiny, other):
        clone.ok("branch")
    assert tip(tiny.checkout) == tip(other.checkout)


def test_a_fork_of_upstream_takes_it_and_holds_the_patched_files(tiny: Tiny, tmp_path: Path) -> None:
    server, clone = tmp_path / "fork.git", tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--bare", str(tiny.release.upstream), str(server))
    tiny.ok("branch", "--source", "git")
    git(tiny.checkout, "push", "--quiet", str(server), BRANCH)
    git(tmp_path, "clone", "--quiet", "--branch", BRANCH, str(server), str(clone))
    assert git(clone, "rev-parse", "HEAD^{tree}") == git(tiny.checkout, "rev-parse", "masks^{tree}")
    assert git(clone, "merge-base", "origin/main", BRANCH).strip() == tiny.release.commit


def test_an_empty_server_takes_the_import_of_an_sdist(tiny: Tiny, tmp_path: Path) -> None:
    server = bare(tmp_path / "empty.git")
    tiny.ok("branch", "--source", "sdist")
    git(tiny.checkout, "push", "--quiet", str(server), BRANCH)
    assert tip(server) == tip(tiny.checkout)
    assert git(server, "log", "-1", "--format=%s", f"{BRANCH}~3").strip() == f"transformers {VERSION}"


def test_it_follows_the_series_and_says_how_to_push_it_again(tiny: Tiny) -> None:
    first = tiny.ok("branch").out
    assert "--force-with-lease" not in first
    before = tip(tiny.checkout)
    with (tiny.root / OVERLAY_FILE).open("a") as file:
        file.write("ANOTHER = 1\n")
    assert "push --force-with-lease" in tiny.ok("branch").out
    assert tip(tiny.checkout) == tip(tiny.checkout, "masks") != before


@pytest.mark.parametrize("checked_out", [True, False])
def test_commits_of_somebody_elses_are_not_lost(tiny: Tiny, checked_out: bool) -> None:
    tiny.ok("branch")
    git(tiny.checkout, "checkout", "--quiet", BRANCH)
    git(tiny.checkout, "commit", "--quiet", "--allow-empty", "--message", "Mine")
    mine = tip(tiny.checkout)
    if not checked_out:
        git(tiny.checkout, "checkout", "--quiet", "masks")
    said = tiny.fails("branch")
    assert tip(tiny.checkout) == mine
    assert "expected" in said
    assert "kept: transformers/" in tiny.ok("clean").out


def test_clean_takes_a_branch_that_can_be_made_again(tiny: Tiny) -> None:
    tiny.ok("branch")
    assert "removed: transformers/" in tiny.ok("clean").out
    assert list(tiny.checkout.iterdir()) == []
