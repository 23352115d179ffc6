"""Patches are made, changed and dropped without git's plumbing, and nothing is lost on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from killer import Killer, leftovers
from test_export_series import project
from test_rebase import MODELING, series
from test_series import HOOKS, MASKING, commit_edit, files, head
from tiny_upstream import TAG, Tiny, git


FIRST, SECOND = "0001-Ask-the-hook-for-the-mask.patch", "0002-Show-the-hook-the-embeddings.patch"
MESSAGE = """\
Scale by one

So that the scale is seen.

Upstream-Status: not sent
Proved-By: tests/test_proof.py::test_mask
"""


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom git knows."""
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Zoë Writer")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "zoe@example.invalid")


@pytest.fixture
def message(tmp_path: Path) -> str:
    """A file with a whole message."""
    (tmp_path / "message").write_text(MESSAGE)
    return str(tmp_path / "message")


def change(tiny: Tiny, name: str, before: str, after: str) -> None:
    """An edit in the checkout, not committed."""
    text = (tiny.checkout / name).read_text()
    assert before in text
    (tiny.checkout / name).write_text(text.replace(before, after, 1))


def everything(tiny: Tiny) -> tuple[dict[str, object], str, dict[str, str]]:
    """What must not change when a command refuses."""
    return dict(project(tiny)), head(tiny), files(tiny)


def patches(tiny: Tiny) -> dict[str, str]:
    return {name: text for name, text in series(tiny, TAG).items() if name.endswith(".patch")}


def test_an_edit_becomes_a_patch(tiny: Tiny, message: str) -> None:
    tiny.ok("apply")
    before = patches(tiny)
    change(tiny, MASKING, "1 / math.sqrt", "2 / math.sqrt")
    change(tiny, HOOKS, "return built", "return (built)")
    edited = files(tiny)
    assert "make prove" in tiny.ok("new-patch", "--message", message).out
    after = patches(tiny)
    new = after.pop("0003-Scale-by-one.patch")
    assert after == before
    assert "+    return 2 / math.sqrt(size)" in new
    assert "hooks.py" not in new  # an edit of the overlay's stays one
    assert "<zoe@example.invalid>" in new
    assert "So that the scale is seen." in new
    assert "return (built)" in (tiny.root / "overlay" / HOOKS).read_text()
    assert files(tiny) == edited
    assert git(tiny.checkout, "status", "--porcelain") == ""
    tiny.ok("verify")


def test_the_users_editor_writes_the_message(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "1 / math.sqrt", "2 / math.sqrt")
    editor = tmp_path / "an editor"
    editor.write_text('#!/bin/sh\ncp "$1" "$0.draft"\nsed -i -e "1iScale by two\\n\\nWhy not." "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("GIT_EDITOR", f"'{editor}'")
    before = patches(tiny)
    said = tiny.fails("new-patch")  # the draft's own Proved-By
    assert "Proved-By: tests/models/test_.py::test_, which is no test here" in said
    assert "next:  mend the message in .fork/MESSAGE, then make new-patch MESSAGE=.fork/MESSAGE" in said
    assert patches(tiny) == before
    written = tiny.root / ".fork" / "MESSAGE"
    written.write_text(written.read_text().replace("tests/models/test_.py::test_", "tests/test_proof.py::test_mask"))
    tiny.ok("new-patch", "--message", str(written))
    draft = Path(f"{editor}.draft").read_text()
    assert "Proved-By: " in draft
    assert f"# {MASKING}" in draft.replace("#  ", "# ")
    new = patches(tiny)["0003-Scale-by-two.patch"]
    assert "\n#" not in new
    monkeypatch.setenv("GIT_EDITOR", "false")
    change(tiny, MASKING, "2 / math.sqrt", "3 / math.sqrt")
    assert "the editor false failed" in tiny.fails("new-patch")
    assert "3 / math.sqrt" in files(tiny)[MASKING]


def test_an_edit_goes_into_the_patch_that_is_named(tiny: Tiny) -> None:
    tiny.ok("apply")
    before = patches(tiny)
    change(tiny, MASKING, "hooks.mask([[int(k <= q)", "hooks.mask([[int(k < q)")
    edited = files(tiny)
    tiny.ok("edit-patch", "--patch", "1")
    after = patches(tiny)
    assert after.keys() == before.keys()
    assert "int(k < q)" in after[FIRST]
    assert after[FIRST].split("\ndiff ")[0] == before[FIRST].split("\ndiff ")[0]  # author, date and message
    assert after[SECOND] == before[SECOND]
    assert files(tiny) == edited
    assert git(tiny.checkout, "status", "--porcelain") == ""
    tiny.ok("verify")


def test_a_message_alone_can_be_changed(tiny: Tiny, message: str) -> None:
    tiny.ok("apply")
    before, held = patches(tiny), files(tiny)
    tiny.ok("edit-patch", "--patch", "0001", "--message", message)
    after = patches(tiny)
    assert list(after) == ["0001-Scale-by-one.patch", SECOND]
    assert after[SECOND] == before[SECOND]
    assert after["0001-Scale-by-one.patch"].partition("\ndiff ")[2] == before[FIRST].partition("\ndiff ")[2]
    assert files(tiny) == held


def test_an_edit_of_what_a_later_patch_made_does_not_go_into_an_earlier_one(tiny: Tiny) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "hooks.mask([[", "hooks.mask( [[")
    commit_edit(tiny, MASKING, "", "Build on the first")
    tiny.ok("export")
    change(tiny, MASKING, "hooks.mask( [[", "hooks.mask(  [[")
    before = everything(tiny)
    said = tiny.fails("edit-patch", "--patch", "1")
    assert (
        f"the edit does not fit into {FIRST} (later patches of the same files: 0003-Build-on-the-first.patch)" in said
    )
    assert f"{MASKING}:" in said
    assert everything(tiny) == before
    tiny.ok("edit-patch", "--patch", "3")


