"""`make wheel`: what is built installs without git, holds the checkout's files, and repeats byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from stub_wheels import bare_venv, python, site
from tiny_upstream import OVERLAY, VERSION, Tiny, git

from fork import wheel
from fork.errors import ForkError


NAMES = [f"transformers-{VERSION}+masks.1-py3-none-any.whl", f"transformers-{VERSION}+masks.1.tar.gz"]


@pytest.fixture(autouse=True)
def this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder that runs the tests has setuptools too."""
    monkeypatch.setattr(wheel, "builder", lambda root: Path(sys.executable))


def built(tiny: Tiny) -> dict[str, bytes]:
    """What is in dist/."""
    return {file.name: file.read_bytes() for file in sorted((tiny.root / "dist").iterdir())}


def install(home: Path, archive: Path) -> None:
    """Have pip install an archive, without dependencies, index or git."""
    words = ["install", "--no-deps", "--no-index", "--no-build-isolation", str(archive)]
    path = tuple(folder for folder in os.get_exec_path() if not (Path(folder) / "git").exists())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), *words],
        env={"PATH": os.pathsep.join(path), "PYTHONPATH": builder_site(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def builder_site() -> str:
    """Where setuptools is, with which pip builds an sdist."""
    found = find_spec("setuptools")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parents[1])


def test_two_builds_are_the_same_whatever_the_clock_the_umask_and_the_place(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.ok("wheel")
    first = built(tiny)
    assert list(first) == NAMES
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        tiny.ok("clean")
        tiny.ok("wheel")
    finally:
        os.umask(before)
    assert built(tiny) == first


@pytest.mark.parametrize("name", NAMES)
def test_what_is_installed_is_the_checkouts(tiny: Tiny, tmp_path: Path, name: str) -> None:
    tiny.ok("wheel")
    home = bare_venv(tmp_path / "home")
    install(home, tiny.root / "dist" / name)
    tracked = git(tiny.checkout, "ls-files", "src/transformers").split()
    packed = {path: (site(home) / path.removeprefix("src/")).read_text() for path in tracked}
    assert packed == {path: (tiny.checkout / path).read_text() for path in tracked}
    assert packed["src/transformers/mask_patterns/hooks.py"] == OVERLAY["src/transformers/mask_patterns/hooks.py"]
    told = "from importlib.metadata import version; from transformers.masking import create_mask; "
    assert (
        python(home, told + "print(version('transformers'), create_mask(2))") == f"{VERSION}+masks.1 [[1, 0], [1, 1]]"
    )


def test_an_edit_that_is_not_exported_stays_out(tiny: Tiny) -> None:
    tiny.ok("wheel")
    first = built(tiny)
    with (tiny.checkout / "src/transformers/mask_patterns/hooks.py").open("a") as file:
        file.write("EDIT = 1\n")
    assert "not exported" in tiny.ok("wheel").out
    assert built(tiny) == first


def test_a_module_that_upstreams_setup_leaves_out_is_an_error(tiny: Tiny) -> None:
    lost = tiny.root / "overlay/src/transformers/unlisted/module.py"
    lost.parent.mkdir()
    lost.write_text("LOST = 1\n")
    said = tiny.fails("wheel")
    assert "missing: transformers/unlisted/module.py" in said
    assert not (tiny.root / "dist").exists()


def test_a_wheel_with_another_content_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tree, archive = tmp_path / "tree", tmp_path / "made.whl"
    (tree / "src" / "transformers").mkdir(parents=True)
    (tree / "src" / "transformers" / "a.py").write_text("A = 1\n")
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("transformers/a.py", "A = 2\n")
    with pytest.raises(ForkError, match=r"differs: transformers/a\.py"):
        wheel.check_content(archive, tree)
