"""Kill the tool at random moments of its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tiny_upstream import Tiny


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def start(tiny: Tiny, *words: str) -> subprocess.Popen[bytes]:
    """The tool in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fork", "--root", str(tiny.root), *words],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@dataclass
class Killer:
    """Runs a command of the tool and kills it, between the start of its work and its end.

    How long a run takes changes with what else the machine does, so a run that ends before its moment comes tells
    the end for those that follow.
    """

    tiny: Tiny
    words: tuple[str, ...]
    status: int = 0
    moments: Random = field(default_factory=lambda: Random(0))
    killed: int = 0
    begin: float = 0.0
    end: float = 0.0

    def time(self) -> None:
        """Let one run end, and note in seconds when its work began, Python being there, and when it ended."""
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import fork.__main__"], env=os.environ | {"PYTHONPATH": str(SCRIPTS)})
        self.begin = time.monotonic() - began
        began = time.monotonic()
        assert start(self.tiny, *self.words).wait() == self.status
        self._ended_after(time.monotonic() - began)

    def kill(self) -> None:
        """Let one run begin, and kill it with all its children."""
        process, began = start(self.tiny, *self.words), time.monotonic()
        try:
            process.wait(self.moments.uniform(self.begin, self.end))
            self._ended_after(time.monotonic() - began)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.killed += 1

    def _ended_after(self, seconds: float) -> None:
        self.begin, self.end = min(self.begin, 0.7 * seconds), seconds


def leftovers(tiny: Tiny) -> list[Path]:
    """What only a killed run leaves behind."""
    own = [*tiny.checkout.rglob("*.lock"), *(tiny.root / ".git").glob("*.lock")]
    own += (tiny.checkout / ".git" / "worktrees").glob("*/locked")
    return own + [*(tiny.root / ".fork").glob("tmp-*"), *(tiny.root / ".fork").glob("replace")]