def test_a_patch_is_dropped_and_the_others_move_up(tiny: Tiny) -> None:
    tiny.ok("apply")
    out = tiny.ok("drop-patch", "--patch", "1").out
    assert f"dropped: {FIRST} (git show HEAD:patches/{TAG}/{FIRST})" in out
    assert "what it was for is not so any more: tests/test_proof.py::test_mask\n" in out
    assert list(patches(tiny)) == ["0001-Show-the-hook-the-embeddings.patch"]
    assert "hooks" not in files(tiny)[MASKING]
    tiny.ok("verify")
    patch = tiny.root / "patch"  # it comes back as the last one
    patch.write_text(git(tiny.root, "show", f"HEAD:patches/{TAG}/{FIRST}"))
    git(tiny.checkout, "am", "--quiet", "--3way", str(patch))
    tiny.ok("export")
    assert list(patches(tiny)) == ["0001-Show-the-hook-the-embeddings.patch", FIRST.replace("0001", "0002")]
    assert "hooks.mask" in files(tiny)[MASKING]
    tiny.ok("verify")


def test_a_patch_that_git_does_not_have_is_kept(tiny: Tiny, message: str) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "1 / math.sqrt", "2 / math.sqrt")
    tiny.ok("new-patch", "--message", message)
    new = patches(tiny)["0003-Scale-by-one.patch"]
    kept = f".fork/rescued/patches/{TAG}/0003-Scale-by-one.patch"
    assert f"it is kept as {kept}" in tiny.ok("drop-patch", "--patch", "3").out
    assert (tiny.root / kept).read_text() == new
    assert "1 / math.sqrt" in files(tiny)[MASKING]


def test_a_patch_that_others_build_on_is_not_dropped(tiny: Tiny) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "hooks.mask([[", "hooks.mask( [[")
    commit_edit(tiny, MASKING, "", "Build on the first")
    tiny.ok("export")
    before = everything(tiny)
    assert f"0003-Build-on-the-first.patch builds on {FIRST}" in tiny.fails("drop-patch", "--patch", "1")
    assert everything(tiny) == before
    assert git(tiny.checkout, "worktree", "list").count("\n") == 1


