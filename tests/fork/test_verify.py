"""Verify, prove, status and clean."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_series import HOOKS, MASKING, commit_edit, files
from tiny_upstream import Tiny, git

from fork import series
from fork.env import Environment, Origin
from fork.source import Source


def test_verify_has_a_line_for_each_check(tiny: Tiny) -> None:
    out = tiny.ok("verify").out  # makes the checkout first
    names = ["applies", "headers", "export", "landing", "size", "compiles"]
    checks = ["gitlink", "version", *(f"v9.9.0 {name}" for name in names)]
    lines = [line for line in out.splitlines() if line.startswith(("ok ", "FAIL"))]
    assert [line.split(":")[0] for line in lines] == [f"ok    {check}" for check in checks]
    assert "7 changed lines" in out


def test_verify_starts_from_pristine_source_whatever_the_checkout_holds(tiny: Tiny) -> None:
    tiny.ok("apply")
    commit_edit(tiny)
    (tiny.checkout / MASKING).write_text("broken(\n")
    before = files(tiny)
    tiny.ok("verify")
    assert files(tiny) == before


def bump(tiny: Tiny) -> None:
    (tiny.root / "setup.cfg").write_text("[metadata]\nname = tiny\nversion = 2\n")


def add_a_space(tiny: Tiny) -> None:
    patch = next(tiny.series.glob("0001-*"))
    patch.write_text(patch.read_text() + "\n")


def drop_the_proof(tiny: Tiny) -> None:
    patch = next(tiny.series.glob("0001-*"))
    patch.write_text(patch.read_text().replace("Proved-By: ", "Tested: "))


def break_the_overlay(tiny: Tiny) -> None:
    (tiny.root / "overlay" / HOOKS).write_text("def mask(:\n")


def move_the_landing(tiny: Tiny) -> None:
    record = tiny.series / "landing.json"
    record.write_text(record.read_text().replace("Model.forward", "ForTokens.forward"))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (bump, "version: overlay/setup.cfg has tag_build = +masks.1, expected +masks.2"),
        (add_a_space, "v9.9.0 export: exported, these files would change"),
        (drop_the_proof, "v9.9.0 headers: 0001-Ask-the-hook-for-the-mask.patch"),
        (break_the_overlay, "v9.9.0 compiles: src/transformers/mask_patterns/hooks.py:1"),
        (move_the_landing, "v9.9.0 applies: 0002-Show-the-hook-the-embeddings.patch landed in another place"),
    ],
)
def test_verify_finds(tiny: Tiny, spoil: Callable[[Tiny], None], check: str) -> None:
    tiny.ok("apply")
    spoil(tiny)
    result = tiny.main("verify")
    assert result.status == 1
    assert f"FAIL  {check}" in result.out
    assert "next:  " in result.err


def test_verify_takes_every_pin(tiny: Tiny) -> None:
    """A second pin, whose source is fetched into the same repository."""
    second = tiny.root / "patches" / "v9.9.1"
    shutil.copytree(tiny.series, second)
    commit = git(tiny.release.upstream, "rev-parse", "main").strip()
    text = (second / "pin.cfg").read_text().replace("9.9.0", "9.9.1").replace(tiny.release.commit, commit)
    (second / "pin.cfg").write_text(text)
    out = tiny.main("verify").out
    assert "ok    v9.9.0 compiles" in out
    assert f"v9.9.1 from git, commit {commit}" in out
    assert "FAIL  v9.9.1 applies: 0001-Ask-the-hook-for-the-mask.patch" in out


@pytest.fixture
def research(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The interpreter of these tests as the research environment: it has pytest."""

    def ready(root: Path, source: Source, upstream: str) -> Environment:
        series.apply(root, source, upstream)
        return Environment(Path(sys.prefix), Origin.NAMED)

    monkeypatch.setattr("fork.prove.ready_for_tests", ready)
    return tiny


def test_prove_drops_each_patch_and_sees_its_test_fail(research: Tiny) -> None:
    out = research.ok("prove").out
    assert out.count("proved") == 2
    assert out.count("passed") == 2
    assert out.count("failed") == 2
    assert "no patch is number '7'" in research.fails("prove", "--patch", "7")


