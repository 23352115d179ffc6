"""A patch's header: what, why, `Upstream-Status:` and `Proved-By:` (DESIGN 4.1, rule 9)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fork.errors import ForkError
from fork.git import Git


STATUS = "Upstream-Status"
PROOF = "Proved-By"


@dataclass(frozen=True)
class Header:
    """What a patch says of itself. Proofs are pytest node ids."""

    subject: str
    status: str
    proofs: tuple[str, ...]


AMEND = "git -C transformers commit --amend (or rebase --interactive), then make export"


def read_header(git: Git, name: str, message: str, next: str = AMEND) -> Header:
    """The header in a commit message; whatever is missing is an error that names the patch, and what mends it."""
    subject, _, rest = message.partition("\n")
    parsed = git.out("interpret-trailers", "--parse", "--no-divider", input=message)
    trailers = [line.partition(": ")[::2] for line in parsed.splitlines()]
    status = [value for key, value in trailers if key == STATUS]
    proofs = [value for key, value in trailers if key == PROOF]
    why = [line for line in rest.splitlines() if line.strip() and line.partition(": ")[::2] not in trailers]
    missing = [
        what
        for what, there in (
            ("a subject", subject.strip()),
            ("a body that says why", why),
            (f"one {STATUS}: trailer", len(status) == 1 and status[0]),
            (f"a {PROOF}: <pytest node id> trailer", proofs and all("::" in proof for proof in proofs)),
        )
        if not there
    ]
    if missing:
        raise ForkError(
            f"{name} ({subject!r}) has no {' and no '.join(missing)}; expected all four in its message",
            next=next,
        )
    return Header(subject, status[0], tuple(proofs))


def require_proofs(root: Path, name: str, header: Header, next: str = AMEND) -> None:
    """Each test that a patch names is there to be run."""
    absent = [proof for proof in header.proofs if not _defines(root, proof)]
    if absent:
        raise ForkError(f"{name} says {PROOF}: {', '.join(absent)}, which is no test here; expected one", next=next)


def _defines(root: Path, proof: str) -> bool:
    file, *scopes = proof.split("::")
    path, test = root / file, re.escape(scopes[-1].partition("[")[0])
    return path.is_file() and bool(re.search(rf"^\s*def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE))
