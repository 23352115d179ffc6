"""A plugin of pytest: what is tested lies in FORK_TREE, or no test runs. Every worker loads it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Look where Python finds upstream's library and upstream's tests."""
    tree = Path(os.environ["FORK_TREE"])
    for name, folder in (("transformers", "src"), ("tests", "tests")):
        found = find_spec(name)
        origin = Path(found.origin) if found and found.origin else None
        if origin is None or not origin.resolve().is_relative_to((tree / folder).resolve()):
            raise pytest.UsageError(f"`import {name}` finds {origin}, expected it in {tree / folder}")
