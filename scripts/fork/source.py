"""Where upstream's source comes from: its git repository, or the release's sdist.

Both end as one base commit in the checkout's repository, kept under `refs/fork/bases/<tag>/<source>`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

from fork.archive import check_sha256, unpack
from fork.errors import ForkError
from fork.git import SETTINGS, Git, network_environment
from fork.pins import Pin
from fork.pip import pip_environment
from fork.project import SUBMODULE, Project


class Source(Enum):
    """The two sources, and the choice between them."""

    GIT = "git"
    SDIST = "sdist"
    AUTO = "auto"


INERT = Path(__file__).parent / "inert"

# What the sdist's builder added to upstream's files.
BUILT = ("PKG-INFO", "setup.cfg", f"src/{SUBMODULE}.egg-info")

PROBE_SECONDS = 20
# Settings of ours that a fetch keeps; the rest of the configuration is the user's.
QUIET = ("core.hooksPath", "core.fsmonitor", "gc.auto", "maintenance.auto", "safe.directory")
# Slower than this for this long, and a transfer is given up.
SLOW = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30")

# A base made from an archive has no history: its author and date are the same everywhere.
IMPORTER = {
    "GIT_AUTHOR_NAME": "Upstream's release",
    "GIT_AUTHOR_EMAIL": "upstream@mask-patterns.invalid",
    "GIT_AUTHOR_DATE": "946684800 +0000",
    "GIT_COMMITTER_DATE": "946684800 +0000",
}


def base_ref(pin: Pin, source: Source) -> str:
    """The ref that holds a pin's base commit from one source."""
    return f"refs/fork/bases/{pin.tag}/{source.value}"


def known_base(git: Git, pin: Pin, source: Source) -> str | None:
    """The pin's base commit, where the repository has it already."""
    if source is not Source.AUTO:
        return git.commit(base_ref(pin, source))
    return known_base(git, pin, Source.GIT) or known_base(git, pin, Source.SDIST)


def fetch_base(git: Git, root: Path, pin: Pin, source: Source, scratch: Path) -> str:
    """Bring the pin's source into the repository: its base commit."""
    if source is not Source.SDIST:
        problem = "its commit is not recorded"
        if pin.commit:
            problem = fetch_commit(git, submodule_url(root), pin.commit) or ""
        if pin.commit and not problem:
            print(f"source: {pin.tag} from git, commit {pin.commit}")
            git.run("update-ref", base_ref(pin, Source.GIT), pin.commit)
            return pin.commit
        if source is Source.GIT:
            raise ForkError(
                f"commit {pin.commit or 'unknown'} ({pin.tag}) could not be fetched, "
                f"expected it at {submodule_url(root)}:\n{problem}",
                next="make apply SOURCE=sdist",
            )
        print(f"source: {pin.tag} from the sdist, as git gives none ({problem.splitlines()[-1]})")
    else:
        print(f"source: {pin.tag} from the sdist")
    archive = download(pin, scratch)
    check_sha256(archive, pin.sdist_sha256)
    commit = import_tree(git, unpack(archive, scratch, archive.name.removesuffix(".tar.gz")), pin, scratch)
    git.run("update-ref", base_ref(pin, Source.SDIST), commit)
    return commit


def submodule_url(root: Path) -> str:
    """The submodule's URL: the clone's own, where it was set, else the project's."""
    git = Project(root).git
    key = f"submodule.{SUBMODULE}.url"
    own = git.run("config", "--local", key, check=False).stdout.strip()
    return own or git.out("config", "--file", ".gitmodules", key)


def fetch_commit(git: Git, url: str, commit: str) -> str | None:
    """Fetch one commit without its history, as the user's own configuration says; the problem, if any."""
    if git.commit(commit):
        return None
    quiet = [word for key in QUIET for word in ("-c", f"{key}={SETTINGS[key]}")]
    probe = ["ls-remote", "--quiet", url, "HEAD"]
    fetch = [*SLOW, "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head",
             "--no-recurse-submodules", url, commit]  # fmt: skip
    for words, seconds in ((probe, PROBE_SECONDS), (fetch, None)):
        try:
            done = subprocess.run(
                ["git", *quiet, *words],
                cwd=git.where,
                env=network_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                close_fds=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer from {url} in {seconds} seconds"
        if done.returncode:
            return done.stderr.strip() or f"git {words[0]} ended with status {done.returncode}"
    return None


def download(pin: Pin, into: Path) -> Path:
    """The pin's sdist, from where pip's own configuration says.

    pip compares the hash before it opens the archive, and then asks it for metadata, which would run its
    setup.py; the backend it finds is an inert one that reads PKG-INFO instead.
    """
    wanted = into / "requirements.txt"
    wanted.write_text(f"{SUBMODULE}=={pin.version} --hash=sha256:{pin.sdist_sha256}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", SUBMODULE, "--require-hashes",
         "--no-build-isolation", "--use-pep517", "--ignore-requires-python", "--progress-bar", "off",
         "--dest", str(into), "--requirement", str(wanted)],
        env=pip_environment() | {"PYTHONPATH": str(INERT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    if done.returncode == 0:
        return into / pin.sdist
    came = re.search(r"Got\s+([0-9a-f]{64})", done.stdout)
    if came:
        raise ForkError(
            f"{pin.sdist} has sha256\n  {came[1]}, expected\n  {pin.sdist_sha256}; nothing in it was unpacked or run",
            next="make apply SOURCE=git, or put the right archive in the index or wheelhouse",
        )
    said = "\n".join(done.stdout.strip().splitlines()[-6:])
    raise ForkError(
        f"pip found no {pin.sdist}, expected it in its index or wheelhouse. pip said:\n{said}",
        next="make apply WHEELHOUSE=<folder that holds it>, or with access to PyPI",
    )


def import_tree(git: Git, tree: Path, pin: Pin, scratch: Path) -> str:
    """One commit, the same on every machine, that holds an unpacked release without its builder's files."""
    importing = Git(tree, {"GIT_DIR": str(git_dir(git)), "GIT_WORK_TREE": str(tree), **IMPORTER})
    importing = importing.having(GIT_INDEX_FILE=scratch / "import-index")
    importing.run("add", "--all", "--force", ".")
    importing.run("rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "--", *BUILT)
    message = f"transformers {pin.version}\n\nThe files of {pin.sdist}\nsha256 {pin.sdist_sha256}\n"
    return importing.out("commit-tree", "-m", message, importing.out("write-tree"))


def git_dir(git: Git) -> Path:
    """The repository's own folder."""
    return Path(git.out("rev-parse", "--absolute-git-dir"))
