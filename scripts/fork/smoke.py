"""The smoke test of a rebase: the tests that the patches name, on the old release and on the new one."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fork.env import locate
from fork.git import Git
from fork.header import read_header
from fork.prove import Outcome, run_pytest, unpack, worst


@dataclass(frozen=True)
class Smoke:
    """How each test ended on the old release and on the new."""

    old: Mapping[str, Outcome]
    new: Mapping[str, Outcome]

    def differing(self) -> list[str]:
        """The tests that end otherwise now."""
        return [test for test in self.old if self.old[test] != self.new[test]]


def compare(root: Path, git: Git, old: str, new: str, tests: Sequence[str], scratch: Path) -> Smoke:
    """Run the tests on both commits, with the research environment, which must be there."""
    python = locate(root).python
    outcomes = []
    for name, commit in (("old", old), ("new", new)):
        print(f"smoke test of the {name} release: {len(tests)} tests ...", flush=True)
        tree = scratch / name
        unpack(git, commit, tree)
        report = run_pytest(root, python, tests, tree, scratch)[0]
        outcomes.append(read_outcomes(report, tests))
    return Smoke(*outcomes)


def proofs(git: Git, commits: Mapping[str, str]) -> list[str]:
    """The tests that these patches name, once each."""
    headers = [read_header(git, name, git.out("log", "-1", "--format=%B", commit)) for name, commit in commits.items()]
    return list(dict.fromkeys(proof for header in headers for proof in header.proofs))


def read_outcomes(report: Path, tests: Sequence[str]) -> dict[str, Outcome]:
    """The outcome of each test by its node id; of one with parameters, the worst of its cases."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
    found = {}
    for test in tests:
        file, *scopes = test.split("::")
        place = ".".join([file.removesuffix(".py").replace("/", "."), *scopes[:-1]])
        name = scopes[-1]
        mine = [case for case in cases if case.get("classname") == place
                and (case.get("name") == name or str(case.get("name")).startswith(f"{name}["))]  # fmt: skip
        found[test] = worst(mine)
    return found
