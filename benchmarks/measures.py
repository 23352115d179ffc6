"""What the benchmarks share: the memory of this process, the machine, and results that are kept."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def held(what: str = "VmRSS") -> float:
    """The memory that this process holds in MiB; `VmHWM`: the most since it was last reset."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def peak() -> float:
    """The most memory that this process held since it was last reset, in MiB."""
    return held("VmHWM")


def reset_peak() -> None:
    """Give back what is free, and forget the peak so far."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def machine() -> dict[str, Any]:
    """Where a measurement was taken, and with what."""
    import torch

    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "machine": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def write_results(name: str, content: dict[str, Any]) -> None:
    """As `results/<name>.json` beside this file."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_results(name: str) -> dict[str, Any]:
    """What was written so before; nothing if there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
