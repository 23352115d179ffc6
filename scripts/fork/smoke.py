"""The smoke test of a rebase: the tests that the patches name, on the old release and on the new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fork.develop import TESTS, equip
from fork.env import locate
from fork.errors import ForkError
from fork.git import Git
from fork.header import read_header
from fork.prove import Outcome, read_outcomes, run_pytest, unpack


@dataclass(frozen=True)
class Smoke:
    """How each test ended on the old release and on the new."""

    old: Mapping[str, Outcome]
    new: Mapping[str, Outcome]

    def differing(self) -> list[str]:
        """The tests that end otherwise now."""
        return [test for test in self.old if self.old[test] != self.new[test]]


def compare(root: Path, git: Git, old: str, new: str, tests: Sequence[str], scratch: Path) -> Smoke:
    """Run the tests on both commits, with the research environment, which must be there; it gets what they need."""
    environment = locate(root)
    equip(root, environment, TESTS)
    outcomes = []
    for name, commit in (("old", old), ("new", new)):
        print(f"smoke test of the {name} release: {len(tests)} tests ...", flush=True)
        tree = scratch / name
        unpack(git, commit, tree)
        report, said = run_pytest(root, environment.python, tests, tree, scratch)
        if not report.exists():
            raise ForkError(f"pytest did not come to an end. It said:\n{said}", next="make test")
        outcomes.append(read_outcomes(report, tests))
    return Smoke(*outcomes)


def proofs(git: Git, commits: Mapping[str, str]) -> list[str]:
    """The tests that these patches name, once each."""
    headers = [read_header(git, name, git.out("log", "-1", "--format=%B", commit)) for name, commit in commits.items()]
    return list(dict.fromkeys(proof for header in headers for proof in header.proofs))
