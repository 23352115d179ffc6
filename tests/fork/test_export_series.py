"""Export: byte for byte what was applied, and a researcher's edits on the right side."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_series import HOOKS, MASKING, commit_edit, files, head
from tiny_upstream import Tiny, git


MODELING = "src/transformers/modeling.py"


def project(tiny: Tiny) -> dict[str, bytes]:
    """Overlay and patches, on disk."""
    return {
        path.relative_to(tiny.root).as_posix(): path.read_bytes()
        for folder in ("overlay", "patches")
        for path in (tiny.root / folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("source", ["git", "sdist"])
def test_apply_then_export_changes_no_byte(tiny: Tiny, source: str) -> None:
    before = project(tiny)
    tiny.ok("apply", "--source", source)
    assert "nothing to export" in tiny.ok("export").out
    assert project(tiny) == before


def test_both_sources_export_the_same_bytes(tiny: Tiny) -> None:
    exported = []
    for source in ("git", "sdist"):
        git(tiny.root, "checkout", "--quiet", "--", "overlay", "patches")
        git(tiny.root, "clean", "--quiet", "-d", "--force", "overlay", "patches")
        shutil.rmtree(tiny.checkout, ignore_errors=True)
        tiny.ok("apply", "--source", source)
        (tiny.checkout / HOOKS).write_text("edited = True\n")
        commit_edit(tiny)
        tiny.ok("export")
        exported.append(project(tiny))
    assert exported[0] == exported[1]
    assert len([name for name in exported[0] if name.endswith(".patch")]) == 3


def test_a_commit_becomes_a_patch(tiny: Tiny) -> None:
    tiny.ok("apply")
    commit_edit(tiny, subject="Étendre le masque")
    edited = files(tiny)
    out = tiny.ok("export").out
    (patch,) = tiny.series.glob("0003-*.patch")
    assert f"written: patches/v9.9.0/{patch.name}" in out
    text = patch.read_text()
    assert "\n+EDIT = 1\n" in text
    assert text.startswith(f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: Ann Author <ann@example.invalid>\n")
    assert "Date: Fri, 2 Jan 2026 03:04:05 +0100\n" in text
    assert files(tiny) == edited
    assert git(tiny.checkout, "status", "--porcelain") == ""
    assert git(tiny.checkout, "rev-parse", "HEAD", "refs/fork/applied").split() == [head(tiny)] * 2
    assert git(tiny.checkout, "log", "-1", "--format=%s").strip() == "Étendre le masque"
    shutil.rmtree(tiny.checkout)
    tiny.ok("apply")
    assert files(tiny) == edited


def test_a_commit_is_split_between_patch_and_overlay(tiny: Tiny) -> None:
    tiny.ok("apply")
    for name, text in (("tools/new.py", "new = 1\n"), (HOOKS, "edited = 1\n")):
        (tiny.checkout / name).parent.mkdir(exist_ok=True)
        (tiny.checkout / name).write_text(text)
    (tiny.checkout / "src/transformers/mask_patterns/__init__.py").unlink()
    git(tiny.checkout, "add", "--all")
    commit_edit(tiny)
    tiny.ok("export")
    assert (tiny.root / "overlay" / "tools/new.py").read_text() == "new = 1\n"
    assert (tiny.root / "overlay" / HOOKS).read_text() == "edited = 1\n"
    assert not (tiny.root / "overlay" / "src/transformers/mask_patterns/__init__.py").exists()
    (patch,) = tiny.series.glob("0003-*.patch")
    assert [line for line in patch.read_text().splitlines() if line.startswith("diff --git")] == [
        f"diff --git a/{MASKING} b/{MASKING}"
    ]


def test_overlay_edits_are_exported_from_the_working_tree(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.checkout / HOOKS).write_text("edited = 1\n")
    (tiny.checkout / HOOKS).chmod(0o755)
    (tiny.checkout / "setup.cfg").unlink()
    (tiny.checkout / "staged.txt").write_text("staged\n")
    git(tiny.checkout, "add", "staged.txt")
    (tiny.checkout / "scratch.txt").write_text("mine\n")
    out = tiny.ok("export").out
    assert (tiny.root / "overlay" / HOOKS).read_text() == "edited = 1\n"
    assert (tiny.root / "overlay" / HOOKS).stat().st_mode & 0o100
    assert (tiny.root / "overlay" / "staged.txt").exists()
    assert not (tiny.root / "overlay" / "setup.cfg").exists()
    assert not (tiny.root / "overlay" / "scratch.txt").exists()
    assert "left alone: scratch.txt is untracked" in out
    assert git(tiny.checkout, "status", "--porcelain") == "?? scratch.txt\n"


def test_uncommitted_edits_of_upstreams_files_are_refused(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.checkout / MASKING).write_text("mine = 1\n")
    before = project(tiny)
    said = tiny.fails("export")
    assert MASKING in said
    assert "--fixup" in said
    assert project(tiny) == before
    assert (tiny.checkout / MASKING).read_text() == "mine = 1\n"


def test_an_amended_patch_and_a_dropped_one(tiny: Tiny) -> None:
    tiny.ok("apply")
    git(tiny.checkout, "reset", "--quiet", "--hard", "HEAD~1")
    (tiny.checkout / MASKING).write_text((tiny.checkout / MASKING).read_text() + "\nMORE = 1\n")
    git(tiny.checkout, "commit", "--quiet", "--all", "--amend", "--no-edit")
    out = tiny.ok("export").out
    assert "dropped: 0002-Show-the-hook-the-embeddings.patch" in out
    (patch,) = tiny.series.glob("*.patch")
    assert "+MORE = 1" in patch.read_text()


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        ("Edit\n\nWhy.\n\nProved-By: tests/t.py::t\n", "one Upstream-Status: trailer"),
        ("Edit\n\nWhy.\n\nUpstream-Status: not sent\n", "a Proved-By"),
        ("Edit\n\nWhy.\n\nUpstream-Status: not sent\nProved-By: somehow\n", "a Proved-By"),
        ("Edit\n\nUpstream-Status: not sent\nProved-By: tests/t.py::t\n", "a body that says why"),
    ],
)
def test_a_patch_without_its_header_is_refused(tiny: Tiny, message: str, missing: str) -> None:
    tiny.ok("apply")
    (tiny.checkout / MASKING).write_text("mine = 1\n")
    git(tiny.checkout, "commit", "--quiet", "--all", "--message", message)
    before, edited = project(tiny), files(tiny)
    assert missing in tiny.fails("export")
    assert (project(tiny), files(tiny)) == (before, edited)


def test_a_message_that_a_patch_cannot_carry_is_refused(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.checkout / MASKING).write_text((tiny.checkout / MASKING).read_text() + "\nEDIT = 1\n")
    trailers = "Upstream-Status: not sent\nProved-By: tests/t.py::t\n"
    message = f"Edit\n\nBefore.\n---\nAfter.\n\n{trailers}"
    git(tiny.checkout, "commit", "--quiet", "--all", "--cleanup=verbatim", "--message", message)
    before = project(tiny)
    assert "would not come back as it is" in tiny.fails("export")
    assert project(tiny) == before


def test_merges_are_refused(tiny: Tiny) -> None:
    tiny.ok("apply")
    git(tiny.checkout, "checkout", "--quiet", "-b", "side")
    commit_edit(tiny)
    git(tiny.checkout, "checkout", "--quiet", "masks")
    git(tiny.checkout, "merge", "--quiet", "--no-ff", "--message", "Merge", "side")
    assert "holds merges" in tiny.fails("export")


@pytest.mark.parametrize("name", [HOOKS, "brand/new.txt"])
def test_a_path_that_both_sides_changed_is_refused(tiny: Tiny, name: str) -> None:
    tiny.ok("apply")
    for folder, text in ((tiny.root / "overlay", "theirs\n"), (tiny.checkout, "mine\n")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    git(tiny.checkout, "add", name)
    said = tiny.fails("export")
    assert f"overlay/{name}  <->  transformers/{name}" in said
    assert (tiny.root / "overlay" / name).read_text() == "theirs\n"
    assert (tiny.checkout / name).read_text() == "mine\n"


def test_both_sides_may_change_other_paths(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.root / "overlay" / "theirs.txt").write_text("theirs\n")
    (tiny.checkout / HOOKS).write_text("mine = 1\n")
    commit_edit(tiny)
    tiny.ok("export")
    for folder in (tiny.root / "overlay", tiny.checkout):
        assert (folder / "theirs.txt").read_text() == "theirs\n"
        assert (folder / HOOKS).read_text() == "mine = 1\n"
    assert len(list(tiny.series.glob("*.patch"))) == 3
    assert "nothing to do" in tiny.ok("apply").out


def test_patches_changed_on_both_sides_are_refused(tiny: Tiny) -> None:
    tiny.ok("apply")
    next(tiny.series.glob("0002-*")).unlink()
    commit_edit(tiny)
    before = project(tiny)
    assert "0002-Show-the-hook-the-embeddings.patch" in tiny.fails("export")
    assert project(tiny) == before


def test_context_grows_until_its_place_is_unique(tiny: Tiny) -> None:
    """The classes of modeling.py repeat each other: ten lines around one's statement are in all three."""
    tiny.ok("apply")
    text = (tiny.checkout / MODELING).read_text()
    filler = "".join(f"        # filler {number}\n" for number in range(8))
    longer = text.replace("        # six\n", f"{filler}        # six\n{filler}")
    (tiny.checkout / MODELING).write_text(longer)
    commit_edit(tiny, MODELING, "", "Make the classes longer")
    place = longer.rindex("        # six\n")
    (tiny.checkout / MODELING).write_text(f"{longer[:place]}        # 6\n{longer[place + 14 :]}")
    commit_edit(tiny, MODELING, "", "Change the last class")
    tiny.ok("export")
    (patch,) = tiny.series.glob("*-Change-the-last-class.patch")
    context = patch.read_text().split("-        # six\n")[0].split("@@")[-1].count("\n ")
    assert context == 20


