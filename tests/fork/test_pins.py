"""Pins, and which of them is the default."""

from __future__ import annotations

import pytest
from tiny_upstream import TAG, Tiny, git

from fork.errors import ForkError
from fork.pins import all_pins, default_pin


def test_reads_the_pin(tiny: Tiny) -> None:
    assert all_pins(tiny.root) == [tiny.release.pin]
    assert default_pin(tiny.root) == tiny.release.pin


def test_the_gitlink_chooses_among_pins(tiny: Tiny) -> None:
    other = tiny.root / "patches" / "v1.0.0" / "pin.cfg"
    other.parent.mkdir()
    text = (tiny.series / "pin.cfg").read_text()
    other.write_text(text.replace(TAG, "v1.0.0").replace(tiny.release.commit, "0" * 40))
    assert default_pin(tiny.root) == tiny.release.pin

    git(tiny.root, "update-index", "--cacheinfo", f"160000,{'1' * 40},transformers")
    with pytest.raises(ForkError, match="gitlink transformers is 1111"):
        default_pin(tiny.root)


@pytest.mark.parametrize(("field", "value"), [("commit", "abc"), ("sdist_sha256", ""), ("tag", "v0")])
def test_a_malformed_pin_is_refused_by_field(tiny: Tiny, field: str, value: str) -> None:
    file = tiny.series / "pin.cfg"
    file.write_text(file.read_text().replace(f"{field} = {getattr(tiny.release.pin, field)}", f"{field} = {value}"))
    with pytest.raises(ForkError, match=f"{field} is '{value}'"):
        all_pins(tiny.root)
