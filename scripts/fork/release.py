"""A release that is to become a pin: its version, sha256 and commit, each checked against the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import InvalidVersion, Version

from fork.derive import diff
from fork.errors import ForkError
from fork.git import Git
from fork.pins import Pin, all_pins
from fork.project import SUBMODULE
from fork.sdist import download, read_sha256
from fork.source import Source, fetch_base, fetch_commit, import_sdist, known_base, resolve_tag, submodule_url


@dataclass(frozen=True)
class Release:
    """A pin, its base commit, and whether its sha256 was recorded just now, from what the index gave."""

    pin: Pin
    base: str
    anew: bool


def bring(git: Git, root: Path, version: str, like: Pin, source: Source, scratch: Path) -> Release:
    """The release's source in the checkout's repository. What is not pinned yet takes torch from another pin."""
    wanted = read_version(version)
    for pin in all_pins(root):
        if Version(pin.version) == wanted:
            return Release(pin, known_base(git, pin, source) or fetch_base(git, root, pin, source, scratch), False)
    archive = download(str(wanted), scratch, None)
    number = archive.name.removeprefix(f"{SUBMODULE}-").removesuffix(".tar.gz")
    sha256 = read_sha256(archive)
    pin = Pin(number, f"v{number}", None, sha256, like.torch)
    print(f"source: {pin.tag} from the sdist; sha256 {sha256} is recorded anew, as the package index gave it")
    base = import_sdist(git, pin, scratch)
    if source is Source.SDIST:
        return Release(pin, base, True)
    commit = find_commit(git, root, pin, base)
    return Release(replace(pin, commit=commit), commit if commit and source is Source.GIT else base, True)


def read_version(version: str) -> Version:
    """A version, as TO= names it."""
    try:
        return Version(version.removeprefix("v"))
    except InvalidVersion:
        raise ForkError(
            f"TO is {version!r}, expected the version of a release, such as 5.23.0", next="make rebase TO=VERSION"
        ) from None


def find_commit(git: Git, root: Path, pin: Pin, base: str) -> str | None:
    """The commit of the release's tag, if upstream's repository can be asked and holds what the sdist holds."""
    url = submodule_url(root)
    commit = resolve_tag(git, url, pin.tag)
    if commit is None or fetch_commit(git, url, commit) is not None:
        print(f"commit: not recorded, as {url} gives no {pin.tag}; the pin stands on its sdist")
        return None
    differ = [entry.path for entry in diff(git, f"{base}:src/{SUBMODULE}", f"{commit}:src/{SUBMODULE}")
              if entry.old != entry.new and set(entry.old) != {"0"}]  # fmt: skip
    if differ:
        raise ForkError(
            f"tag {pin.tag} of {url} is commit {commit}, whose src/{SUBMODULE} differs from the sdist's in "
            f"{len(differ)} files ({differ[0]}, ...); expected the same release in both",
            next=f"find out which is right; to take the sdist alone: make rebase TO={pin.version} SOURCE=sdist",
        )
    print(f"commit: {commit} is {pin.tag}, and holds the sdist's src/{SUBMODULE} byte for byte")
    return commit
