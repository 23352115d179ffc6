"""`make wheel`: the fork as a wheel and an sdist, the same bytes whenever and wherever they are built."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fork import series
from fork.bootstrap import PrivateEnvironment
from fork.checkout import Checkout
from fork.errors import ForkError
from fork.pip import clean_environment
from fork.project import Project
from fork.prove import unpack
from fork.source import Source


# The backend that a pyproject.toml without [build-system] means (PEP 517). It writes to sys.argv.
BUILD = """
import sys
from setuptools.build_meta import __legacy__ as backend
into = sys.argv[1]
backend.build_wheel(into)
backend.build_sdist(into)
"""


def wheel(root: Path, source: Source = Source.AUTO, upstream: str = "") -> list[Path]:
    """Build both into `dist/` from the applied series, and compare them with it. The caller holds the lock."""
    series.apply(root, source, upstream)
    project, python = Project(root), builder(root)
    checkout = Checkout.of(project)
    state = checkout.state()
    assert state is not None  # applied just now
    epoch = int(checkout.git.out("log", "-1", "--format=%ct", state.applied))
    with project.scratch() as scratch, common_modes():
        tree, pristine, built = scratch / "tree", scratch / "pristine", scratch / "built"
        built.mkdir()
        for folder in (tree, pristine):  # building leaves files of its own in the tree
            unpack(checkout.git, state.applied, folder)
        build(python, tree, built, epoch)
        for archive in built.glob("*.tar.gz"):
            normalize(archive, epoch)
        for archive in built.iterdir():
            check_content(archive, pristine)
        return [publish(archive, root / "dist") for archive in sorted(built.iterdir())]


def builder(root: Path) -> Path:
    """The Python that builds, in an environment of exact versions."""
    environment = PrivateEnvironment(root / ".fork" / "build", root / "scripts" / "requirements-build.txt")
    environment.make()
    return environment.python


@contextmanager
def common_modes() -> Iterator[None]:
    """Files get the same permissions whatever the user's umask."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def build(python: Path, tree: Path, into: Path, epoch: int) -> None:
    """Have upstream's own setup.py make both."""
    done = subprocess.run(
        [python, "-c", BUILD, str(into)], cwd=tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
        env=clean_environment() | {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-10:])
        raise ForkError(f"setuptools could not build the fork, expected a wheel. It said:\n{said}", next="make status")


def normalize(archive: Path, epoch: int) -> None:
    """Write an sdist again without its builder's clock and user, which setuptools leaves in it."""
    packed = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    with archive.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as compressed:
        compressed.write(packed.getvalue())


def check_content(archive: Path, tree: Path) -> None:
    """What is packed is the checkout's, byte for byte, and no module of it is missing."""
    held = packed_sources(archive)
    source = tree / "src"
    wrong = [name for name, data in held.items() if not same_file(source / name, data)]
    modules = {file.relative_to(source).as_posix() for file in (source / "transformers").rglob("*.py")}
    missing = sorted(modules - held.keys())
    if wrong or missing:
        told = [f"  differs: {name}" for name in wrong] + [f"  missing: {name}" for name in missing]
        raise ForkError(
            f"{archive.name} does not hold what the checkout holds, expected the same files:\n" + "\n".join(told[:20]),
            next="mend setup.py or the overlay, then make wheel",
        )


def packed_sources(archive: Path) -> dict[str, bytes]:
    """The files of the package in a wheel or an sdist, by their path below `src/`."""
    found = {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist()}
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist.getmembers():
                content, path = sdist.extractfile(member), member.name.partition("/src/")[2]
                if content is not None:
                    found[path] = content.read()
    return {name: data for name, data in found.items() if name.startswith("transformers/")}


def same_file(file: Path, data: bytes) -> bool:
    """Whether a file is there and holds these bytes."""
    return file.is_file() and file.read_bytes() == data


def publish(archive: Path, folder: Path) -> Path:
    """Put an archive into its place in one step, and say its hash."""
    folder.mkdir(exist_ok=True)
    placed = folder / archive.name
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    os.replace(archive, placed)
    print(f"built: {placed}\n  sha256 {digest}")
    return placed
