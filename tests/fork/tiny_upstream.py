"""A small upstream, and a small project on it, for the tests of the fork's tool."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from fork.__main__ import main
from fork.pins import Pin


VERSION = "9.9.0"
TAG = f"v{VERSION}"
URL = "https://upstream.invalid/huggingface/transformers.git"

HEADS = "\n".join(
    f"""

class {name}:
    def __init__(self, config):
        self.config = config

    def forward(self, inputs_embeds, attention_mask=None, **kwargs):
        # one
        # two
        # three
        # four
        # five
        # six
        hidden_states = inputs_embeds
        # seven
        # eight
        # nine
        # ten
        # eleven
        return hidden_states"""
    for name in ("Model", "ForCausalLM", "ForTokens")
)

# What both the git repository and the sdist hold.
UPSTREAM = {
    "README.md": "# transformers, but small\n",
    "LICENSE": "Apache-2.0\n",
    "setup.py": dedent(
        f"""\
        from setuptools import find_packages, setup

        setup(
            name="transformers",
            version="{VERSION}",
            package_dir={{"": "src"}},
            packages=find_packages("src"),
            python_requires=">=3.10",
            install_requires=[
                "huggingface-hub>=1.5.0,<2.0",
                "safetensors>=0.4.3",
                "tokenizers>=0.22.0,<=0.23.3",
            ],
            extras_require={{"torch": ["torch>=2.4", "accelerate>=1.1.0"]}},
        )
        """
    ),
    "src/transformers/__init__.py": f'__version__ = "{VERSION}"\n',
    "src/transformers/masking.py": dedent(
        """\
        import math


        def create_mask(length):
            rows = range(length)
            return [[int(k <= q) for k in rows] for q in rows]


        def scale(size):
            return 1 / math.sqrt(size)
        """
    ),
    "src/transformers/modeling.py": "from transformers.masking import create_mask\n" + HEADS + "\n",
    "tests/test_masking.py": "def test_nothing():\n    pass\n",
}
# What only one of them holds, as with the real ones.
GIT_ONLY = {
    ".gitattributes": "*.py\teol=lf\n",
    ".gitignore": "__pycache__/\n*.egg-info/\n",
    "utils/check.py": "print('checked')\n",
}
SDIST_ONLY = {
    "PKG-INFO": f"Metadata-Version: 2.4\nName: transformers\nVersion: {VERSION}\n",
    "setup.cfg": "[egg_info]\ntag_build = \ntag_date = 0\n\n",
    "src/transformers.egg-info/PKG-INFO": f"Metadata-Version: 2.4\nName: transformers\nVersion: {VERSION}\n",
    "src/transformers.egg-info/SOURCES.txt": "setup.py\n",
}

OVERLAY = {
    "setup.cfg": "[egg_info]\ntag_build = +masks.1\n",
    "src/transformers/mask_patterns/__init__.py": '"""The mask library."""\n',
    "src/transformers/mask_patterns/hooks.py": dedent(
        """\
        def mask(built):
            return built


        def embeds(hidden_states):
            return hidden_states
        """
    ),
}

IMPORT = "from transformers.mask_patterns import hooks\n"

# Each patch: subject, proof, and the edits (file, before, after) it makes.
PATCHES = (
    (
        "Ask the hook for the mask",
        "tests/test_proof.py::test_mask",
        (
            ("src/transformers/masking.py", "import math\n", f"import math\n\n{IMPORT}"),
            (
                "src/transformers/masking.py",
                "    return [[int(k <= q) for k in rows] for q in rows]\n",
                "    return hooks.mask([[int(k <= q) for k in rows] for q in rows])\n",
            ),
        ),
    ),
    (
        "Show the hook the embeddings",
        "tests/test_proof.py::test_embeds",
        (
            (
                "src/transformers/modeling.py",
                "import create_mask\n",
                f"import create_mask\n{IMPORT}",
            ),
            (
                "src/transformers/modeling.py",
                "        hidden_states = inputs_embeds\n",
                "        hidden_states = hooks.embeds(inputs_embeds)\n",
            ),
        ),
    ),
)  # fmt: skip


def git(where: Path, *words: str, **variables: str) -> str:
    """Git for the tests themselves: plain, whatever the configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "Ann Author"), ("EMAIL", "ann@example.invalid"),
                               ("DATE", "2026-01-02T03:04:05+0100"))}  # fmt: skip
    done = subprocess.run(
        ["git", *words],
        cwd=where,
        env=kept | plain | who | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"git {' '.join(words)}: {done.stderr}"
    return done.stdout


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def pack(archive: Path, files: Mapping[str, str], version: str = VERSION) -> str:
    """Write a release archive as an sdist builder does, and return its sha256."""
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"transformers-{version}/{name}")
            data = text.encode()
            member.size, member.mode, member.uid, member.gid = len(data), 0o644, 1001, 1001
            tar.addfile(member, io.BytesIO(data))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def series(upstream: Path, overlay: Path, patches: Path) -> None:
    """Make the small series with git alone, as an oracle for the tool's own export."""
    work = upstream.parent / "series"
    git(upstream.parent, "clone", "--quiet", str(upstream), str(work))
    shutil.copytree(overlay, work, dirs_exist_ok=True)
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "overlay")
    base = git(work, "rev-parse", "HEAD").strip()
    for subject, proof, edits in PATCHES:
        for name, before, after in edits:
            text = (work / name).read_text()
            assert before in text
            (work / name).write_text(text.replace(before, after, 1))
        trailers = f"Upstream-Status: not sent\nProved-By: {proof}\n"
        message = f"{subject}\n\nSo that a pattern can change it.\n\n{trailers}"
        git(work, "commit", "--quiet", "--all", "--message", message)
    git(work, "format-patch", "--quiet", "--full-index", "--zero-commit", "--no-signature", "--no-stat",
        "--no-numbered", "--unified=10", "--output-directory", str(patches), base)  # fmt: skip
    shutil.rmtree(work)


