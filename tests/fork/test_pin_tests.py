"""`make test-pins`: every file on every other pin, in as many parts as asked for, each in a clone of the project."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_upstream import Tiny, git, write

from fork import pin_tests
from fork.pin_tests import Part
from fork.pins import Pin
from fork.source import Source


FILES = [f"tests/masks/test_{letter}.py" for letter in "abcdefg"]
JUNIT = '<testsuites><testsuite><testcase classname="tests.masks.test_a" name="test_{name}">{how}</testcase>'
JUNIT += "</testsuite></testsuites>"


@pytest.fixture
def ran(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """A project with two pins more; instead of tests, what would be run is noted, and the second pin fails."""
    noted: list[tuple[str, list[str]]] = []
    for version in ("9.8.0", "9.7.0"):
        pin = Pin(version, f"v{version}", None, tiny.release.pin.sdist_sha256, "2.13.0")
        write(tiny.root / "patches" / pin.tag, {"pin.cfg": pin.text()})
    write(tiny.root, {"tests/masks/test_a.py": "", "tests/models/test_b.py": "", "tests/models/test_c.py": ""})

    def run(clone: Path, pin: Pin, source: Source, report: Path, words: Sequence[str]) -> None:
        assert (clone / "tests/models/test_b.py").exists()
        noted.append((pin.version, list(words)))
        how = '<failure message="wrong"/>' if pin.version == "9.8.0" else ""
        report.write_text(JUNIT.format(name="it", how=how))

    monkeypatch.setattr(pin_tests, "run", run)
    return noted


@pytest.mark.parametrize("of", range(1, len(FILES) + 1))
def test_the_parts_are_all_files_once(of: int) -> None:
    parts = [Part.parse(f"{k}/{of}")(FILES) for k in range(1, of + 1)]
    assert sorted(file for part in parts for file in part) == FILES
    assert {len(part) for part in parts} <= {len(FILES) // of, -(-len(FILES) // of)}


@pytest.mark.parametrize("text", ["0/2", "5/4", "1", "a/b", "1/0", "-1/3", "4/4"])
def test_a_part_that_there_is_not_is_refused(text: str, tiny: Tiny, ran: list[tuple[str, list[str]]]) -> None:
    tiny.fails("test-pins", f"--part={text}")
    assert not ran


def test_all_pins_but_the_default_are_tested_and_failures_are_told(
    tiny: Tiny, ran: list[tuple[str, list[str]]]
) -> None:
    files = ["tests/masks/test_a.py", "tests/models/test_b.py", "tests/models/test_c.py"]
    said = tiny.main("test-pins", "--", "-x")
    assert said.status == 1
    assert ran == [("9.7.0", [*files, "-x"]), ("9.8.0", [*files, "-x"])]
    assert "1 tests failed on other pins" in said.err
    assert said.err.strip().endswith("make test-pins UPSTREAM=9.8.0")
    page = (tiny.root / ".fork" / "pins" / "report.md").read_text()
    assert "| v9.7.0 | 1 | 0 | 0 |\n| v9.8.0 | 0 | 1 | 0 |\n" in page
    assert page.endswith("- v9.8.0 tests/masks/test_a.py::test_it: wrong\n")


def test_a_part_and_one_pin(tiny: Tiny, ran: list[tuple[str, list[str]]]) -> None:
    assert tiny.main("test-pins", "--part", "3/3").status == 1
    tiny.ok("test-pins", "--upstream", "9.7.0", "--part", "1/2")
    assert ran == [
        ("9.7.0", ["tests/models/test_c.py"]),
        ("9.8.0", ["tests/models/test_c.py"]),
        ("9.7.0", ["tests/masks/test_a.py", "tests/models/test_c.py"]),
    ]


def test_the_clone_is_the_project_as_it_is_and_the_project_stays_so(tiny: Tiny) -> None:
    tiny.ok("apply")
    write(tiny.root, {"tests/new.py": "", "overlay/src/transformers/mask_patterns/hooks.py": "changed = True\n"})
    (tiny.root / "tests" / "test_proof.py").unlink()
    before = git(tiny.root, "status", "--porcelain"), git(tiny.root, "log", "--all", "--format=%H", "--branches")
    pin = tiny.release.pin
    for _ in range(2):
        clone = pin_tests.bring(tiny.root, pin)
        assert (clone / "tests/new.py").exists()
        assert not (clone / "tests/test_proof.py").exists()
        assert (clone / "overlay/src/transformers/mask_patterns/hooks.py").read_text() == "changed = True\n"
        assert git(clone, "ls-files", "--stage", "transformers").split()[1] == pin.commit
        assert git(clone, "status", "--porcelain") == ""
    assert git(tiny.root, "status", "--porcelain") == before[0]
    (tiny.root / "tests" / "new.py").unlink()
    assert not (pin_tests.bring(tiny.root, pin) / "tests/new.py").exists()


def test_the_tests_run_in_the_clones_own_environment(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clone, report = tiny.root, tiny.root / "report.xml"
    for name, value in {"VENV": "elsewhere", "VIRTUAL_ENV": "/elsewhere", "PART": "1/2", "PYTHON": "python3"}.items():
        monkeypatch.setenv(name, value)
    called: list[dict[str, str]] = []

    def called_with(words: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[bytes]:
        assert words[:3] == ["sh", "scripts/tool", "test"]
        assert words[words.index("--upstream") + 1] == tiny.release.pin.version
        called.append(env)
        report.write_text("")
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(subprocess, "run", called_with)
    pin_tests.run(clone, tiny.release.pin, Source.AUTO, report, ["tests/masks/test_a.py"])
    assert called[0]["PYTHON"] == "python3"
    assert not {"VENV", "VIRTUAL_ENV", "PART"} & called[0].keys()
