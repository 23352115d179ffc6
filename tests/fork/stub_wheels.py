"""Wheels for the tests of the install: stubs with the requirements that matter, and real build tools."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from tiny_upstream import VERSION, Release


FORKED = f"{VERSION}+masks.1"

# What the small upstream's environment is made of: name, version, requirements.
STUBS: tuple[tuple[str, str, list[str]], ...] = (
    ("torch", "2.13.0", ["sympy"]),
    ("torch", "2.6.0", []),
    ("sympy", "1.14.0", []),
    ("accelerate", "1.15.0", ["torch>=2.0", "huggingface-hub>=0.21", "safetensors>=0.4.3"]),
    ("huggingface-hub", "0.36.0", []),
    ("huggingface-hub", "1.4.0", []),
    ("huggingface-hub", "1.5.0", []),
    ("huggingface-hub", "1.7.0", []),
    ("safetensors", "0.7.0", []),
    ("safetensors", "0.8.0", []),
    ("tokenizers", "0.19.0", ["huggingface-hub<1.0"]),
    ("tokenizers", "0.23.1", ["huggingface-hub<2.0"]),
    ("transformers", VERSION, ["huggingface-hub>=1.5.0,<2.0", "tokenizers>=0.22.0,<=0.23.3"]),
    ("transformers", "4.57.0", ["huggingface-hub<2.0", "tokenizers<0.20"]),
)
# Enough files for a killed pip to leave a package half written.
FILES = 60


def stub(folder: Path, name: str, version: str, requires: Sequence[str], files: int = 1) -> Path:
    """Write the wheel of a package that does nothing."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    lines = [f"Requires-Dist: {line}" for line in requires]
    content = {f"{module}/part{number}.py": f"number = {number}\n" for number in range(files)}
    content[f"{module}/__init__.py"] = f'__version__ = "{version}"\n'
    content[f"{info}/METADATA"] = "\n".join(
        ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""]
    )
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return wheel(folder, f"{module}-{version}-py3-none-any.whl", {at: text.encode() for at, text in content.items()})


def wheel(folder: Path, name: str, content: Mapping[str, bytes]) -> Path:
    """Zip a wheel, with its RECORD."""
    record = next(at for at in content if at.endswith(".dist-info/METADATA")).replace("METADATA", "RECORD")
    digests = {
        at: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for at, data in content.items()
    }
    rows = [f"{at},sha256={digests[at].decode()},{len(data)}" for at, data in content.items()]
    with zipfile.ZipFile(folder / name, "w") as archive:
        for at, data in content.items():
            archive.writestr(at, data)
        archive.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    return folder / name


def repack(folder: Path, name: str) -> None:
    """Make a wheel again out of a package that is installed here, and of what it requires."""
    found = distribution(name)
    kept = [file for file in found.files or [] if ".." not in file.parts and file.suffix != ".pyc"]
    own = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    content = {str(file): file.read_binary() for file in kept if file.name not in own}
    tags = [line.split()[1] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    wheel(folder, f"{found.name.replace('-', '_')}-{found.version}-{tags[0]}.whl", content)
    for line in found.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            repack(folder, requirement.name)


def build_wheelhouse(folder: Path, release: Release) -> Path:
    """Everything that an install may ask for."""
    shutil.copytree(release.wheelhouse, folder)
    for name, version, requires in STUBS:
        stub(folder, name, version, requires, files=FILES)
    for name in ("setuptools", "wheel"):
        repack(folder, name)
    return folder


def bare_venv(home: Path) -> Path:
    """A virtual environment without pip: the tool needs none there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    return home


def site(home: Path) -> Path:
    """An environment's site-packages."""
    return next(home.glob("lib/python3*/site-packages"))


def put(home: Path, *wheels: Path) -> None:
    """Install wheels as pip would, without its seconds."""
    for each in wheels:
        with zipfile.ZipFile(each) as archive:
            archive.extractall(site(home))


def listing(home: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with size and time, bytecode aside: has anything changed?"""
    return dict(states(home))


def states(home: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and state of each file below a folder."""
    for folder, _, names in os.walk(home):
        for name in names:
            if not name.endswith(".pyc"):
                state = os.lstat(os.path.join(folder, name))
                yield os.path.join(folder, name), (state.st_size, state.st_mtime_ns)


def stubs(wheels: Path, *names: str) -> list[Path]:
    """Stub wheels by `name-version`."""
    return [wheels / f"{name}-py3-none-any.whl" for name in names]


def python(home: Path, code: str) -> str:
    """What the environment's Python prints."""
    done = subprocess.run([home / "bin" / "python", "-c", code], capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pip(home: Path, *words: str) -> str:
    """What pip says of the environment."""
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def versions(home: Path) -> dict[str, str]:
    """What `pip list` shows."""
    return {each["name"]: each["version"] for each in json.loads(pip(home, "list", "--format", "json"))}
