"""Fixtures: the small upstream, and a hostile machine.

Every test under this folder runs with a hostile git configuration and without an index: what it needs is
in the session's wheelhouse (the sdist) and in a local git repository, reached through `url.insteadOf`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hostile_git import HOSTILE
from later_release import Later
from stub_wheels import bare_venv, build_wheelhouse
from tiny_upstream import URL, Release, Tiny, build_release, git, write


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The small upstream, made once."""
    return build_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(autouse=True)
def hostile(release: Release, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's git configuration at its worst, hooks that fail, and no package index."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "PIP_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("hostile")
    hooks = folder / "hooks"
    names = ["pre-commit", "commit-msg", "applypatch-msg", "post-checkout", "reference-transaction"]
    names.append("fsmonitor")
    for place in (hooks, hooks / "template" / "hooks"):
        write(place, dict.fromkeys(names, "#!/bin/sh\nexit 1\n"))
        for name in names:
            (place / name).chmod(0o755)
    write(
        hooks,
        {
            "attributes": "*.py text eol=crlf -diff\n",
            "excludes": "*.cfg\nmask_patterns\n",
            "order": "setup.py\n",
        },
    )
    config = folder / "gitconfig"
    config.write_text(HOSTILE.format(hooks=hooks, upstream=release.upstream, url=URL))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(release.wheelhouse))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")


@pytest.fixture
def tiny(release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tiny:
    """A fresh clone of the small project."""
    root = tmp_path / "a project"
    shutil.copytree(release.project, root, symlinks=True)
    return Tiny(root, release, capsys)


@pytest.fixture
def later(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    """Upstream's later releases, which the project finds where it found the first."""
    upstream, wheelhouse = tmp_path / "upstream", tmp_path / "later"
    git(tmp_path, "clone", "--quiet", str(tiny.release.upstream), str(upstream))
    git(tiny.root, "config", "submodule.transformers.url", str(upstream))
    wheelhouse.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tiny.release.wheelhouse} {wheelhouse}")
    return Later(tiny, upstream, wheelhouse)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory, release: Release) -> Path:
    """A wheelhouse for `make install`; the path has a space."""
    return build_wheelhouse(tmp_path_factory.mktemp("wheels") / "wheel house", release)


@pytest.fixture
def home(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty research environment, which VENV names."""
    monkeypatch.setenv("WHEELHOUSE", str(wheels))
    monkeypatch.setenv("VENV", str(tmp_path / "an env"))
    return bare_venv(tmp_path / "an env")
