"""Apply: the same commits everywhere, nothing twice, no edit lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_upstream import GIT_ONLY, OVERLAY, UPSTREAM, Tiny, git

import fork
from fork.checkout import Checkout
from fork.project import Project
from fork.series import Source, apply


MASKING = "src/transformers/masking.py"
HOOKS = "src/transformers/mask_patterns/hooks.py"


def files(tiny: Tiny) -> dict[str, str]:
    """What the checkout holds, on disk."""
    return {
        path.relative_to(tiny.checkout).as_posix(): path.read_text()
        for path in tiny.checkout.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(tiny.checkout).parts
    }


def head(tiny: Tiny) -> str:
    return git(tiny.checkout, "rev-parse", "HEAD").strip()


def commit_edit(tiny: Tiny, name: str = MASKING, text: str = "\n\nEDIT = 1\n", subject: str = "Edit") -> None:
    """A researcher's commit in the checkout."""
    with (tiny.checkout / name).open("a") as file:
        file.write(text)
    git(tiny.checkout, "add", name)
    trailers = "Upstream-Status: not sent\nProved-By: tests/test_proof.py::test_mask\n"
    git(tiny.checkout, "commit", "--quiet", "--message", f"{subject}\n\nWhy not.\n\n{trailers}")


@pytest.mark.parametrize("source", ["git", "sdist"])
def test_the_checkout_is_upstream_with_overlay_and_patches(tiny: Tiny, source: str) -> None:
    tiny.ok("apply", "--source", source)
    found = files(tiny)
    for name, text in (UPSTREAM | OVERLAY).items():
        if name not in (MASKING, "src/transformers/modeling.py"):
            assert found[name] == text
    assert "return hooks.mask([[" in found[MASKING]
    assert found["src/transformers/modeling.py"].count("hooks.embeds(") == 1
    subjects = git(tiny.checkout, "log", "--format=%s", "refs/fork/base..masks").splitlines()
    assert subjects == ["Show the hook the embeddings", "Ask the hook for the mask", "Overlay"]
    assert git(tiny.checkout, "status", "--porcelain") == ""
    assert git(tiny.checkout, "symbolic-ref", "HEAD").strip() == "refs/heads/masks"


def test_from_git_the_base_is_the_pin_and_shallow(tiny: Tiny) -> None:
    assert "from git" in tiny.ok("apply").out
    assert git(tiny.checkout, "rev-parse", "refs/fork/base").strip() == tiny.release.commit
    assert git(tiny.checkout, "rev-list", "--count", "refs/fork/base").strip() == "1"


def test_without_access_to_git_the_sdist_is_taken_and_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tiny.root, "config", "submodule.transformers.url", "/nonexistent/upstream")
    out = tiny.ok("apply").out
    assert "from the sdist, as git gives none" in out
    assert "/nonexistent/upstream" in tiny.fails("apply", "--source", "git")


