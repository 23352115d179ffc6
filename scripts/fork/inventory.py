"""What is installed in the research environment, as facts."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from packaging.utils import canonicalize_name

from fork.env import Environment, venv_argument
from fork.errors import ForkError
from fork.pip import clean_environment


PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True)
class Distribution:
    """One installed distribution, by its metadata."""

    name: str
    version: str
    requires: tuple[str, ...]
    folder: Path
    editable: Path | None

    @property
    def files(self) -> list[Path] | None:
        """The files that RECORD lists; None where pip had not come as far as writing it."""
        return recorded_files(self.folder)

    @property
    def whole(self) -> bool:
        """Whether everything it installed is there; without a RECORD nobody can say, so it is not."""
        files = self.files
        return files is not None and all(file.exists() for file in files if file.suffix != ".pyc")


@dataclass(frozen=True)
class Inventory:
    """An environment's distributions, in the order in which Python finds them."""

    markers: Mapping[str, str]
    prefix: Path
    distributions: tuple[Distribution, ...]
    leftovers: tuple[Path, ...]
    transformers: Path | None

    def get(self, name: str) -> Distribution | None:
        """The distribution that Python and pip see under a name."""
        return self.visible.get(canonicalize_name(name))

    @property
    def visible(self) -> dict[str, Distribution]:
        """Distributions by name; the first found hides the others."""
        return {found.name: found for found in reversed(self.distributions)}

    @property
    def own(self) -> list[Distribution]:
        """What lies inside the environment, not on a path that it only searches."""
        return [found for found in self.distributions if found.folder.is_relative_to(self.prefix)]


def take(environment: Environment) -> Inventory:
    """Ask the environment's own Python. It imports nothing that is installed there."""
    done = subprocess.run(
        [environment.python, "-c", PROBE.read_text(encoding="utf-8")],
        cwd=environment.home, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ForkError(
            f"{environment.python} does not run (status {done.returncode}). It said:\n{done.stderr.strip()}",
            next="make install VENV=another/path, or mend that environment; then make install",
        )
    told = json.loads(done.stdout.splitlines()[-1])
    refuse_old_python(environment, told["markers"]["python_full_version"])
    return Inventory(
        markers=told["markers"],
        prefix=Path(told["prefix"]),
        distributions=tuple(distribution(each) for each in told["distributions"]),
        leftovers=tuple(Path(each) for each in told["leftovers"]),
        transformers=Path(told["transformers"]) if told["transformers"] else None,
    )


def distribution(told: Mapping[str, object]) -> Distribution:
    """One distribution, from the probe's words."""
    direct, requires = told["direct_url"], told["requires"]
    assert isinstance(requires, list)
    return Distribution(
        name=canonicalize_name(str(told["name"])),
        version=str(told["version"] or ""),
        requires=tuple(requires),
        folder=Path(str(told["folder"])),
        editable=editable_folder(direct) if isinstance(direct, dict) else None,
    )


def editable_folder(direct_url: Mapping[str, Mapping[str, object]]) -> Path | None:
    """The source folder of an editable install (PEP 610)."""
    if not direct_url.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlparse(str(direct_url["url"])).path))


def recorded_files(folder: Path) -> list[Path] | None:
    """The files that a metadata folder's RECORD lists."""
    record = folder / "RECORD"
    if not record.is_file():
        return None
    with record.open(encoding="utf-8", newline="") as lines:
        return [folder.parent / row[0] for row in csv.reader(lines) if row]


def refuse_old_python(environment: Environment, version: str) -> None:
    """Upstream needs Python 3.10."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (3, 10):
        raise ForkError(
            f"the environment {environment.home} has Python {version}, expected 3.10 or newer",
            next=f"make install VENV=another/path (not{venv_argument(environment) or ' this one'})",
        )
