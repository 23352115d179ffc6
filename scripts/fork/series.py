"""The patch series, from the project into the checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fork.errors import ForkError
from fork.source import Source


@dataclass(frozen=True)
class Applied:
    """What the checkout holds after `apply`."""

    commit: str
    tree: str
    changed: bool


def apply(root: Path, source: Source = Source.AUTO) -> Applied:
    """Make the checkout if it is missing, and put overlay and patches on it. The caller holds the lock."""
    raise ForkError(f"apply is being written ({root}, {source})", next="make status")
