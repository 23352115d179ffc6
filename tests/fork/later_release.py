"""Upstream goes on: further releases of the small upstream, for one test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiny_upstream import SDIST_ONLY, UPSTREAM, VERSION, Tiny, git, pack, write

from fork.pins import Pin


@dataclass(frozen=True)
class Later:
    """A copy of the small upstream, the wheelhouse of its later sdists, and a project that fetches from both."""

    tiny: Tiny
    upstream: Path
    wheelhouse: Path

    def release(self, version: str, files: Mapping[str, str], sdist: bool = True) -> Pin:
        """Publish a release that differs from the first one in these files."""
        numbered = ("setup.py", "src/transformers/__init__.py")
        changed = {name: UPSTREAM[name].replace(VERSION, version) for name in numbered} | dict(files)
        git(self.upstream, "checkout", "--quiet", "--detach", self.tiny.release.commit)
        write(self.upstream, changed)
        git(self.upstream, "add", "--all")
        git(self.upstream, "commit", "--quiet", "--message", f"Release {version}")
        git(self.upstream, "tag", f"v{version}")
        commit = git(self.upstream, "rev-parse", "HEAD").strip()
        told = {name: text.replace(VERSION, version) for name, text in SDIST_ONLY.items()}
        archive = self.wheelhouse / f"transformers-{version}.tar.gz"
        sha256 = pack(archive, UPSTREAM | told | changed, version) if sdist else "0" * 64
        return Pin(version, f"v{version}", commit, sha256, "2.13.0")

    def known(self, version: str, files: Mapping[str, str]) -> Pin:
        """Publish a release that the project has pinned already, without a series for it."""
        pin = self.release(version, files)
        write(self.tiny.root, {f"patches/{pin.tag}/pin.cfg": pin.text()})
        return pin

    def remove(self, version: str, name: str) -> None:
        """Take a file out of a release's sdist."""
        files = {
            each: text.replace(VERSION, version) for each, text in (UPSTREAM | SDIST_ONLY).items() if each != name
        }
        pack(self.wheelhouse / f"transformers-{version}.tar.gz", files, version)

    def pin(self, version: str, files: Mapping[str, str], commit: bool = True) -> Pin:
        """Publish a release whose patched files are as before, and give the project a series for it."""
        pin = self.release(version, files)
        pin = pin if commit else Pin(pin.version, pin.tag, None, pin.sdist_sha256, pin.torch)
        folder = self.tiny.root / "patches" / pin.tag
        folder.mkdir()
        for file in self.tiny.series.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "pin.cfg").write_text(pin.text())
        return pin