def test_commit_ids_depend_on_the_recipe_alone(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.ok("apply", "--source", "sdist")
    first = head(tiny)
    other = tmp_path / "elsewhere"
    shutil.copytree(tiny.release.project, other)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert apply(other, Source.SDIST).commit == first


def test_git_variables_of_a_surrounding_hook_do_not_leak_in(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tiny.root / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tiny.root / ".git" / "other-index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tiny.root))
    tiny.ok("apply")
    tiny.ok("export")
    assert not (tiny.root / ".git" / "other-index").exists()
    monkeypatch.undo()
    assert git(tiny.root, "status", "--porcelain") == ""
    assert git(tiny.root, "log", "--oneline").count("\n") == 1


def test_hostile_settings_in_the_checkout_itself_change_nothing(tiny: Tiny) -> None:
    tiny.ok("apply")
    first = head(tiny)
    on = "core.autocrlf commit.gpgSign diff.noprefix format.signOff format.attach format.useAutoBase"
    for key in [
        *on.split(),
        "format.notes",
        "format.coverLetter",
        "diff.mnemonicPrefix",
        "status.short",
        "core.ignoreCase",
    ]:
        git(tiny.checkout, "config", key, "true")
    for key, value in (("diff.external", "false"), ("apply.whitespace", "fix"), ("diff.context", "1")):
        git(tiny.checkout, "config", key, value)
    (tiny.root / "overlay" / "new.txt").write_text("new\n")
    tiny.ok("apply")
    tiny.ok("export")
    (tiny.root / "overlay" / "new.txt").unlink()
    tiny.ok("apply")
    assert head(tiny) == first
    assert git(tiny.root, "status", "--porcelain") == ""


def test_a_second_run_changes_nothing(tiny: Tiny) -> None:
    tiny.ok("apply")
    before = {path: path.stat().st_mtime_ns for path in tiny.checkout.rglob("*")}
    assert "nothing to do" in tiny.ok("apply").out
    assert {path: path.stat().st_mtime_ns for path in tiny.checkout.rglob("*")} == before
    assert apply(tiny.root).changed is False


def test_a_changed_overlay_is_applied_anew(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.root / "overlay" / HOOKS).write_text("changed = True\n")
    (tiny.root / "overlay" / "added.txt").write_text("added\n")
    (tiny.root / "overlay" / "src/transformers/mask_patterns/__pycache__").mkdir()
    (tiny.root / "overlay" / "src/transformers/mask_patterns/__pycache__" / "hooks.pyc").write_text("x")
    tiny.ok("apply")
    found = files(tiny)
    assert found[HOOKS] == "changed = True\n"
    assert found["added.txt"] == "added\n"
    assert not [name for name in found if "__pycache__" in name]


def test_a_dropped_patch_is_taken_out(tiny: Tiny) -> None:
    tiny.ok("apply")
    next(tiny.series.glob("0002-*")).unlink()
    tiny.ok("apply")
    assert files(tiny)["src/transformers/modeling.py"] == UPSTREAM["src/transformers/modeling.py"]


def test_sources_can_be_switched(tiny: Tiny) -> None:
    tiny.ok("apply", "--source", "sdist")
    tree = files(tiny)
    assert "nothing to do" in tiny.ok("apply").out
    tiny.ok("apply", "--source", "git")
    assert set(files(tiny)) - set(tree) == set(GIT_ONLY)
    tiny.ok("apply", "--source", "sdist")
    assert files(tiny) == tree


def test_edits_stay_while_nothing_has_to_change(tiny: Tiny) -> None:
    tiny.ok("apply")
    commit_edit(tiny)
    (tiny.checkout / HOOKS).write_text("edited = True\n")
    edited = files(tiny)
    out = tiny.ok("apply").out
    assert "not exported" in out
    assert HOOKS in out
    assert files(tiny) == edited


@pytest.mark.parametrize("edit", ["commit", "file", "staged", "deleted", "branch"])
def test_edits_that_would_be_overwritten_are_refused_and_named(tiny: Tiny, edit: str) -> None:
    tiny.ok("apply")
    named = MASKING
    if edit in ("commit", "branch"):
        commit_edit(tiny)
        named = "Edit"
    if edit == "branch":  # the commit is on masks, but something else is checked out
        git(tiny.checkout, "checkout", "--quiet", "--detach", "refs/fork/applied")
    if edit in ("file", "staged"):
        (tiny.checkout / MASKING).write_text("mine = True\n")
    if edit == "staged":
        git(tiny.checkout, "add", MASKING)
    if edit == "deleted":
        (tiny.checkout / MASKING).unlink()
    (tiny.root / "overlay" / HOOKS).write_text("changed = True\n")
    before = files(tiny), git(tiny.checkout, "for-each-ref")
    said = tiny.fails("apply")
    assert named in said
    assert "make export" in said
    assert (files(tiny), git(tiny.checkout, "for-each-ref")) == before


def test_untracked_files_are_left_alone(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.checkout / "notes.txt").write_text("mine\n")
    (tiny.root / "overlay" / HOOKS).write_text("changed = True\n")
    tiny.ok("apply")
    assert files(tiny)["notes.txt"] == "mine\n"
    assert files(tiny)[HOOKS] == "changed = True\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_an_untracked_file_in_the_way_is_never_overwritten(tiny: Tiny, ignored: bool) -> None:
    tiny.ok("apply", "--source", "sdist")
    if ignored:
        (tiny.checkout / ".git" / "info" / "exclude").write_text("notes.txt\n")
    (tiny.checkout / "notes.txt").write_text("mine\n")
    (tiny.root / "overlay" / "notes.txt").write_text("theirs\n")
    assert "notes.txt" in tiny.fails("apply")
    assert files(tiny)["notes.txt"] == "mine\n"
    (tiny.checkout / "notes.txt").write_text("theirs\n")
    tiny.ok("apply")
    assert git(tiny.checkout, "status", "--porcelain") == ""


def test_a_rebase_in_progress_is_left_to_its_owner(tiny: Tiny) -> None:
    tiny.ok("apply")
    git(
        tiny.checkout,
        "rebase",
        "--quiet",
        "--interactive",
        "HEAD~1",
        GIT_SEQUENCE_EDITOR="sed -i s/pick/edit/",
    )
    (tiny.root / "overlay" / HOOKS).write_text("changed = True\n")
    assert "rebase --continue" in tiny.fails("apply")
    assert "rebase --continue" in tiny.fails("export")


def test_something_else_in_the_checkouts_place_is_refused(tiny: Tiny) -> None:
    tiny.checkout.mkdir()
    (tiny.checkout / "thesis.txt").write_text("mine\n")
    assert "is no git repository" in tiny.fails("apply")
    assert (tiny.checkout / "thesis.txt").read_text() == "mine\n"


def test_a_broken_checkout_is_said(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.checkout / ".git" / "HEAD").unlink()
    before = files(tiny)
    assert "expected a whole checkout" in tiny.fails("apply")
    assert files(tiny) == before


def test_a_patch_for_another_version_is_refused(tiny: Tiny) -> None:
    """DESIGN 4.1, rule 1: the lines around it fit, but the file is another one."""
    patch = next(tiny.series.glob("0002-*"))
    text = patch.read_text()
    blob = text.split("index ")[1][:40]
    patch.write_text(text.replace(blob, "1234567890" * 4))
    said = tiny.fails("apply")
    assert "1234567890" * 4 in said
    assert blob in said
    assert not tiny.checkout.exists()


def test_a_patch_that_does_not_fit_is_refused(tiny: Tiny) -> None:
    patch = next(tiny.series.glob("0001-*"))
    patch.write_text(patch.read_text().replace(" def create_mask", " def make_mask"))
    assert f"{patch.name} does not apply" in tiny.fails("apply")
    assert not tiny.checkout.exists()


def test_a_patch_may_not_add_a_file(tiny: Tiny) -> None:
    patch = next(tiny.series.glob("0001-*"))
    added = "diff --git a/new.py b/new.py\nnew file mode 100644\n"
    added += "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+new = 1\n"
    patch.write_text(patch.read_text() + added)
    said = tiny.fails("apply")
    assert "new.py" in said
    assert "overlay/new.py" in said


def test_the_overlay_may_not_replace_upstreams_files(tiny: Tiny) -> None:
    (tiny.root / "overlay" / "README.md").write_text("ours\n")
    assert "overlay/README.md is a file of upstream's" in tiny.fails("apply")


def test_the_overlay_may_not_hold_links(tiny: Tiny) -> None:
    (tiny.root / "overlay" / "link").symlink_to("/etc/passwd")
    assert "overlay/link is a link" in tiny.fails("apply")


def test_an_existing_submodule_is_taken_as_it_is(tiny: Tiny) -> None:
    """Made by `git clone --recurse-submodules`, with its repository inside the project's."""
    config = [
        "-c",
        f"url.{tiny.release.upstream}.insteadOf=https://upstream.invalid/huggingface/transformers.git",
    ]
    git(tiny.root, *config, "-c", "protocol.file.allow=always", "submodule", "update", "--quiet", "--init")
    assert (tiny.checkout / ".git").is_file()
    tiny.ok("apply")
    assert "hooks.mask" in files(tiny)[MASKING]
    state = Checkout.of(Project(tiny.root)).state()
    assert state is not None
    assert state.base == tiny.release.commit


def test_a_disk_that_fills_up_during_a_move_leaves_the_old_state(tiny: Tiny) -> None:
    """Files may not grow beyond a limit: git's objects, compressed, fit; the file in the checkout does not."""
    tiny.ok("apply")
    before = head(tiny), files(tiny)
    for name in ("a.txt", "big.txt", "z.txt"):
        (tiny.root / "overlay" / name).write_text("0\n" * (2_000_000 if name == "big.txt" else 1))
    (tiny.root / "overlay" / HOOKS).write_text("changed = 1\n")
    limited = "import resource, sys; from fork.__main__ import main\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", limited, "--root", str(tiny.root), "apply"]
    scripts = str(Path(fork.__file__).parents[1])
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": scripts}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ended with status -" in done.stderr
    assert not (tiny.checkout / ".git" / "index.lock").exists()
    assert (head(tiny), files(tiny)) == before
    assert git(tiny.checkout, "status", "--porcelain") == ""
    tiny.ok("apply")
    assert (tiny.checkout / "big.txt").stat().st_size == 4_000_000


def test_full_disk_leaves_no_half_checkout(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fork.series.derive", _no_space)
    result = tiny.main("apply")
    assert result.status == 1
    assert "No space left" in result.err
    assert not tiny.checkout.exists()
    assert not list((tiny.root / ".fork").glob("tmp-*"))


def _no_space(*arguments: object) -> None:
    raise OSError(28, "No space left on device")
