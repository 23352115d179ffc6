"""The front door: make, the launcher, and the tool's private environment."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub_wheels import listing, repack
from tiny_upstream import git


PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse of what the tool itself needs; the path has a space."""
    folder = tmp_path_factory.mktemp("tools") / "wheel house"
    folder.mkdir()
    for name in ("packaging", "rich", "unidiff"):
        repack(folder, name)
    return folder


@pytest.fixture(autouse=True)
def nothing_set(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what runs the tests, and no index."""
    for name in [name for name in os.environ if name.startswith(("MAKE", "MFLAGS", "VENV", "PYTHON", "VIRTUAL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WHEELHOUSE", str(tools))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's front door, in a path with a space."""
    return copy(tmp_path / "a clone")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose private environment will have been made by the first test that needs it."""
    return copy(tmp_path_factory.mktemp("ready") / "a clone")


def copy(root: Path) -> Path:
    """What the front door consists of, as a repository."""
    shutil.copytree(PROJECT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "patches", root / "patches")
    shutil.copy(PROJECT / "Makefile", root)
    git(root, "init", "--quiet")
    return root


def make(root: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make with this Python."""
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=root, env=os.environ | variables, capture_output=True, text=True)


def tool(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher as make does."""
    command = ["sh", "scripts/tool", *words]
    return subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )


def test_help_is_the_default_and_has_a_line_for_every_target(clone: Path) -> None:
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", (clone / "Makefile").read_text(), re.MULTILINE))
    default = make(clone)
    shown = re.findall(r"^make (\S+) +\S.*$", default.stdout, re.MULTILINE)
    assert sorted(shown) == sorted(phony.split())
    other = make(clone.parent, "-j4", "-C", clone.name, "help", LC_ALL="C", MAKEFLAGS="-j4")
    assert other.stdout == default.stdout


def test_every_target_calls_a_command_of_the_tool(ready: Path) -> None:
    called = set(re.findall(r"^\t\$\(TOOL\) (\S+)", (ready / "Makefile").read_text(), re.MULTILINE))
    assert tool(ready, "--help").returncode == 0
    for command in sorted(called):
        done = subprocess.run(
            [ready / ".fork" / "venv" / "bin" / "python", "-m", "fork", command, "--help"],
            env=os.environ | {"PYTHONPATH": str(ready / "scripts")}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_an_unknown_source_is_refused_with_the_choice(ready: Path) -> None:
    done = make(ready, "apply", "SOURCE=s v n")
    assert done.returncode != 0
    assert "'s v n'" in done.stderr
    assert "git|sdist|auto" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "old"])
def test_without_a_python_that_will_do_it_says_which_is_needed(clone: Path, kind: str) -> None:
    named = clone / "python3.8"
    if kind == "old":
        named.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.8.10\nexit 1\n')
        named.chmod(0o755)
    done = make(clone, "status", f"PYTHON={named}")
    assert done.returncode != 0
    assert {"missing": f"no Python by the name '{named}'", "old": "Python 3.8.10 is too old"}[kind] in done.stderr
    assert "3.10 or newer is needed" in done.stderr
    assert "next: make status PYTHON=" in done.stderr
    assert not (clone / ".fork").exists()


def test_without_git_it_says_so(clone: Path, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    command = ["/bin/sh", "scripts/tool", "status"]
    done = subprocess.run(command, cwd=clone, env={"PATH": str(path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "git is not on the PATH" in done.stderr
    assert "next: install git, then make status" in done.stderr


def test_the_private_environment_is_made_once_and_again_when_its_requirements_change(clone: Path) -> None:
    first = tool(clone, "--help")
    assert first.returncode == 0, first.stderr
    assert "making" in first.stderr
    venv = clone / ".fork" / "venv"
    before = listing(venv)
    second = tool(clone, "--help")
    assert (second.returncode, second.stderr) == (0, "")
    assert listing(venv) == before

    with (clone / "scripts" / "requirements.txt").open("a") as file:
        file.write("absent>=1\n")
    third = tool(clone, "--help")
    assert third.returncode == 1
    assert "could not install" in third.stderr
    assert "next:  check the network, pip's configuration or WHEELHOUSE=" in third.stderr


def test_a_killed_start_begins_again(clone: Path) -> None:
    draw = random.Random(4)
    for _ in range(3):
        run = subprocess.Popen(
            ["sh", "scripts/tool", "--help"], cwd=clone, env=os.environ | {"PYTHON": sys.executable},
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(draw.uniform(0.2, 3))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    done = tool(clone, "--help")
    assert done.returncode == 0, done.stderr
    assert "install" in done.stdout
