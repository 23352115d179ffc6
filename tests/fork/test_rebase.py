"""A series is carried to another release, or it is said what is in the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from later_release import Later
from test_export_series import project
from test_series import HOOKS, MASKING, commit_edit, files, head
from tiny_upstream import UPSTREAM, Tiny, git, write

from fork.env import Environment, Origin
from fork.pins import read_pin


MODELING = "src/transformers/modeling.py"
LINE = "        hidden_states = inputs_embeds\n"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No smoke test, but where one is asked for."""
    for name in ("VENV", "VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)


def edited(name: str, before: str, after: str) -> dict[str, str]:
    """Upstream's file with its first such place changed."""
    assert before in UPSTREAM[name]
    return {name: UPSTREAM[name].replace(before, after, 1)}


MERGED = "return hooks.mask([[int(k <= q) for k in rows] for q in rows])"
CONFLICT = edited(MODELING, LINE, "        hidden_states = inputs_embeds * 2\n")


def tree(tiny: Tiny) -> Path:
    """Where conflicts are resolved."""
    return tiny.root / ".fork" / "rebase" / "transformers"


def series(tiny: Tiny, tag: str = "v9.10.0") -> dict[str, str]:
    """The files of a pin's folder."""
    return {file.name: file.read_text() for file in sorted((tiny.root / "patches" / tag).iterdir())}


def resolve(tiny: Tiny, text: str = "        hidden_states = hooks.embeds(inputs_embeds * 2)\n") -> None:
    """Do what the stop says: edit the file, and add it."""
    file = tree(tiny) / MODELING
    before, _, rest = file.read_text().partition("<<<<<<<")
    file.write_text(before + text + rest.partition(">>>>>>>")[2].partition("\n")[2])
    git(tree(tiny), "add", MODELING)


@pytest.mark.parametrize("source", ["git", "sdist"])
def test_what_upstream_did_not_touch_is_carried_unchanged(tiny: Tiny, later: Later, source: str) -> None:
    pin = later.release("9.10.0", {"README.md": "moved on\n"})
    tiny.ok("apply", "--source", source)
    before = head(tiny), files(tiny), series(tiny, "v9.9.0")
    out = tiny.ok("rebase", "--to", "9.10.0", "--source", source).out
    assert "2 patches in, 2 out: 2 unchanged, 0 adapted, 0 conflicted, 0 dropped" in out
    assert (head(tiny), files(tiny), series(tiny, "v9.9.0")) == before
    old, new = series(tiny, "v9.9.0"), series(tiny)
    recorded = read_pin(tiny.root / "patches" / "v9.10.0" / "pin.cfg")
    assert recorded.sdist_sha256 == pin.sdist_sha256
    assert recorded.commit == (pin.commit if source == "git" else None)
    assert new.pop("pin.cfg") != old.pop("pin.cfg")
    assert new == old
    assert not tree(tiny).exists()
    assert git(tiny.checkout, "worktree", "list").count("\n") == 1
    tiny.ok("verify")
    tiny.ok("apply", "--upstream", "9.10.0", "--source", source)
    assert files(tiny)["README.md"] == "moved on\n"


def test_what_merges_with_other_lines_around_it_is_adapted_and_shown(tiny: Tiny, later: Later) -> None:
    later.release("9.10.0", edited(MODELING, "# five", "# 5"))
    out = tiny.ok("rebase", "--to", "9.10.0").out
    assert "2 patches in, 2 out: 1 unchanged, 1 adapted" in out
    report = (tiny.root / ".fork" / "rebase-v9.9.0-v9.10.0.md").read_text()
    assert "| 0002-Show-the-hook-the-embeddings | adapted | 3 |  |" in report
    assert "| 0001-Ask-the-hook-for-the-mask | unchanged | 4 |  |" in report
    assert "\n2:  " in report.split("```diff")[1]  # the range-diff
    assert "# 5\n" in report
    assert "recorded anew" in report
    assert "smoke test: not run" in report
    assert "# 5\n" in series(tiny)["0002-Show-the-hook-the-embeddings.patch"]


def test_a_conflict_stops_with_file_line_place_and_the_next_command(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.ok("apply")
    before = project(tiny), head(tiny), files(tiny)
    said = tiny.fails("rebase", "--to", "9.10.0")
    line = (tree(tiny) / MODELING).read_text().splitlines().index("<<<<<<< HEAD") + 1
    assert "0002-Show-the-hook-the-embeddings.patch conflicts with v9.10.0" in said
    assert f"{MODELING}:{line}  (the patch changes <module>, Model.forward)" in said
    assert "hidden_states = hooks.embeds(inputs_embeds)" in said
    assert "make rebase-continue" in said.splitlines()[-1]
    assert (project(tiny), head(tiny), files(tiny)) == before
    assert "conflicts with" in tiny.fails("rebase-continue")  # nothing was resolved
    assert "not finished (1 of 2 patches)" in tiny.fails("rebase", "--to", "9.10.0")
    status = tiny.ok("status").out
    assert "to 9.10.0: 1 of 2 patches" in status
    assert "conflict: 0002-Show-the-hook-the-embeddings.patch" in status
    resolve(tiny)
    out = tiny.ok("rebase-continue").out
    assert "2 patches in, 2 out: 1 unchanged, 0 adapted, 1 conflicted" in out
    assert "rebase" not in tiny.ok("status").out
    (patch,) = (text for name, text in series(tiny).items() if name.startswith("0002"))
    assert "\n+        hidden_states = hooks.embeds(inputs_embeds * 2)\n" in patch
    assert (head(tiny), files(tiny)) == before[1:]
    tiny.ok("verify")


def test_who_continues_with_git_itself_is_understood(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    resolve(tiny)
    git(tree(tiny), "rebase", "--continue", GIT_EDITOR="true")
    assert "1 conflicted, 0 dropped" in tiny.ok("rebase-continue").out


def test_markers_that_were_staged_are_not_taken(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    git(tree(tiny), "add", MODELING)
    assert "conflict markers are still in" in tiny.fails("rebase-continue")
    resolve(tiny)
    tiny.ok("rebase-continue")


@pytest.mark.parametrize("way", ["--drop", "git"])
def test_a_patch_is_dropped_by_name(tiny: Tiny, later: Later, way: str) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    if way == "git":
        git(tree(tiny), "rebase", "--skip")
        out = tiny.ok("rebase-continue").out
    else:
        assert "not stopped at patch 1, but at 0002" in tiny.fails("rebase-continue", "--drop", "1")
        out = tiny.ok("rebase-continue", "--drop", "2").out
    assert "dropped: 0002-Show-the-hook-the-embeddings.patch" in out
    assert "2 patches in, 1 out: 1 unchanged, 0 adapted, 0 conflicted, 1 dropped" in out
    assert [name for name in series(tiny) if name.endswith(".patch")] == ["0001-Ask-the-hook-for-the-mask.patch"]
    tiny.ok("verify")


def test_what_upstream_has_merged_is_never_dropped_silently(tiny: Tiny, later: Later) -> None:
    text = UPSTREAM[MASKING].replace("import math\n", "import math\n\nfrom transformers.mask_patterns import hooks\n")
    text = text.replace("return [[int(k <= q) for k in rows] for q in rows]", MERGED)
    later.release("9.10.0", {MASKING: text})
    said = tiny.fails("rebase", "--to", "9.10.0")
    assert "0001-Ask-the-hook-for-the-mask.patch changes nothing on v9.10.0" in said
    assert "--drop 1" in said
    assert "changes nothing" in tiny.fails("rebase-continue")
    out = tiny.ok("rebase-continue", "--drop", "1").out
    assert "2 patches in, 1 out: 1 unchanged, 0 adapted, 0 conflicted, 1 dropped" in out
    assert "0001-Show-the-hook-the-embeddings.patch" in series(tiny)


def test_a_file_that_upstream_took_away_is_a_conflict_that_shows_the_hunk(tiny: Tiny, later: Later) -> None:
    later.release("9.10.0", {"src/transformers/other.py": "other = 1\n"})
    git(later.upstream, "rm", "--quiet", MODELING)
    git(later.upstream, "commit", "--quiet", "--message", "Gone")
    git(later.upstream, "tag", "--force", "v9.10.0")
    said = tiny.fails("rebase", "--to", "9.10.0", "--source", "git")
    assert "differs from the sdist's" in said  # a tag that is not the release: never taken
    later.remove("9.10.0", MODELING)
    said = tiny.fails("rebase", "--to", "9.10.0")
    assert f"{MODELING}  (the patch changes <module>, Model.forward)" in said
    assert "+        hidden_states = hooks.embeds(inputs_embeds)" in said
    tiny.ok("rebase-continue", "--drop", "2")


@pytest.mark.parametrize("when", ["conflict", "resolved"])
def test_abort_leaves_everything_as_it_was(tiny: Tiny, later: Later, when: str) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.ok("apply")
    before = project(tiny), head(tiny), files(tiny)
    tiny.fails("rebase", "--to", "9.10.0")
    if when == "resolved":
        resolve(tiny)
    tiny.ok("rebase-abort")
    assert (project(tiny), head(tiny), files(tiny)) == before
    assert git(tiny.checkout, "worktree", "list").count("\n") == 1
    assert not tree(tiny).parent.exists()
    assert "no rebase is going on" in tiny.fails("rebase-abort")
    assert "no rebase is going on" in tiny.fails("rebase-continue")


def test_the_checkout_can_be_used_while_a_rebase_waits(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    commit_edit(tiny, HOOKS)
    tiny.ok("export")
    assert "kept: .fork/rebase/" in tiny.ok("clean").out
    resolve(tiny)
    tiny.ok("rebase-continue")


def test_a_series_that_changed_meanwhile_is_not_mixed_in(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    commit_edit(tiny)
    tiny.ok("export")
    resolve(tiny)
    assert "patches/v9.9.0 has changed since this rebase began" in tiny.fails("rebase-continue")
    tiny.ok("rebase-abort")


def test_a_series_that_is_there_is_not_written_over(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    before = series(tiny)
    assert "has a series in patches/v9.10.0" in tiny.fails("rebase", "--to", "9.10.0")
    assert "is where the series comes from" in tiny.fails("rebase", "--to", "9.9.0")
    assert series(tiny) == before
    for patch in (tiny.root / "patches" / "v9.10.0").glob("*.patch"):
        patch.unlink()
    tiny.ok("rebase", "--to", "9.10.0")
    assert series(tiny) == before


def test_the_series_of_another_pin_can_be_the_start(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", edited("LICENSE", "Apache", "apache"))
    later.release("9.11.0", {})
    assert "from v9.10.0 to v9.11.0" in tiny.ok("rebase", "--to", "9.11.0", "--upstream", "9.10.0").out


@pytest.mark.parametrize(
    ("spoil", "differs"),
    [
        (edited(MODELING, "def __init__(self, config):", "def __init__(self, config, size):"), ["test_embeds"]),
        ({}, []),
    ],
)
def test_the_tests_that_now_differ_are_named(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch, spoil: Mapping[str, str], differs: list[str]
) -> None:
    monkeypatch.setattr("fork.smoke.locate", lambda root: Environment(Path(sys.prefix), Origin.NAMED))
    monkeypatch.setattr("fork.smoke.equip", lambda *words: None)
    later.release("9.10.0", spoil)
    out = tiny.ok("rebase", "--to", "9.10.0").out
    assert f"{2 - len(differs)} of 2 pass on the new release, {len(differs)} differ" in out
    assert [line.split("::")[1] for line in out.splitlines() if "passed -> " in line] == [
        f"{name}: passed -> failed" for name in differs
    ]


def test_a_smoke_test_that_did_not_run_is_no_smoke_test(
    tiny: Tiny, later: Later, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "env" / "bin" / "python"
    write(python.parent, {"python": "#!/bin/sh\necho No module named pytest\nexit 1\n"})
    python.chmod(0o755)
    monkeypatch.setattr("fork.smoke.locate", lambda root: Environment(tmp_path / "env", Origin.NAMED))
    monkeypatch.setattr("fork.smoke.equip", lambda *words: None)
    later.release("9.10.0", {})
    out = tiny.ok("rebase", "--to", "9.10.0").out
    assert "smoke test: not run (pytest did not come to an end" in out
    assert "No module named pytest" in out
    assert "differ" not in out


def test_what_is_recorded_anew_was_checked_against_the_tag(tiny: Tiny, later: Later) -> None:
    pin = later.release("9.10.0", {})
    out = tiny.ok("rebase", "--to", "9.10.0").out
    assert f"sha256 {pin.sdist_sha256} is recorded anew" in out
    assert f"commit: {pin.commit} is v9.10.0, and holds the sdist's" in out
    assert read_pin(tiny.root / "patches" / "v9.10.0" / "pin.cfg") == pin


def test_message_and_author_survive(tiny: Tiny, later: Later) -> None:
    """Lines that git takes for comments, words beyond ASCII, and a date of another zone."""
    tiny.ok("apply")
    commit_edit(tiny, MODELING, "\n\nMORE = 1\n", "Überall ein Kommentar\n\n# not a comment\n; nor this")
    tiny.ok("export")
    later.known("9.10.0", CONFLICT)
    tiny.fails("rebase", "--to", "9.10.0")
    resolve(tiny)
    tiny.ok("rebase-continue")
    patch = next((tiny.root / "patches" / "v9.10.0").glob("0003-*"))
    assert patch.read_text().split("\ndiff ")[0] == next(tiny.series.glob("0003-*")).read_text().split("\ndiff ")[0]
    result = subprocess.run(["git", "diff", "--check"], cwd=tiny.root, capture_output=True)
    assert result.returncode == 0
