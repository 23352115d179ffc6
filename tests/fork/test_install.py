"""`make install` and `make uninstall`, on the small upstream, with a wheelhouse of stubs and no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub_wheels import FORKED, listing, pip, put, python, site, stub, stubs, versions
from tiny_upstream import VERSION, Tiny


def test_installs_everything_and_edits_are_live(tiny: Tiny, home: Path) -> None:
    tiny.ok("install", "--source", "sdist")
    shown = versions(home)
    assert shown["transformers"] == FORKED
    assert shown["torch"] == "2.13.0"
    assert {"accelerate", "huggingface-hub", "safetensors", "tokenizers"} <= {name.replace("_", "-") for name in shown}
    pip(home, "check")

    source = tiny.checkout / "src" / "transformers" / "masking.py"
    source.write_text(source.read_text() + "\nedited = 7\n")
    assert python(home, "from transformers import masking; print(masking.edited)") == "7"


def test_a_second_run_does_nothing_and_is_fast(tiny: Tiny, home: Path) -> None:
    tiny.ok("install", "--source", "sdist")
    before = listing(home) | listing(tiny.checkout)
    began = time.monotonic()
    assert "nothing to do" in tiny.ok("install", "--source", "sdist").out
    assert time.monotonic() - began < 5
    assert listing(home) | listing(tiny.checkout) == before


def test_what_was_there_stays_as_it_was(tiny: Tiny, home: Path, wheels: Path, tmp_path: Path) -> None:
    """Torch is left alone, another package's requirement holds, an old problem is not ours."""
    datasets = stub(tmp_path, "datasets", "4.0.0", ["huggingface-hub<1.7"])
    legacy = stub(tmp_path, "legacy", "1.0", ["gone>=1", "torch<2"])
    put(home, *stubs(wheels, "torch-2.6.0", "huggingface_hub-1.5.0"), datasets, legacy)
    tiny.ok("install", "--source", "sdist")
    shown = versions(home)
    assert (shown["torch"], shown["transformers"]) == ("2.6.0", FORKED)
    assert shown["huggingface-hub"] == "1.5.0"
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "check"],
        capture_output=True,
        text=True,
    )
    assert sorted(checked.stdout.splitlines()) == [
        "legacy 1.0 has requirement torch<2, but you have torch 2.6.0.",
        "legacy 1.0 requires gone, which is not installed.",
    ]


def test_an_older_stock_release_is_replaced_with_its_companions_and_the_stock_put_back(
    tiny: Tiny, home: Path, wheels: Path
) -> None:
    put(
        home,
        *stubs(wheels, "transformers-4.57.0", "tokenizers-0.19.0", "huggingface_hub-0.36.0", "safetensors-0.8.0"),
    )
    tiny.ok("install", "--source", "sdist")
    shown = versions(home)
    assert (shown["transformers"], shown["tokenizers"], shown["huggingface-hub"]) == (
        FORKED,
        "0.23.1",
        "1.7.0",
    )
    pip(home, "check")

    tiny.ok("uninstall")
    assert versions(home) == shown | {"transformers": VERSION}
    assert python(home, "import transformers; print(transformers.__file__)").startswith(str(home))
    pip(home, "check")
    before = listing(home)
    assert "nothing to do" in tiny.ok("uninstall").out
    assert listing(home) == before


def test_a_package_that_stands_in_the_way_is_named_and_nothing_changes(
    tiny: Tiny, home: Path, wheels: Path, tmp_path: Path
) -> None:
    datasets = stub(tmp_path, "datasets", "2.14.0", ["huggingface-hub<1.0,>=0.14"])
    put(home, *stubs(wheels, "torch-2.13.0", "sympy-1.14.0", "huggingface_hub-0.36.0"), datasets)
    before = listing(home)
    error = tiny.fails("install", "--source", "sdist")
    assert "datasets requires huggingface-hub<1.0,>=0.14" in error
    assert "transformers 9.9.0+masks.1 depends on huggingface-hub" in error
    assert "Nothing was changed" in error
    assert "install --upgrade datasets" in error
    assert listing(home) == before


def test_a_package_that_excludes_this_version_is_told_before_anything_is_touched(
    tiny: Tiny, home: Path, tmp_path: Path
) -> None:
    put(home, stub(tmp_path, "old-trainer", "1.0", ["transformers<5"]))
    before = listing(home)
    error = tiny.fails("install", "--source", "sdist")
    assert "transformers 9.9.0+masks.1 is not allowed" in error
    assert "old-trainer requires transformers<5" in error
    assert listing(home) == before
    assert not (tiny.checkout / "src").exists()


def test_what_the_wheelhouse_lacks_is_named(
    tiny: Tiny, home: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poorer = tmp_path / "poorer"
    shutil.copytree(wheels, poorer, ignore=lambda _, names: [name for name in names if name.startswith("safetensors")])
    monkeypatch.setenv("WHEELHOUSE", str(poorer))
    before = listing(home)
    error = tiny.fails("install", "--source", "sdist")
    assert "safetensors" in error
    assert f"put what is missing into WHEELHOUSE={poorer}" in error
    assert listing(home) == before

    monkeypatch.setenv("WHEELHOUSE", str(tmp_path / "nowhere"))
    assert "nowhere', which is no folder" in tiny.fails("install", "--source", "sdist")


def test_a_folder_that_hides_the_checkout_is_named(tiny: Tiny, home: Path) -> None:
    hiding = site(home) / "transformers"
    hiding.mkdir()
    (hiding / "__init__.py").touch()
    error = tiny.fails("install", "--source", "sdist")
    assert f"import transformers finds {hiding / '__init__.py'}" in error

    shutil.rmtree(hiding)
    assert "nothing to do" in tiny.ok("install", "--source", "sdist").out