@pytest.mark.parametrize(
    "without", ["Upstream-Status: not sent\n", "So that the scale is seen.\n", "tests/test_proof.py::"]
)
def test_a_header_that_lacks_something_is_refused(tiny: Tiny, tmp_path: Path, without: str) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "1 / math.sqrt", "2 / math.sqrt")
    (tmp_path / "message").write_text(MESSAGE.replace(without, ""))
    before = everything(tiny)
    for words in (["new-patch"], ["edit-patch", "--patch", "1"]):
        assert "expected all four" in tiny.fails(*words, "--message", str(tmp_path / "message"))
    assert everything(tiny) == before


def test_a_name_that_is_bound_nowhere_is_refused(tiny: Tiny, message: str) -> None:
    tiny.ok("apply")
    change(tiny, MODELING, "hooks.embeds(inputs_embeds)", "hooks.embeds(input_embeds)")
    before = everything(tiny)
    for words in (["new-patch", "--message", message], ["edit-patch", "--patch", "2"]):
        assert "loads 'input_embeds'" in tiny.fails(*words)
    assert everything(tiny) == before


def no_edit(tiny: Tiny) -> str:
    return "no file of upstream's is edited"


def a_commit(tiny: Tiny) -> str:
    commit_edit(tiny)
    return "holds commits that are not exported"


def another_branch(tiny: Tiny) -> str:
    git(tiny.checkout, "checkout", "--quiet", "-b", "idea")
    return "off its branch, expected the branch masks"


def a_rebase(tiny: Tiny) -> str:
    git(tiny.checkout, "rebase", "--quiet", "--interactive", "HEAD~1", GIT_SEQUENCE_EDITOR="sed -i s/pick/edit/")
    return "a rebase is going on"


def drift(tiny: Tiny) -> str:
    (tiny.root / "overlay" / HOOKS).write_text("changed = 1\n")
    return "have changed since they were applied"


def no_such_file(tiny: Tiny) -> str:
    change(tiny, MASKING, "1 / math.sqrt", "2 / math.sqrt")
    return "cannot be read"


@pytest.mark.parametrize("spoil", [no_edit, a_commit, another_branch, a_rebase, drift, no_such_file])
def test_what_is_in_the_way_is_said_and_nothing_is_changed(tiny: Tiny, spoil: Callable[[Tiny], str]) -> None:
    tiny.ok("apply")
    expected = spoil(tiny)
    before = everything(tiny)
    assert expected in tiny.fails("new-patch", "--message", "/nonexistent")
    assert everything(tiny) == before


@pytest.mark.parametrize("number", ["", "7", "x"])
def test_a_number_that_no_patch_has_is_refused(tiny: Tiny, number: str) -> None:
    tiny.ok("apply")
    for command in ("edit-patch", "drop-patch"):
        said = tiny.fails(command, "--patch", number)
        assert f"N is {number!r}" in said
        assert SECOND in said


def test_killed_before_the_export_it_is_exported_next(
    tiny: Tiny, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "1 / math.sqrt", "2 / math.sqrt")
    edited = files(tiny)
    with monkeypatch.context() as patched:
        patched.setattr("fork.edit.export", _killed)
        with pytest.raises(SystemExit):
            tiny.main("new-patch", "--message", message)
    assert files(tiny) == edited
    assert "make export" in tiny.fails("new-patch", "--message", message)
    tiny.ok("export")
    assert "0003-Scale-by-one.patch" in patches(tiny)


def _killed(*arguments: object) -> None:
    raise SystemExit(137)


def test_killed_at_random_moments_no_edit_is_lost(tiny: Tiny, tmp_path: Path) -> None:
    tiny.ok("apply")
    change(tiny, MASKING, "hooks.mask([[int(k <= q)", "hooks.mask([[int(k < q)")
    edited, copy = files(tiny), tmp_path / "before"
    shutil.copytree(tiny.root, copy, symlinks=True)
    killer = Killer(tiny, ("edit-patch", "--patch", "1"))
    killer.time()
    whole = project(tiny)
    for _ in range(4):
        shutil.rmtree(tiny.root)
        shutil.copytree(copy, tiny.root, symlinks=True)
        killer.kill()
        assert files(tiny) == edited
        if tiny.main("export").status:  # nothing has happened yet: the edit is still an edit
            tiny.ok("edit-patch", "--patch", "1")
        assert project(tiny) == whole
        assert files(tiny) == edited
        assert leftovers(tiny) == []
