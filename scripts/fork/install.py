"""`make install` and `make uninstall`: the patched transformers, in and out of the research environment."""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from fork import journal, series
from fork.change import change, mended
from fork.env import Environment, locate, prepare, venv_argument
from fork.errors import ForkError
from fork.inventory import Inventory, take
from fork.pins import Pin
from fork.project import Project
from fork.requirements import excluding, met, problems, requirements
from fork.source import Source
from fork.upstream import chosen_pin


# What comes along with transformers, and may be replaced by another version for its sake.
COMPANIONS = ("accelerate", "huggingface-hub", "safetensors", "tokenizers")
MOVABLE = frozenset(("transformers", *COMPANIONS))


@dataclass(frozen=True)
class Goal:
    """What has to be installed."""

    checkout: Path
    version: str
    torch: str

    def faults(self, inventory: Inventory) -> list[str]:
        """What is not so yet in an environment: nothing, when it is installed."""
        found = self.misplaced(inventory)
        found += [f"{name} is missing" for name in ("torch", *COMPANIONS) if not inventory.get(name)]
        found += [str(each) for each in sorted(problems(inventory)) if each.requirer in MOVABLE]
        return found

    def misplaced(self, inventory: Inventory) -> list[str]:
        """Whether this checkout, at this version, is what `import transformers` finds."""
        installed, where = inventory.get("transformers"), inventory.transformers
        if not self.installed(inventory):
            version = installed.version if installed else "none"
            return [f"transformers is {version}, expected {self.version} editable from {self.checkout}"]
        if where is None or not where.resolve().is_relative_to((self.checkout / "src").resolve()):
            return [f"import transformers finds {where}, expected it in {self.checkout / 'src'}"]
        return []

    def installed(self, inventory: Inventory) -> bool:
        """Whether the metadata says that this checkout is installed, at this version."""
        found = inventory.get("transformers")
        return from_checkout(inventory, self.checkout) and found is not None and same(found.version, self.version)

    def words(self, inventory: Inventory) -> list[str]:
        """What to ask pip for: torch only if it is missing, the companions by name to stay consistent."""
        asked = ["accelerate", *(name for name in COMPANIONS if inventory.get(name))]
        torch = [] if inventory.get("torch") else [f"torch=={self.torch}"]
        return [*torch, *dict.fromkeys(asked), "--editable", str(self.checkout)]


def goal(root: Path, pin: Pin) -> Goal:
    """The pin's version with the fork's tag, editable from the checkout."""
    parser = configparser.ConfigParser(interpolation=None)
    file = Project(root).overlay / "setup.cfg"
    parser.read(file, encoding="utf-8")
    tag = parser.get("egg_info", "tag_build", fallback="")
    if not tag:
        raise ForkError(f"{file} sets no [egg_info] tag_build, expected +masks.N", next=f"git checkout '{file}'")
    return Goal(Project(root).checkout, f"{pin.version}{tag}", pin.torch)


def install(root: Path, source: Source = Source.AUTO, upstream: str = "") -> Environment:
    """Install the fork into the research environment; nothing is done twice. The caller holds the lock."""
    environment = prepare(root)
    pin = chosen_pin(root, upstream)
    wanted = goal(root, pin)
    inventory = take(environment)
    refuse_excluded(environment, inventory, wanted.version)
    series.apply(root, source, pin.version)
    inventory, unfinished = mended(environment, inventory)
    lost = unfinished.lost(inventory) if unfinished else []
    if wanted.faults(inventory) or lost:
        before = unfinished or journal.of(inventory, MOVABLE)
        words = wanted.words(inventory) + [name for name in lost if name not in MOVABLE]
        inventory = change(root, environment, inventory, before, words)
        require(wanted.faults(inventory), environment)
        print(f"transformers {wanted.version} is installed in {environment.home}")
    else:
        print(f"transformers {wanted.version} is installed in {environment.home}: nothing to do")
    journal.close(environment)
    warn_of_old_torch(inventory)
    warn_of_spaces(environment)
    return environment


def uninstall(root: Path) -> None:
    """Put the stock release of the same version back. The caller holds the lock."""
    environment = locate(root)
    inventory, unfinished = mended(environment, take(environment))
    lost = unfinished.lost(inventory) if unfinished else []
    if from_checkout(inventory, Project(root).checkout) or "transformers" in lost:
        lost = [name for name in lost if name != "transformers"]
        lost.append(f"transformers==={stock_version(root, inventory)}")
    if lost:
        before = unfinished or journal.of(inventory, MOVABLE)
        inventory = change(root, environment, inventory, before, ["--force-reinstall", "--no-deps", *lost])
    journal.close(environment)
    installed = inventory.get("transformers")
    here = f"transformers {installed.version}" if installed else "no transformers"
    print(f"{here} is installed in {environment.home}{'' if lost else ': nothing to do'}")


def stock_version(root: Path, inventory: Inventory) -> str:
    """The release that the installed fork stands on; the pin's when there is none."""
    installed = inventory.get("transformers")
    return Version(installed.version).public if installed else chosen_pin(root).version


def from_checkout(inventory: Inventory, checkout: Path) -> bool:
    """Whether the installed transformers is an editable install of this checkout."""
    installed = inventory.get("transformers")
    return bool(installed and installed.editable and installed.editable.resolve() == checkout.resolve())


def same(one: str, other: str) -> bool:
    """Whether two version numbers mean the same."""
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def refuse_excluded(environment: Environment, inventory: Inventory, version: str) -> None:
    """Before anything is touched: does an installed package forbid this version?"""
    unfinished = journal.read(environment)
    known = {(each.requirer, each.requirement) for each in unfinished.problems} if unfinished else set()
    against = excluding(inventory, "transformers", version)
    against = [each for each in against if (each.requirer, each.requirement) not in known]
    if against:
        told = "; ".join(f"{each.requirer} requires {each.requirement}" for each in against)
        raise ForkError(
            f"transformers {version} is not allowed in {environment.home}: {told}. Nothing was changed",
            next=f"pip install --upgrade {' '.join(each.requirer for each in against)} there, "
            "or make install VENV=another/path",
        )


def require(faults: list[str], environment: Environment) -> None:
    """pip was content; the facts must be too."""
    if faults:
        raise ForkError(
            f"pip ended well, but in {environment.home}: {'; '.join(faults)}",
            next=f"remove what is in the way, then make install{venv_argument(environment)}",
        )


def warn_of_old_torch(inventory: Inventory) -> None:
    """Torch is left alone; too old for this transformers, it is at least said."""
    torch, transformers = inventory.get("torch"), inventory.get("transformers")
    if torch is None or transformers is None:
        return
    for requirement in requirements(transformers, inventory.markers, extra="torch"):
        if requirement.name == "torch" and not met(requirement, torch.version):
            print(f"warning: torch {torch.version} is left; transformers needs torch{requirement.specifier}")


def warn_of_spaces(environment: Environment) -> None:
    """Everything here works in such a path but torch's compiler, which breaks its linker's command there."""
    if " " in str(environment.home):
        print(
            f"warning: torch cannot compile from a path with a space, {environment.home}: torch.compile and "
            "flex_attention will fail; VENV= can name another"
        )
