"""A patch's message, from a file or from the user's editor, and who writes it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fork.errors import ForkError
from fork.git import Git, network_environment
from fork.header import PROOF, STATUS
from fork.project import Project


# What came of the user's editor, below the project's root.
WRITTEN = ".fork/MESSAGE"


def describe(git: Git, paths: Sequence[str]) -> str:
    """What a new message starts from; lines with a # do not stay."""
    changes = git.out("diff", "HEAD", "--stat", "--", *paths)
    return (
        f"\n\n\n{STATUS}: Inappropriate [the fork's own]\n{PROOF}: tests/models/test_.py::test_\n\n"
        "# First line: what the patch does. Behind an empty line: why.\n"
        f"# {STATUS}: was it sent to upstream, or why not? {PROOF}: the test that fails without it.\n"
        + "".join(f"# {line}\n" for line in changes.splitlines())
    )


def compose(project: Project, file: str, draft: str) -> str:
    """The message in a file; without one, what the user's editor makes of a draft."""
    if file:
        return _read(Path(file))
    place = project.root / WRITTEN
    place.write_text(draft.rstrip("\n") + "\n", encoding="utf-8")
    editor = _user(project.git, "var", "GIT_EDITOR")
    if subprocess.run(["sh", "-c", f'{editor} "$@"', editor, str(place)]).returncode:
        raise ForkError(
            f"the editor {editor} failed, expected a message in {place}",
            next=f"write the message into a file, then the same command with MESSAGE={place}",
        )
    text = project.git.run("-c", "core.commentChar=#", "stripspace", "--strip-comments", input=_read(place)).stdout
    place.write_text(text, encoding="utf-8")  # if it is refused, it can be mended and given again
    return text


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip() + "\n"
    except OSError as problem:
        raise ForkError(
            f"MESSAGE is {str(file)!r}, which cannot be read ({problem.strerror}); expected a file with a message",
            next="the command with MESSAGE=<file>, or without it",
        ) from None


def author(git: Git) -> dict[str, str]:
    """Who the user is, as git knows them."""
    told = _user(git, "var", "GIT_AUTHOR_IDENT")
    name, _, rest = told.rpartition(" <")
    email, _, date = rest.partition("> ")
    return {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email, "GIT_AUTHOR_DATE": date}


def _user(git: Git, *words: str) -> str:
    """Git as the user's own configuration says."""
    done = subprocess.run(["git", *words], cwd=git.where, env=network_environment(), capture_output=True, text=True)
    if done.returncode:
        raise ForkError(
            f"git {' '.join(words)} said: {done.stderr.strip()}",
            next="git config user.name NAME; git config user.email ADDRESS; then the command again",
        )
    return done.stdout.strip()
