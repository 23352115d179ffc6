"""`make install`, killed: whatever the moment, the next run puts it right."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_wheels import FORKED, bare_venv, pip, put, python, site, stub, stubs, versions
from tiny_upstream import Tiny

from fork import journal
from fork.env import Environment, Origin
from fork.inventory import take


SCRIPTS = Path(__file__).parents[2] / "scripts"
KILLS = 7


def start(tiny: Tiny) -> subprocess.Popen[bytes]:
    """Begin an install in a process group of its own."""
    command = [sys.executable, "-m", "fork", "--root", str(tiny.root), "install", "--source", "sdist"]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(SCRIPTS)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def killed(tiny: Tiny, delay: float, ripe: Callable[[], bool] = lambda: True) -> bool:
    """Begin an install; once it is ripe, and after a delay, kill it with all its children; was it still running?"""
    run = start(tiny)
    while run.poll() is None and not ripe():
        time.sleep(0.001)
    time.sleep(delay)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return alive


def harm(home: Path) -> bool:
    """Whether a package is half there, put aside or gone."""
    environment = Environment(home, Origin.NAMED)
    unfinished, inventory = journal.read(environment), take(environment)
    if unfinished is None:
        return False
    return bool(unfinished.broken(inventory) or unfinished.stashed(inventory) or unfinished.lost(inventory))


def put_right(tiny: Tiny, home: Path) -> None:
    """The next run succeeds, and leaves nothing of what went before."""
    tiny.ok("install", "--source", "sdist")
    assert versions(home)["transformers"] == FORKED
    pip(home, "check")
    where = python(
        home, "import accelerate, safetensors, tokenizers, torch, transformers; print(transformers.__file__)"
    )
    assert Path(where).is_relative_to(tiny.checkout)
    assert not list(site(home).glob("~*"))
    assert not list(home.glob("fork-*"))
    assert "nothing to do" in tiny.ok("install", "--source", "sdist").out


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_from_nothing(
    tiny: Tiny, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    home = tmp_path / "an env"
    monkeypatch.setenv("WHEELHOUSE", str(wheels))
    monkeypatch.setenv("VENV", str(home))
    began = time.monotonic()
    assert start(tiny).wait() == 0
    whole_run = time.monotonic() - began

    # The first half starts from nothing, the second from what the first half has left.
    draw, hits = random.Random(seed), 0
    for kill in range(KILLS):
        if kill < KILLS // 2:
            shutil.rmtree(home, ignore_errors=True)
            shutil.rmtree(tiny.checkout, ignore_errors=True)
        hits += killed(tiny, draw.uniform(0, whole_run))
    assert hits >= KILLS // 2
    put_right(tiny, home)


def test_killed_while_packages_are_replaced(tiny: Tiny, home: Path, wheels: Path, tmp_path: Path) -> None:
    """pip puts old packages aside and writes new ones; another package's requirement holds all the same."""
    datasets = stub(tmp_path, "datasets", "4.0.0", ["huggingface-hub<1.7", "safetensors>=0.7"])
    names = [
        "transformers-4.57.0",
        "tokenizers-0.19.0",
        "huggingface_hub-1.4.0",
        "torch-2.6.0",
        "safetensors-0.7.0",
    ]
    log = tiny.root / ".fork" / "pip.log"
    draw, harmed = random.Random(3), 0

    def changing() -> bool:
        """Not indented, it is the environment's turn and not that of the build's own."""
        return log.exists() and bool(re.search(r"^\S+ Installing collected", log.read_text(), re.MULTILINE))

    def replacing() -> bool:
        """pip has just put something aside."""
        return any(entry.startswith("~") for entry in os.listdir(place))

    for kill in range(KILLS):
        log.unlink(missing_ok=True)
        if kill % 2 == 0:
            shutil.rmtree(home, ignore_errors=True)
            put(bare_venv(home), *stubs(wheels, *names), datasets)
            place = site(home)
            killed(tiny, draw.uniform(0, 0.05), replacing)
        else:
            killed(tiny, draw.uniform(0, 0.35), changing)
        harmed += harm(home)
    assert harmed, "no kill left anything to mend"
    put_right(tiny, home)
    shown = versions(home)
    assert (shown["torch"], shown["datasets"], shown["huggingface-hub"]) == ("2.6.0", "4.0.0", "1.5.0")
