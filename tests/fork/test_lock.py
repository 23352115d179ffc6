"""One run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killer import SCRIPTS, start
from tiny_upstream import Tiny

from fork.errors import ForkError
from fork.lock import exclusive


HOLD = "import sys, time; from pathlib import Path; from fork.lock import exclusive\n"
HOLD += "with exclusive(Path(sys.argv[1])): print('held', flush=True); "


def hold(tiny: Tiny, then: str) -> subprocess.Popen[str]:
    """Another process that holds the lock, and what it does then."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + then, str(tiny.root)],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_is_told_who_holds_the_lock(tiny: Tiny) -> None:
    holder = hold(tiny, "time.sleep(60)")
    try:
        assert f"process {holder.pid}" in tiny.fails("apply")
        tiny.ok("status")  # looking is always possible
    finally:
        holder.kill()
        holder.wait()
    tiny.ok("apply")


def test_a_child_git_that_outlives_its_run_still_holds_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed alone, Python leaves its git at work on the checkout."""
    monkeypatch.setattr("fork.lock.PATIENCE", 0.1)
    holder = hold(tiny, "import subprocess; subprocess.run(['sleep', '2'], close_fds=False)")
    time.sleep(0.2)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert f"process {holder.pid}" in tiny.fails("apply")
    monkeypatch.setattr("fork.lock.PATIENCE", 10)
    tiny.ok("apply")  # waits for it


def test_two_runs_at_once_end_with_one_whole_checkout(tiny: Tiny) -> None:
    runs = [start(tiny, "apply", "--source", "git") for _ in range(4)]
    outputs = [run.communicate()[0].decode() for run in runs]
    assert [run.returncode for run in runs].count(0) >= 1
    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0 or "another run is at work" in output
    assert "nothing to do" in tiny.ok("apply").out


def test_a_run_that_ended_by_itself_leaves_no_trace(tiny: Tiny) -> None:
    """A name in the file means that a run was cut short; only then are git's locks ours to remove."""
    lock = tiny.root / ".fork" / "lock"
    with exclusive(tiny.root):
        assert lock.read_text().strip() == str(os.getpid())
    assert lock.read_text() == ""
    with pytest.raises(ForkError), exclusive(tiny.root):
        raise ForkError("refused", next="nothing")
    assert lock.read_text() == ""
    with pytest.raises(KeyboardInterrupt), exclusive(tiny.root):
        raise KeyboardInterrupt
    assert lock.read_text() != ""


def test_the_users_own_git_keeps_its_lock(tiny: Tiny) -> None:
    tiny.ok("apply")
    lock: Path = tiny.checkout / ".git" / "index.lock"
    lock.write_text("")
    (tiny.root / "overlay" / "new.txt").write_text("new\n")
    assert "index.lock" in tiny.fails("apply")
    assert lock.exists()
