"""One run at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fork.errors import ForkError
from fork.project import Project


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the project's lock, or say who does.

    The kernel drops the lock with the last process that has it open. Git children inherit it (see
    `Git.run_bytes`), so a run whose Python was killed still counts until its git has ended.
    """
    file = Project(root).state / "lock"
    file.parent.mkdir(exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 64).decode().strip() or "unknown"
            raise ForkError(
                f"another run is at work in {root} (process {holder}); expected to be alone",
                next=f"wait for it (ps -p {holder}), then run the command again",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)
