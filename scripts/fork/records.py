"""What is known of each release, in docs/releases.json: a line a release, so that a run can be cut short and go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from fork.errors import ForkError
from fork.progress import Stop
from fork.trial import Smoke, Stopped, Trial


FILE = "docs/releases.json"


@dataclass(frozen=True)
class Record:
    """A release: its sdist's hash as the index gave it, what came of each trial, and a key of what each tried."""

    sha256: str
    keys: tuple[str, ...]
    trials: tuple[Trial, ...]

    def holds(self, keys: Sequence[str]) -> bool:
        """Whether nobody need try again, where trials in order would have these keys."""
        tried = len(self.trials)
        return self.keys == tuple(keys[:tried]) and (self.best.works or tried == len(keys))

    @property
    def best(self) -> Trial:
        """The series to take; of two that are alike the nearer, which was tried first."""
        return max(self.trials, key=lambda trial: trial.rank)


Records = Mapping[str, Record]


def read(root: Path) -> dict[str, Record]:
    """All records, the newest release first."""
    file = root / FILE
    if not file.exists():
        return {}
    try:
        return {version: _record(told) for version, told in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ForkError(
            f"{FILE} is unreadable ({problem!r}), expected what make releases wrote", next=f"git checkout -- {FILE}"
        ) from None


def write(root: Path, records: Records) -> None:
    """The file is there whole or as it was."""
    newest = sorted(records, key=Version, reverse=True)
    lines = ",\n".join(f"{json.dumps(version)}: {json.dumps(asdict(records[version]))}" for version in newest)
    unfinished = (root / FILE).with_suffix(".tmp")
    unfinished.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    unfinished.replace(root / FILE)


def _record(told: dict[str, Any]) -> Record:
    return Record(told["sha256"], tuple(told["keys"]), tuple(_trial(**each) for each in told["trials"]))


def _trial(series: str, adapted: list[str], stopped: list[dict[str, str]], smoke: dict[str, Any] | None) -> Trial:
    stops = tuple(Stopped(each["patch"], Stop(each["why"]), each["said"]) for each in stopped)
    return Trial(series, tuple(adapted), stops, Smoke(**smoke) if smoke else None)
