"""Two runs of the same tests, before and after: what differs, for the terminal and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Column, Table

from fork.junit import Case
from fork.prove import Outcome


Cases = Mapping[str, Case]


class Change(Enum):
    """How a test differs. The first three are losses."""

    NEW_FAILURE = "new failure"
    MISSING = "missing"
    SKIPPED = "no longer runs"
    UNSTEADY = "unsteady"
    FIXED = "fixed"
    RUNS = "runs now"


LOSSES = (Change.NEW_FAILURE, Change.MISSING, Change.SKIPPED)


@dataclass(frozen=True)
class Difference:
    """A test that did not end as before."""

    test: str
    change: Change
    said: str


@dataclass(frozen=True)
class Comparison:
    """The same tests on the pin and on the patched tree."""

    title: str
    before: Cases
    after: Cases

    @property
    def differences(self) -> list[Difference]:
        """What differs, losses first."""
        found = []
        for test in {*self.before, *self.after}:
            before, after = self.before.get(test), self.after.get(test)
            kind = change(before, after)
            if kind:
                found.append(Difference(test, kind, after.said if after else ""))
        return sorted(found, key=lambda each: (list(Change).index(each.change), each.test))

    @property
    def losses(self) -> list[Difference]:
        """What was better before."""
        return [each for each in self.differences if each.change in LOSSES]

    def markdown(self) -> str:
        """The report as a page."""
        lines = [f"# {self.title}", "", "| tree | " + " | ".join(COUNTED) + " |", "| --- |" + " ---: |" * len(COUNTED)]
        for name, cases in (("the pin", self.before), ("with the patches", self.after)):
            lines.append(f"| {name} | " + " | ".join(map(str, counts(cases))) + " |")
        lines += ["", "## What differs", ""]
        lines += [f"- {each.change.value}: `{each.test}`{': ' * bool(each.said)}{each.said}"
                  for each in self.differences] or ["Nothing."]  # fmt: skip
        standing = sorted(test for test, case in self.before.items() if case.outcome is Outcome.FAILED)
        if standing:
            lines += ["", "## What fails on the pin itself", "", *(f"- `{test}`" for test in standing)]
        return "\n".join(lines) + "\n"

    def print(self) -> None:
        """The report in the terminal."""
        console = Console(soft_wrap=True, markup=False, highlight=False)
        table = Table(*(Column(name) for name in ("", *COUNTED)))
        for name, cases in (("the pin", self.before), ("with the patches", self.after)):
            table.add_row(name, *map(str, counts(cases)))
        console.print(table)
        for each in self.differences:
            console.print(f"{each.change.value}: {each.test}{': ' * bool(each.said)}{each.said}")


COUNTED = (Outcome.PASSED.value, Outcome.FAILED.value, Outcome.SKIPPED.value)


def counts(cases: Cases) -> list[int]:
    """How many tests passed, failed and were skipped."""
    ended = Counter(case.outcome.value for case in cases.values())
    return [ended[name] for name in COUNTED]


def change(before: Case | None, after: Case | None) -> Change | None:
    """What has become of a test; None for either stands for a test that is not there."""
    was, outcome = before and before.outcome, after and after.outcome
    if after and after.unsteady:
        return Change.UNSTEADY
    if was is outcome:
        return None
    if outcome is None:
        return Change.MISSING
    if outcome is Outcome.FAILED:
        return Change.NEW_FAILURE
    if outcome is Outcome.SKIPPED:
        return Change.SKIPPED if was else None
    return Change.FIXED if was is Outcome.FAILED else Change.RUNS
