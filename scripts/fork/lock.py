"""One run at a time, and what a killed one left."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fork import replace
from fork.checkout import tidy
from fork.errors import ForkError
from fork.git import GitDiedError
from fork.project import SCRATCH, Project


# How long to wait for what a killed run's git is still doing.
PATIENCE = 5.0


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the project's lock, or say who does.

    The kernel drops the lock with the last process that has it open. Git children inherit it (see
    `Git.run_bytes`), so a run whose Python was killed still counts until its git has ended. The file names
    the holder, and is emptied when a run ends by itself: a name in it tells that the last run was cut short.
    """
    project = Project(root)
    project.state.mkdir(exist_ok=True)
    descriptor = os.open(project.state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, root)
        os.set_inheritable(descriptor, True)
        clean_up(project, killed=bool(os.pread(descriptor, 64, 0)))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        except GitDiedError:
            raise  # as if the whole run had been killed
        except (ForkError, OSError):
            os.ftruncate(descriptor, 0)
            raise
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, root: Path) -> None:
    """Lock, or say who holds it. A holder that is gone has a git that is about to go: wait for that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode().strip()
        if (holder and _alive(int(holder))) or time.monotonic() > deadline:
            raise ForkError(
                f"another run is at work in {root} (process {holder or 'unknown'}); expected to be alone",
                next=f"wait for it{f' (ps -p {holder})' if holder else ''}, then run the command again",
            )
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def clean_up(project: Project, killed: bool) -> None:
    """Put right what the last run left: temporary folders, half an export and, if it was killed, git's locks."""
    if killed:
        tidy(project)
    for folder in project.state.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder)
    replace.finish(project)
