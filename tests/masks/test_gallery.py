"""The gallery in `docs` is what the library draws and says today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from transformers.mask_patterns import BlockDiffusion, Dilated, Gist, PerHead, PrefixLM, SlidingWindow, Tree


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gallery", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_and_its_pictures_are_what_the_script_makes(gallery: ModuleType) -> None:
    pages = gallery.pages()
    docs = ROOT / "docs"
    committed = [docs / "gallery.md", *sorted((docs / "gallery").iterdir())]
    assert [str(path.relative_to(docs)) for path in committed] == sorted(pages, key=lambda name: ("/" in name, name))
    stale = [path.name for path in committed if path.read_text(encoding="utf-8") != pages[str(path.relative_to(docs))]]
    assert not stale, "run: .venv/bin/python examples/gallery.py"


def test_the_page_shows_every_picture_and_names_every_source(gallery: ModuleType) -> None:
    pages = gallery.pages()
    page = pages.pop("gallery.md")
    assert all(page.count(f"({name})") == 1 for name in pages)
    sourced = [SlidingWindow, Dilated, Gist, Tree, PerHead, BlockDiffusion, PrefixLM]
    assert all("](https://arxiv.org/abs/" in "".join(gallery.definition(cls)) for cls in sourced)


def test_a_pattern_without_an_example_is_an_error(gallery: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gallery.NAMED, "Tree")
    with pytest.raises(LookupError, match="Tree"):
        gallery.pages()
