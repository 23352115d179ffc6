"""A release's sdist, from where pip's own configuration says: the one that a pin names, or one not pinned yet."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from fork.errors import ForkError, refused
from fork.pip import pip_environment
from fork.project import SUBMODULE


INERT = Path(__file__).parent / "inert"


def archive_name(version: str) -> str:
    """The name of a release's source archive."""
    return f"{SUBMODULE}-{version}.tar.gz"


def download(version: str, into: Path, sha256: str | None) -> Path:
    """The archive, with the hash that the pin records or, where none does yet, the one that the index gives.

    pip compares the hash before it opens the archive, and then asks it for metadata, which would run its
    setup.py; the backend it finds is an inert one that reads PKG-INFO instead.
    """
    wanted = into / "requirements.txt"
    wanted.write_text(f"{SUBMODULE}=={version}" + (f" --hash=sha256:{sha256}\n" if sha256 else "\n"))
    done = _pip("download", "--no-deps", "--no-binary", SUBMODULE, *(["--require-hashes"] if sha256 else []),
                "--no-build-isolation", "--use-pep517", "--ignore-requires-python", "--progress-bar", "off",
                "--dest", str(into), "--requirement", str(wanted))  # fmt: skip
    if done.returncode == 0:
        return next(into.glob(f"{SUBMODULE}-*.tar.gz"))  # of 5.23 it is that of 5.23.0
    if refusal := refused(done.stdout, into):
        raise refusal
    came = re.search(r"Got\s+([0-9a-f]{64})", done.stdout)
    if came:
        expected = re.search(r"Expected sha256\s+([0-9a-f]{64})", done.stdout)
        raise ForkError(
            f"{archive_name(version)} has sha256\n  {came[1]}, expected\n"
            f"  {sha256 or (expected and expected[1])}; nothing in it was unpacked or run",
            next="the command again with SOURCE=git, or put the right archive in the index or wheelhouse",
        )
    if not sha256:
        _refuse_unknown(version, done.stdout)
    said = "\n".join(done.stdout.strip().splitlines()[-6:])
    raise ForkError(
        f"pip found no {archive_name(version)}, expected it in its index or wheelhouse. pip said:\n{said}",
        next="the command again with WHEELHOUSE=<folder that holds it>, or with access to PyPI",
    )


def read_sha256(archive: Path) -> str:
    """The archive's hash."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def _refuse_unknown(version: str, said: str) -> None:
    """Where pip could ask: is there no such release, or does it have no sdist?"""
    listed = re.search(r"\(from versions: (.*)\)", said)
    if listed is None or listed[1] == "none":
        return  # no access, or another problem: pip says which
    sdists = listed[1].split(", ")
    latest = sdists[-1]
    if version in released():
        raise ForkError(
            f"transformers {version} has no sdist in pip's index, expected one: a pin records its sha256",
            next=f"make rebase TO={latest}, or another release that has one",
        )
    raise ForkError(
        f"there is no transformers {version}, expected one of ..., {', '.join(sdists[-6:])}",
        next=f"make rebase TO={latest}",
    )


def released() -> list[str]:
    """The releases that pip's index or wheelhouse has, with an sdist or without; none that is not final."""
    done = _pip("index", "versions", "--ignore-requires-python", SUBMODULE)
    found = re.search(r"^Available versions: (.*)$", done.stdout, re.M)
    return found[1].split(", ") if found else []


def _pip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", *words],
        env=pip_environment() | {"PYTHONPATH": str(INERT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
