"""What a JUnit report says of each test, by pytest's node id."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fork.prove import Outcome


# The worst outcome counts where a test is reported several times: with its teardown, or with its subtests.
WORST_FIRST = (Outcome.FAILED, Outcome.PASSED, Outcome.SKIPPED)


@dataclass(frozen=True)
class Case:
    """How one test ended, and in a line why; unsteady if it did not end so each time."""

    outcome: Outcome
    said: str = ""
    unsteady: bool = False


def read_cases(report: Path, root: Path) -> dict[str, Case]:
    """Each test of a report by its node id, which begins with a file below `root`."""
    cases: dict[str, Case] = {}
    for element in ElementTree.parse(report).getroot().iter("testcase"):
        name, case = node_id(element.attrib, root), read_case(element)
        known = cases.get(name, case)
        cases[name] = min(known, case, key=lambda each: WORST_FIRST.index(each.outcome))
    return cases


def read_case(element: ElementTree.Element) -> Case:
    """One report of one test."""
    for tag, outcome in (("failure", Outcome.FAILED), ("error", Outcome.FAILED), ("skipped", Outcome.SKIPPED)):
        found = element.find(tag)
        if found is not None:
            said = (found.get("message") or found.text or "").strip()
            return Case(outcome, said.splitlines()[0] if said else "")
    return Case(Outcome.PASSED)


def node_id(case: Mapping[str, str], root: Path) -> str:
    """pytest's own id; the report has it with dots, as if the file were a module."""
    parts = [part for part in case.get("classname", "").split(".") if part]
    for length in range(len(parts), 0, -1):
        file = Path(*parts[:length]).with_suffix(".py")
        if (root / file).is_file():
            return "::".join([file.as_posix(), *parts[length:], case["name"]])
    # A file that could not be collected is a case of its own, without a class.
    return "::".join(part for part in (case.get("classname", ""), case["name"]) if part)