def test_full_disk_leaves_the_project_as_it_was(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.ok("apply")
    commit_edit(tiny)
    before = project(tiny)
    write, written = Path.write_bytes, []

    def write_bytes(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 1:
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    result = tiny.main("export")
    monkeypatch.undo()
    assert result.status == 1
    assert "No space left" in result.err
    assert project(tiny) == before


def test_an_export_cut_short_is_finished_by_the_next_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.ok("apply")
    commit_edit(tiny)
    (tiny.checkout / HOOKS).write_text("edited = 1\n")
    edited = files(tiny)
    done: list[Path] = []

    def cut(source: Path, target: Path) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        source.rename(target)

    monkeypatch.setattr("os.replace", cut)
    assert tiny.main("export").status == 130
    monkeypatch.undo()
    landing = tiny.series / "landing.json"
    landing.write_text("somebody's\n") if landing not in done else None
    tiny.main("apply")
    assert (tiny.root / "overlay" / HOOKS).read_text() == "edited = 1\n"
    assert len(list(tiny.series.glob("*.patch"))) == 3
    assert (tiny.root / ".fork" / "rescued" / "patches/v9.9.0/landing.json").read_text() == "somebody's\n"
    assert files(tiny) == edited
    assert "nothing to export" in tiny.ok("export").out


def test_an_export_that_failed_half_way_is_finished_by_the_next_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.ok("apply")
    commit_edit(tiny)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr("os.replace", refuse)
    assert "Permission denied" in tiny.main("export").err
    monkeypatch.undo()
    assert not list(tiny.series.glob("0003-*"))
    tiny.ok("apply")
    assert list(tiny.series.glob("0003-*"))
    assert "nothing to export" in tiny.ok("export").out
