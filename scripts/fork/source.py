"""Where upstream's source comes from: its git repository, or the release's sdist."""

from __future__ import annotations

from enum import Enum


class Source(Enum):
    """The two sources, and the choice between them."""

    GIT = "git"
    SDIST = "sdist"
    AUTO = "auto"