def spoil_proof(tiny: Tiny, test: str) -> None:
    file = tiny.root / "tests" / "test_proof.py"
    head = file.read_text().split("def test_mask")[0]
    file.write_text(f"import pytest\n{head}\n{test}\n\ndef test_embeds():\n    assert False\n")


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("def test_mask():\n    pass\n", "passed"),
        ("@pytest.mark.skip\ndef test_mask():\n    pass\n", "skipped"),
        ("hooks.nowhere\n\ndef test_mask():\n    pass\n", "error"),
        ("@pytest.fixture\ndef broken():\n    raise OSError\n\ndef test_mask(broken):\n    pass\n", "error"),
    ],
)
def test_prove_takes_nothing_but_a_failure_for_a_proof(research: Tiny, test: str, outcome: str) -> None:
    spoil_proof(research, test)
    result = research.main("prove", "--patch", "1")
    assert result.status == 1
    assert "NOT PROVED" in result.out
    assert outcome in result.out.split("NOT PROVED")[0].splitlines()[-1]
    assert "test_mask" in result.err


def test_a_proof_that_is_not_there_does_not_keep_the_others_from_theirs(research: Tiny) -> None:
    file = research.root / "tests" / "test_proof.py"
    file.write_text(file.read_text().replace("def test_mask", "def test_gone"))
    result = research.main("prove")
    rows = [line for line in result.out.splitlines() if "PROVED" in line.upper() and "test_" in line]
    assert ["missing" in row and "NOT PROVED" in row for row in rows] == [True, False]
    assert "0001-" in result.err
    assert "0002-" not in result.err


def test_prove_says_when_a_patch_cannot_be_dropped_alone(research: Tiny) -> None:
    research.ok("apply")
    masking = research.checkout / MASKING
    masking.write_text(masking.read_text().replace("hooks.mask([[", "hooks.mask( [["))
    commit_edit(research, MASKING, "", "Build on the first")
    research.ok("export")
    result = research.main("prove", "--patch", "1")
    assert result.status == 1
    assert "0002" not in result.out.split("transformers/ at")[1]  # only the one that was asked for
    assert "0003-Build-on-the-first.patch" in result.err
    assert "cannot be" in result.out


def test_status_names_what_is_what(tiny: Tiny) -> None:
    assert "not made" in tiny.ok("status").out
    tiny.ok("apply")
    out = tiny.ok("status").out
    assert git(tiny.checkout, "rev-parse", "HEAD").strip() in out
    assert git(tiny.checkout, "rev-parse", "HEAD^{tree}").strip() in out
    assert out.count("none") == 3
    commit_edit(tiny, subject="My experiment")
    (tiny.checkout / HOOKS).write_text("edited = 1\n")
    (tiny.checkout / "notes.txt").write_text("mine\n")
    (tiny.root / "overlay" / "new.txt").write_text("new\n")
    git(tiny.root, "update-index", "--cacheinfo", f"160000,{'1' * 40},transformers")
    out = tiny.ok("status").out
    for expected in ("My experiment", HOOKS, "notes.txt", "overlay/new.txt", "1" * 40, "not the pin"):
        assert expected in out


def test_clean_removes_what_is_derived(tiny: Tiny) -> None:
    tiny.ok("apply")
    out = tiny.ok("clean").out
    assert "removed: transformers/" in out
    assert list(tiny.checkout.iterdir()) == []
    assert git(tiny.root, "status", "--porcelain", "--ignored") == "!! .fork/\n"
    tiny.ok("apply")


@pytest.mark.parametrize("edit", ["commit", "file", "untracked", "branch", "stash"])
def test_clean_keeps_what_somebody_made(tiny: Tiny, edit: str) -> None:
    tiny.ok("apply")
    if edit in ("commit", "branch"):
        commit_edit(tiny)
    if edit == "branch":  # one without commits of its own is but a name
        git(tiny.checkout, "branch", "idea")
        git(tiny.checkout, "reset", "--quiet", "--hard", "HEAD~1")
    if edit in ("file", "stash"):
        (tiny.checkout / HOOKS).write_text("edited = 1\n")
    if edit == "stash":
        git(tiny.checkout, "stash")
    if edit == "untracked":
        (tiny.checkout / "notes.txt").write_text("mine\n")
    before = files(tiny)
    assert "kept: transformers/" in tiny.ok("clean").out
    assert files(tiny) == before
