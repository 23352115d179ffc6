"""What all tests share: which tree is tested, and hypothesis that does not flicker."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis


ROOT = Path(__file__).resolve().parent.parent
TREE = Path(os.environ.get("FORK_TREE", ROOT / "transformers"))

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")
