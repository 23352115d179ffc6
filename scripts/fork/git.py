"""Git, the same on every machine.

`Git` sees no global or system configuration, no hooks and no GIT_* variable of the caller, so what it
computes depends on its input alone. Only `network_environment` lets the user's own configuration in:
a fetch needs their proxies, credentials and url rewrites, and makes no commit.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fork.errors import ForkError, refused


COMMITTER = ("The mask patterns fork", "fork@mask-patterns.invalid")


# The first that knows GIT_CONFIG_GLOBAL.
OLDEST = (2, 32)


class GitDiedError(ForkError):
    """Git was ended by a signal, and may have left its locks."""


# A repository's own configuration is the user's too: what could change a result is set here, where it wins.
SETTINGS = {
    "advice.detachedHead": "false",
    "am.threeWay": "false",
    "apply.ignoreWhitespace": "no",
    "apply.whitespace": "nowarn",
    "commit.gpgSign": "false",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.excludesFile": os.devnull,
    "core.fileMode": "true",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.quotePath": "false",
    "core.symlinks": "true",
    "diff.algorithm": "myers",
    "diff.indentHeuristic": "true",
    "diff.interHunkContext": "0",
    "diff.mnemonicPrefix": "false",
    "diff.noprefix": "false",
    "diff.renames": "false",
    "diff.suppressBlankEmpty": "false",
    "gc.auto": "0",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    "init.defaultBranch": "masks",
    "maintenance.auto": "false",
    "safe.directory": "*",
    "submodule.recurse": "false",
}

# What points git at another repository, index or object store; set inside hooks.
LOCATION = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
)


def hermetic_environment() -> dict[str, str]:
    """The environment in which git makes commits, trees and patches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_COMMITTER_EMAIL": COMMITTER[1],
        "GIT_COMMITTER_NAME": COMMITTER[0],
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_EDITOR": "false",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }


def network_environment() -> dict[str, str]:
    """The environment of a fetch: the user's configuration, but no question asked and no long wait."""
    kept = {name: value for name, value in os.environ.items() if name not in LOCATION}
    own = subprocess.run(["git", "config", "core.sshCommand"], env=kept, capture_output=True).returncode == 0
    if not own and "GIT_SSH" not in kept:
        kept.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=10")
    return kept | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "LC_ALL": "C.UTF-8",
    }


def require_version() -> None:
    """Refuse a git that would read the user's configuration whatever the environment says."""
    told = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout.strip()
    found = re.search(r"(\d+)\.(\d+)", told)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise ForkError(
            f"{told or 'git'} is too old, expected {OLDEST[0]}.{OLDEST[1]} or newer, which can leave out the "
            "user's configuration",
            next="install a newer git, then the command again",
        )


@dataclass(frozen=True)
class Git:
    """Git in one folder. `variables` are added to the hermetic environment."""

    where: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def having(self, **variables: str | Path) -> Git:
        """The same with more environment variables, such as GIT_INDEX_FILE."""
        return Git(self.where, {**self.variables, **{name: str(value) for name, value in variables.items()}})

    def run(
        self, *arguments: str, input: str | bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run git; text out. A failure is a ForkError that shows what git said, unless `check` is off."""
        done = self.run_bytes(*arguments, input=input.encode() if isinstance(input, str) else input, check=check)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="surrogateescape"),
            done.stderr.decode(errors="replace"),
        )  # fmt: skip

    def run_bytes(
        self, *arguments: str, input: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """As `run`, with the output as it is."""
        settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        done = subprocess.run(
            ["git", *settings, *arguments],
            cwd=self.where,
            env=hermetic_environment() | dict(self.variables),
            input=b"" if input is None else input,
            capture_output=True,
            close_fds=False,  # git keeps the lock's descriptor: while it works, no second run may start
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            if refusal := refused(said, self.where):
                raise refusal  # whatever the caller makes of a failure, it would be wrong
            if check:
                raise failed(arguments, self.where, done.returncode, said)
        return done

    def out(self, *arguments: str, input: str | bytes | None = None) -> str:
        """What git printed, without the last newline."""
        return self.run(*arguments, input=input).stdout.removesuffix("\n")

    def lines(self, *arguments: str) -> list[str]:
        """What git printed with -z, split."""
        return [item for item in self.run(*arguments).stdout.split("\0") if item]

    def commit(self, name: str) -> str | None:
        """The commit that a ref or an id names, if it is there."""
        done = self.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False)
        return done.stdout.strip() or None

    def tree(self, commit: str) -> str:
        """A commit's tree id."""
        return self.out("rev-parse", "--verify", f"{commit}^{{tree}}")


def failed(arguments: Sequence[str], where: Path, status: int, said: str) -> ForkError:
    """The error for a git command that should have worked."""
    words = " ".join(arguments)
    kind = GitDiedError if status < 0 else ForkError
    return kind(
        f"git {words} ended with status {status} in {where}, expected 0. Git said:\n{said.strip()}",
        next="make status",
    )
