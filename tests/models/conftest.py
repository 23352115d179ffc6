"""The tree that the models must come from, and tokens for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import TREE

import transformers


torch.set_num_threads(1)


def pytest_configure() -> None:
    """Stop where the tests would test something else, such as an installed stock release."""
    found = Path(transformers.__file__).resolve()
    if not found.is_relative_to(TREE.resolve()):
        pytest.exit(
            f"transformers comes from {found}, not from {TREE}: run `make install` and use its environment.", 3
        )


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of nine tokens."""
    return torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
