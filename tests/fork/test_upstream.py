"""Several pins: which one a command is about."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from later_release import Later
from stub_wheels import versions
from test_series import HOOKS, MASKING, commit_edit, files, head
from tiny_upstream import TAG, Tiny, git

from fork.__main__ import main
from fork.pins import read_pin


PROJECT = Path(__file__).parents[2]
PLAIN = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.invalid",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.invalid",
}
VERSION_FILE = "src/transformers/__init__.py"


def version(tiny: Tiny) -> str:
    """The release that the checkout holds."""
    return files(tiny)[VERSION_FILE].split('"')[1]


@pytest.mark.parametrize("source", ["git", "sdist"])
def test_the_checkout_goes_where_it_is_asked_and_stays_there(tiny: Tiny, later: Later, source: str) -> None:
    later.pin("9.10.0", {})
    tiny.ok("apply", "--source", source)
    first = head(tiny), files(tiny)
    assert version(tiny) == "9.9.0"
    assert "applied v9.10.0" in tiny.ok("apply", "--source", source, "--upstream", "9.10.0").out
    assert version(tiny) == "9.10.0"
    assert "hooks.mask" in files(tiny)[MASKING]
    assert "nothing to do: v9.10.0" in tiny.ok("apply").out
    assert "nothing to do: v9.10.0" in tiny.ok("apply", "--upstream", "v9.10.0").out
    tiny.ok("apply", "--source", source, "--upstream", "9.9.0")
    assert (head(tiny), files(tiny)) == first


def test_install_follows(tiny: Tiny, later: Later, home: Path) -> None:
    later.pin("9.10.0", {})
    tiny.ok("install", "--source", "git")
    tiny.ok("install", "--source", "git", "--upstream", "9.10.0")
    assert versions(home)["transformers"] == "9.10.0+masks.1"
    assert "transformers 9.10.0+masks.1 is installed" in tiny.ok("install").out


def test_a_new_checkout_stands_on_the_pin_that_is_asked_for(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    assert "applied v9.10.0" in tiny.ok("apply", "--upstream", "9.10.0").out
    assert version(tiny) == "9.10.0"


def test_an_export_goes_to_the_pin_of_the_checkout(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    default = {file.name: file.read_bytes() for file in tiny.series.iterdir()}
    tiny.ok("apply", "--upstream", "9.10.0")
    commit_edit(tiny, subject="Only here")
    tiny.ok("export")
    assert [file.name for file in (tiny.root / "patches").glob("*/0003-*")] == ["0003-Only-here.patch"]
    assert {file.name: file.read_bytes() for file in tiny.series.iterdir()} == default
    assert version(tiny) == "9.10.0"
    tiny.ok("apply", "--upstream", "9.9.0")
    assert "EDIT = 1" not in files(tiny)[MASKING]
    tiny.ok("verify")


def test_edits_are_not_carried_to_another_pin(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    tiny.ok("apply")
    (tiny.checkout / HOOKS).write_text("edited = 1\n")
    before = head(tiny), files(tiny)
    assert "make export" in tiny.fails("apply", "--upstream", "9.10.0")
    assert (head(tiny), files(tiny)) == before
    assert "nothing to do: v9.9.0" in tiny.ok("apply").out


def test_a_release_without_a_series_is_said(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    said = tiny.fails("apply", "--upstream", "9.8.0")
    assert "no series for transformers 9.8.0, expected one of 9.10.0, 9.9.0" in said
    assert "make rebase TO=9.8.0" in said
    assert not tiny.checkout.exists()


def test_a_pin_without_a_commit_is_taken_from_the_sdist(tiny: Tiny, later: Later) -> None:
    pin = later.pin("9.10.0", {}, commit=False)
    assert read_pin(tiny.root / "patches" / pin.tag / "pin.cfg") == pin
    assert (
        "from the sdist, as git gives none (its commit is not recorded)"
        in tiny.ok("apply", "--upstream", "9.10.0").out
    )
    assert "its commit is not recorded" in tiny.fails("apply", "--upstream", "9.10.0", "--source", "git")
    tiny.ok("verify")


def test_a_move_to_another_pin_that_was_cut_short_is_finished(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.pin("9.10.0", {})
    tiny.ok("apply")
    monkeypatch.setattr("fork.checkout.Checkout._settle", _killed)
    with pytest.raises(SystemExit):
        tiny.main("apply", "--upstream", "9.10.0")
    monkeypatch.undo()
    git(tiny.checkout, "checkout", "--quiet", "-B", "masks", "refs/fork/applied")
    out = tiny.ok("apply").out
    assert "finished a move" in out
    assert "nothing to do: v9.10.0" in out
    assert version(tiny) == "9.10.0"


def _killed(*arguments: object) -> None:
    raise SystemExit(137)


def test_a_pin_that_the_project_has_left_gives_way_to_the_default(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    tiny.ok("apply", "--upstream", "9.10.0")
    for file in (tiny.root / "patches" / "v9.10.0").iterdir():
        file.unlink()
    assert f"applied {TAG}" in tiny.ok("apply").out


def test_another_pin_becomes_the_default_as_the_docs_say(tiny: Tiny, later: Later, tmp_path: Path) -> None:
    later.pin("9.10.0", {})
    tiny.ok("apply")
    text = (PROJECT / "docs/upgrading.md").read_text().split("## Making it the default")[1]
    commands = [line.strip() for line in text.splitlines() if line.startswith("    git ")]
    assert len(commands) == 3
    git(tiny.root, "add", "patches")
    for command in commands:
        words = command.replace("5.23.0", "9.10.0").replace("git commit", "git commit --quiet")
        subprocess.run(["sh", "-ec", words], cwd=tiny.root, check=True, env=os.environ | PLAIN)
    assert "nothing to do: v9.9.0" in tiny.ok("apply").out
    tiny.ok("verify")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(tiny.root), str(clone))
    assert main(["--root", str(clone), "apply"]) == 0
    assert '"9.10.0"' in (clone / "transformers" / VERSION_FILE).read_text()


def test_status_says_where_the_checkout_is_and_what_else_there_is(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {}, commit=False)
    assert "9.10.0, 9.9.0 (default)" in tiny.ok("status").out
    tiny.ok("apply", "--upstream", "9.10.0")
    out = tiny.ok("status").out
    assert "transformers 9.10.0, v9.10.0, commit not recorded" in out
    assert out.count("none") == 3
