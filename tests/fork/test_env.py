"""Which environment is meant, and making it."""

from __future__ import annotations

from pathlib import Path

import pytest
from stub_wheels import bare_venv, listing

from fork.env import UNFINISHED, Origin, choose, locate, prepare
from fork.errors import ForkError
from fork.inventory import take


@pytest.fixture(autouse=True)
def nothing_active(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment is named or active, whatever runs the tests."""
    for name in ("VENV", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
        monkeypatch.delenv(name, raising=False)


CONDA = {"CONDA_PREFIX": "/conda/envs/work", "CONDA_DEFAULT_ENV": "work"}


@pytest.mark.parametrize(
    ("variables", "home", "origin"),
    [
        ({}, "/project/.venv", Origin.OWN),
        ({"VENV": "", "VIRTUAL_ENV": ""}, "/project/.venv", Origin.OWN),
        ({"VENV": "/named", "VIRTUAL_ENV": "/active", **CONDA}, "/named", Origin.NAMED),
        ({"VIRTUAL_ENV": "/active", **CONDA}, "/active", Origin.ACTIVE),
        (CONDA, "/conda/envs/work", Origin.CONDA),
        ({"CONDA_PREFIX": "/conda", "CONDA_DEFAULT_ENV": "base"}, "/project/.venv", Origin.OWN),
    ],
)
def test_named_before_active_before_own(variables: dict[str, str], home: str, origin: Origin) -> None:
    chosen = choose(Path("/project"), variables)
    assert (chosen.home, chosen.origin) == (Path(home), origin)


def test_makes_its_own_once(tmp_path: Path) -> None:
    with pytest.raises(ForkError, match="there is no environment") as missing:
        locate(tmp_path)
    assert missing.value.next == "make install"
    made = prepare(tmp_path)
    assert made.home == tmp_path / ".venv"
    assert take(made).prefix == made.home
    before = listing(made.home)
    assert prepare(tmp_path) == locate(tmp_path) == made
    assert listing(made.home) == before


def test_what_was_left_unfinished_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "half made"
    (home / "lib").mkdir(parents=True)
    (home / "lib" / "half").touch()
    (home / UNFINISHED).touch()
    monkeypatch.setenv("VENV", str(home))
    with pytest.raises(ForkError, match="there is no environment"):
        locate(tmp_path)
    assert take(prepare(tmp_path)).prefix == home
    assert not (home / UNFINISHED).exists()
    assert not (home / "lib" / "half").exists()


@pytest.mark.parametrize("how", ["VENV", "VIRTUAL_ENV"])
def test_what_we_did_not_make_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    home = tmp_path / "thesis"
    home.mkdir()
    (home / "chapter").write_text("years of work")
    monkeypatch.setenv(how, str(home))
    with pytest.raises(ForkError, match=f"{how} is .*thesis, where there is no working environment"):
        prepare(tmp_path)
    assert (home / "chapter").read_text() == "years of work"


def test_an_active_environment_that_is_gone_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "gone"))
    with pytest.raises(ForkError, match="VIRTUAL_ENV is .*gone, where there is no working environment"):
        prepare(tmp_path)
    assert not (tmp_path / "gone").exists()


def test_the_tools_own_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = bare_venv(tmp_path / ".fork" / "venv")
    monkeypatch.setenv("VIRTUAL_ENV", str(home))
    for find in (locate, prepare):
        with pytest.raises(ForkError, match="the tool's own environment"):
            find(tmp_path)


def test_an_old_python_is_refused_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = bare_venv(tmp_path / "old")
    python = home / "bin" / "python"
    real = python.resolve()
    python.unlink()
    fake = "import platform; platform.python_version = lambda: '3.8.10'; import sys; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nshift\nexec "{real}" -c "{fake}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("VENV", str(home))
    with pytest.raises(ForkError, match=r"has Python 3\.8\.10, expected 3\.10 or newer"):
        take(prepare(tmp_path))


def test_the_callers_python_settings_do_not_reach_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = tmp_path / "shadow" / "transformers"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(shadow.parent))
    monkeypatch.setenv("VENV", str(bare_venv(tmp_path / "an env")))
    assert take(locate(tmp_path)).transformers is None
