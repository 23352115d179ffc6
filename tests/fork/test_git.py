"""Git under a hostile configuration, and the way to the project's root."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_series import commit_edit
from tiny_upstream import Tiny, git

from fork.__main__ import main
from fork.errors import ForkError
from fork.git import Git, network_environment
from fork.project import find_root


def test_commits_see_no_configuration_of_the_users(tmp_path: Path) -> None:
    hermetic = Git(tmp_path)
    hermetic.run("init", "--quiet")
    settings = hermetic.out("config", "--list", "--show-scope").splitlines()
    assert {line.split("\t")[0] for line in settings} == {"local", "command"}


def test_a_fetch_sees_the_users_configuration_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    found = network_environment()
    assert found["GIT_CONFIG_GLOBAL"].endswith("gitconfig")
    assert found["GIT_TERMINAL_PROMPT"] == "0"
    assert "BatchMode=yes" in found["GIT_SSH_COMMAND"]
    assert "GIT_DIR" not in found


def test_a_fetch_keeps_the_users_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[core]\n    sshCommand = ssh -i key\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    assert "GIT_SSH_COMMAND" not in network_environment()


def test_a_failure_shows_what_git_said(tmp_path: Path) -> None:
    with pytest.raises(ForkError, match="(?s)git rev-parse HEAD ended with status 128.*not a git repository"):
        Git(tmp_path).run("rev-parse", "HEAD")


def test_the_root_is_found_from_anywhere_in_the_project(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.ok("apply")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    for folder in (tiny.root, tiny.root / "overlay" / "src", tiny.checkout / "src"):
        assert find_root(folder) == tiny.root


def test_outside_a_project_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 1
    assert "lies in no clone of this project" in capsys.readouterr().err


def test_a_project_that_is_itself_a_submodule_is_found(tiny: Tiny, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "--quiet")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tiny.root), "inner")
    assert find_root(outer / "inner") == outer / "inner"


def test_the_users_own_git_in_the_checkout_sees_no_change(tiny: Tiny) -> None:
    """Under their own configuration, autocrlf and all."""
    tiny.ok("apply", "--source", "sdist")
    commit_edit(tiny)
    (tiny.checkout / "src/transformers/__pycache__").mkdir()
    (tiny.checkout / "src/transformers/__pycache__/masking.pyc").write_text("x")
    assert git(tiny.checkout, "status", "--porcelain") == ""
