"""Where upstream's source comes from: its git repository, or the release's sdist.

Both end as one base commit in the checkout's repository, kept under `refs/fork/bases/<tag>/<source>`.
"""

from __future__ import annotations

import subprocess
from enum import Enum
from pathlib import Path

from fork.archive import check_sha256, unpack
from fork.errors import ForkError
from fork.git import SETTINGS, Git, network_environment
from fork.pins import Pin
from fork.project import SUBMODULE, Project
from fork.sdist import archive_name, download


class Source(Enum):
    """The two sources, and the choice between them."""

    GIT = "git"
    SDIST = "sdist"
    AUTO = "auto"


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
    if source is Source.SDIST:
        print(f"source: {pin.tag} from the sdist")
        return import_sdist(git, pin, scratch)
    url = submodule_url(root)
    problem = fetch_commit(git, url, pin.commit) if pin.commit else "its commit is not recorded"
    if pin.commit and problem is None:
        print(f"source: {pin.tag} from git, commit {pin.commit}")
        git.run("update-ref", base_ref(pin, Source.GIT), pin.commit)
        return pin.commit
    if source is Source.GIT:
        raise ForkError(
            f"commit {pin.commit or 'unknown'} ({pin.tag}) could not be fetched, expected it at {url}:\n{problem}",
            next="make apply SOURCE=sdist",
        )
    print(f"source: {pin.tag} from the sdist, as git gives none ({str(problem).splitlines()[-1]})")
    return import_sdist(git, pin, scratch)


def import_sdist(git: Git, pin: Pin, scratch: Path) -> str:
    """The base commit from the release's sdist."""
    archive = scratch / archive_name(pin.version)
    if not archive.exists():
        download(pin.version, scratch, pin.sdist_sha256)
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
    fetch = [*SLOW, "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head",
             "--no-recurse-submodules", url, commit]  # fmt: skip
    try:
        network(git, ["ls-remote", "--quiet", url, "HEAD"], PROBE_SECONDS)
        network(git, fetch)
    except NetworkError as problem:
        return str(problem)
    return None


def resolve_tag(git: Git, url: str, tag: str) -> str | None:
    """The commit that upstream's repository has a tag on; None if it cannot be asked, or has no such tag."""
    try:
        told = network(git, ["ls-remote", "--quiet", url, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"], PROBE_SECONDS)
    except NetworkError:
        return None
    commits = [line.split()[0] for line in told.splitlines()]
    return commits[-1] if commits else None  # of an annotated tag, the commit comes last


class NetworkError(Exception):
    """What git said when a repository could not be read."""


def network(git: Git, words: list[str], seconds: int | None = None) -> str:
    """Run git as the user's own configuration says; what it printed."""
    quiet = [word for key in QUIET for word in ("-c", f"{key}={SETTINGS[key]}")]
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
        raise NetworkError(f"no answer in {seconds} seconds") from None
    if done.returncode:
        raise NetworkError(done.stderr.strip() or f"git ended with status {done.returncode}")
    return done.stdout


def import_tree(git: Git, tree: Path, pin: Pin, scratch: Path) -> str:
    """One commit, the same on every machine, that holds an unpacked release without its builder's files."""
    importing = Git(tree, {"GIT_DIR": str(git_dir(git)), "GIT_WORK_TREE": str(tree), **IMPORTER})
    importing = importing.having(GIT_INDEX_FILE=scratch / "import-index")
    importing.run("add", "--all", "--force", ".")
    importing.run("rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "--", *BUILT)
    message = f"transformers {pin.version}\n\nThe files of {archive_name(pin.version)}\nsha256 {pin.sdist_sha256}\n"
    return importing.out("commit-tree", "-m", message, importing.out("write-tree"))


def git_dir(git: Git) -> Path:
    """The repository's own folder."""
    return Path(git.out("rev-parse", "--absolute-git-dir"))
