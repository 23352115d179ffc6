"""The page that says what the fork changes says what the patches say."""

from __future__ import annotations

from pathlib import Path

from tiny_upstream import Tiny

from fork.changes import PAGE, page


PROJECT = Path(__file__).parents[2]


def test_the_page_is_that_of_the_patches() -> None:
    """After a change of the patches: make changes."""
    assert (PROJECT / PAGE).read_text(encoding="utf-8") == page(PROJECT)


def test_each_patch_is_told_in_full(tiny: Tiny) -> None:
    (tiny.root / "docs").mkdir()
    tiny.ok("changes")
    text = (tiny.root / PAGE).read_text()
    assert "| 9.9.0 (default) | 2 | 2 | 4 | 7 |" in text
    assert "## 1. Ask the hook for the mask\n\nSo that a pattern can change it.\n\n" in text
    assert "- `src/transformers/masking.py`: 3 added, 1 removed\n- upstream: not sent\n" in text
    assert "- proved by `tests/test_proof.py::test_embeds`\n" in text
