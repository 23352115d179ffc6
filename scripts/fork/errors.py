"""The one error a user is meant to see."""

from __future__ import annotations

import re
import shutil
from pathlib import Path


# What the system says, and git about files that it wrote in part, when a disk is full or not to be written to.
REFUSALS = re.compile(
    "No space left on device|Out of diskspace|Disk quota exceeded|Read-only file system|unable to write file"
    "|couldn.t write"
)


class ForkError(Exception):
    """What came, what was expected, and the command to run next."""

    def __init__(self, message: str, next: str) -> None:
        super().__init__(message)
        self.message = message
        self.next = next

    def __str__(self) -> str:
        return f"error: {self.message}\nnext:  {self.next}"


def refused(said: str, where: Path) -> ForkError | None:
    """The error for a disk that refuses to be written to, if that is what was said."""
    if not REFUSALS.search(said):
        return None
    free = shutil.disk_usage(where).free // 1024
    return ForkError(
        f"the disk of {where} ({free} KiB free) refuses to be written to: {said.strip()}; nothing is lost",
        next="make room there, or let it be written to; then the command again",
    )
