"""A disk that is full, or read-only, is said to be so: no patch is blamed for it, and nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_series import HOOKS, MASKING, files, head
from tiny_upstream import Tiny, git


FULL = "echo 'fatal: unable to write loose object file: No space left on device' >&2; exit 128"
READ_ONLY = "echo \"fatal: Unable to create 'index.lock': Read-only file system\" >&2; exit 128"

Spoil = Callable[[str, str], None]


@pytest.fixture
def spoil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Another git: what it does instead of one of its commands, whose words are in `$@`."""
    monkeypatch.setenv("REAL", str(shutil.which("git")))

    def replace(command: str, script: str) -> None:
        fake = tmp_path / "bin" / "git"
        fake.parent.mkdir()
        words = f'for word; do [ "$word" != {command} ] || {{ {script}; }}; done'
        fake.write_text(f'#!/bin/bash\n{words}\nexec "$REAL" "$@"\n')
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")

    return replace


@pytest.mark.parametrize(
    ("command", "said"),
    [("hash-object", FULL), ("apply", FULL), ("write-tree", FULL), ("checkout", READ_ONLY), ("update-ref", READ_ONLY)],
)
def test_a_git_that_cannot_write_is_no_fault_of_a_patch(tiny: Tiny, spoil: Spoil, command: str, said: str) -> None:
    tiny.ok("apply")
    (tiny.root / "overlay" / HOOKS).write_text("changed = 1\n")
    before = head(tiny), files(tiny)
    spoil(command, said)
    told = tiny.fails("apply")
    assert "refuses to be written to" in told
    assert "nothing is lost" in told
    assert "does not apply" not in told
    assert (head(tiny), files(tiny)) == before


@pytest.mark.parametrize("size", [0, 200])
def test_half_a_diff_is_not_applied(tiny: Tiny, spoil: Spoil, size: int) -> None:
    """mailinfo ends well on a full disk, and what it wrote may be a patch all the same."""
    spoil("mailinfo", f'"$REAL" "$@" || exit; truncate -s {size} "${{@: -1}}"; exit')
    said = tiny.fails("apply")
    assert f"git mailinfo wrote {size} bytes of 0001-Ask-the-hook-for-the-mask.patch" in said
    assert not tiny.checkout.exists()


def test_an_edit_outlives_a_full_disk(tiny: Tiny, spoil: Spoil, tmp_path: Path) -> None:
    tiny.ok("apply")
    file = tiny.checkout / MASKING
    edited = file.read_text() + "\nMORE = 1\n"
    file.write_text(edited)
    git(tiny.checkout, "config", "user.name", "Ann")
    git(tiny.checkout, "config", "user.email", "ann@example.invalid")
    message = tmp_path / "message"
    message.write_text(
        "Add more\n\nBecause.\n\nUpstream-Status: not sent\nProved-By: tests/test_proof.py::test_mask\n"
    )
    spoil("write-tree", FULL)
    assert "refuses to be written to" in tiny.fails("new-patch", "--message", str(message))
    assert file.read_text() == edited
    (tmp_path / "bin" / "git").unlink()
    tiny.ok("new-patch", "--message", str(message))
    assert file.read_text() == edited
    tiny.ok("verify")