@dataclass(frozen=True)
class Release:
    """The small upstream: the pin, its git repository, the wheelhouse with its sdist, a project to copy."""

    pin: Pin
    upstream: Path
    wheelhouse: Path
    project: Path

    @property
    def commit(self) -> str:
        """The pin's commit."""
        assert self.pin.commit
        return self.pin.commit


def build_release(folder: Path) -> Release:
    """Make the small upstream, as git repository and as sdist, and the project on it."""
    upstream, wheelhouse, project = folder / "upstream", folder / "wheelhouse", folder / "project"
    write(upstream, UPSTREAM | GIT_ONLY)
    git(upstream, "init", "--quiet", "--initial-branch", "main")
    git(upstream, "add", "--all")
    git(upstream, "commit", "--quiet", "--message", "Release")
    wheelhouse.mkdir()
    sha256 = pack(wheelhouse / f"transformers-{VERSION}.tar.gz", UPSTREAM | SDIST_ONLY)
    pin = Pin(VERSION, TAG, git(upstream, "rev-parse", "HEAD").strip(), sha256, "2.13.0")
    make_project(project, upstream, pin)
    # Upstream moves on: the pin is not the tip, and has to be asked for by its id.
    write(upstream, {"src/transformers/masking.py": "moved = True\n"})
    git(upstream, "commit", "--quiet", "--all", "--message", "After the release")
    return Release(pin, upstream, wheelhouse, project)


def make_project(project: Path, upstream: Path, pin: Pin) -> None:
    """Write the small project and commit it."""
    write(project, {f"overlay/{name}": text for name, text in OVERLAY.items()})
    write(project, {
        ".gitignore": "/.fork/\n/.venv/\n__pycache__/\n",
        ".gitmodules": f'[submodule "transformers"]\n\tpath = transformers\n\turl = {URL}\n'
        "\tignore = all\n\tshallow = true\n\tfetchRecurseSubmodules = false\n",
        "setup.cfg": "[metadata]\nname = tiny\nversion = 1\n",
        f"patches/{TAG}/pin.cfg": pin.text(),
        f"patches/{TAG}/landing.json": LANDING,
        "tests/test_proof.py": PROOF,
    })  # fmt: skip
    series(upstream, project / "overlay", project / "patches" / TAG)
    git(project, "init", "--quiet", "--initial-branch", "main")
    git(project, "add", "--all")
    git(project, "update-index", "--add", "--cacheinfo", f"160000,{pin.commit},transformers")
    git(project, "commit", "--quiet", "--message", "Project")


LANDING = """\
{
 "0001-Ask-the-hook-for-the-mask.patch": [
  {"file": "src/transformers/masking.py", "change": "f192dd4a34e9", "scopes": ["<module>"], "names": []},
  {"file": "src/transformers/masking.py", "change": "2aa37035b02a", "scopes": ["create_mask"], \
"names": ["hooks", "int", "k", "q", "rows"]}
 ],
 "0002-Show-the-hook-the-embeddings.patch": [
  {"file": "src/transformers/modeling.py", "change": "795a6858c972", "scopes": ["<module>"], "names": []},
  {"file": "src/transformers/modeling.py", "change": "e4516adf8b6a", "scopes": ["Model.forward"], \
"names": ["hooks", "inputs_embeds"]}
 ]
}
"""

# Both hooks count: without its patch, each test fails, and both pass with the whole series.
PROOF = dedent(
    """\
    from transformers import masking, modeling
    from transformers.mask_patterns import hooks


    def test_mask(monkeypatch):
        monkeypatch.setattr(hooks, "mask", lambda built: "seen")
        assert masking.create_mask(2) == "seen"


    def test_embeds(monkeypatch):
        monkeypatch.setattr(hooks, "embeds", lambda states: "seen")
        assert modeling.Model(None).forward(1) == "seen"
    """
)


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Tiny:
    """A clone of the small project, for one test; the path has a space."""

    root: Path
    release: Release
    capture: pytest.CaptureFixture[str]

    @property
    def checkout(self) -> Path:
        """The project's `transformers/`."""
        return self.root / "transformers"

    @property
    def series(self) -> Path:
        """The pin's folder of patches."""
        return self.root / "patches" / TAG

    def main(self, *words: str) -> Result:
        """Run the tool as the command line does."""
        self.capture.readouterr()
        status = main(["--root", str(self.root), *words])
        captured = self.capture.readouterr()
        return Result(status, captured.out, captured.err)

    def ok(self, *words: str) -> Result:
        """Run the tool; it must succeed."""
        result = self.main(*words)
        assert result.status == 0, result.err + result.out
        return result

    def fails(self, *words: str) -> str:
        """Run the tool; it must refuse, and say what to do next."""
        result = self.main(*words)
        assert result.status == 1, result.out
        assert "next:  " in result.err.strip().splitlines()[-1]
        return result.err
