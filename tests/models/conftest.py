"""The tree that the models must come from, and tokens for them."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from releases import left_out
from small_models import TREE

import transformers


torch.set_num_threads(1)
LEFT_OUT = left_out()


class LeftOut(pytest.Module):
    """A file of tests for something that this release does not have, and that it cannot even import."""

    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip(LEFT_OUT[self.path.name], allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Do not import what is left out as a whole."""
    return LeftOut.from_parent(parent, path=module_path) if module_path.name in LEFT_OUT else None


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip what the release under test is not up to."""
    for item in items:
        name = f"{item.path.name}::{item.name}"
        for tests, reason in LEFT_OUT.items():
            if fnmatchcase(name, tests):
                item.add_marker(pytest.mark.skip(reason=reason))


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


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pin's own source, as it was before the fork."""
    folder = tmp_path_factory.mktemp("upstream")
    with subprocess.Popen(["git", "-C", TREE, "archive", "refs/fork/base", "src"], stdout=subprocess.PIPE) as git:
        assert git.stdout is not None
        with tarfile.open(fileobj=git.stdout, mode="r|") as archive:
            archive.extractall(folder, filter="data")
    assert not (folder / "src/transformers/mask_patterns").exists()
    return folder
