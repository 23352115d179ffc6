"""`make test-upstream`: the same tests on the pin and patched, and only what differs is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from textwrap import dedent

import pytest
import tiny_upstream
from tiny_upstream import Tiny, build_release, write

from fork import upstream_tests
from fork.bootstrap import PrivateEnvironment
from fork.env import Environment, Origin
from fork.git import Git


REAL = Path(__file__).parents[1] / "upstream"

# The patches put `hooks` into masking.py: what is asked of it tells the two trees apart.
TESTS = dedent(
    """\
    import unittest
    from pathlib import Path

    import pytest

    import transformers

    patched = "hooks" in Path(transformers.__file__).with_name("masking.py").read_text()

    class Test(unittest.TestCase):
        def test_same(self):
            for number in range(2):
                with self.subTest(number=number):
                    self.assertIn("masks", str(transformers.__file__) + "masks")

        def test_same_failure(self):
            self.fail("always")

        def test_same_skip(self):
            self.skipTest("never")
    """
)
DIFFERING = dedent(
    """\

        def test_new_failure(self):
            self.assertFalse(patched, "it is patched")

        def test_unsteady(self):
            failed = Path(__file__).with_name("failed")
            if patched and not failed.exists():
                failed.touch()
                self.fail("once")

        def test_new_failure_in_a_part(self):
            with self.subTest(part=1):
                self.assertFalse(patched)

        def test_fixed(self):
            self.assertTrue(patched)

        @unittest.skipIf(patched, "not any more")
        def test_skipped(self):
            pass

    @pytest.mark.parametrize("size", [1] if patched else [1, 2])
    def test_missing(size):
        pass
    """
)


@pytest.fixture
def driven(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A project whose driver asks which tree it is on, in the environment that runs the tests."""
    environment = Environment(Path(sys.prefix), Origin.OWN)
    monkeypatch.setattr(upstream_tests, "ready", lambda *_: environment)
    driver = tiny.root / "tests" / "upstream"
    write(driver, {"model_tests.py": TESTS + DIFFERING})
    shutil.copy(REAL / "tree_guard.py", driver)
    return tiny


def differences(page: str) -> list[str]:
    """The lines of the page under that title, without what the tests said."""
    listed = page.partition("## What differs\n\n")[2].partition("\n\n")[0].splitlines()
    return [line.rpartition("`")[0].replace("`", "") or line for line in listed]


def test_only_differences_are_told_losses_fail_and_the_pin_is_tested_once(driven: Tiny) -> None:
    first = driven.main("test-upstream", "--jobs", "1", "--source", "sdist")
    assert first.status == 1
    assert "4 of upstream's tests are lost" in first.err
    assert "upstream's tests on pin" in first.out
    page = (driven.root / ".fork" / "upstream" / "report.md").read_text()
    assert differences(page) == [
        "- new failure: model_tests.py::Test::test_new_failure",
        "- new failure: model_tests.py::Test::test_new_failure_in_a_part",
        "- missing: model_tests.py::test_missing[2]",
        "- no longer runs: model_tests.py::Test::test_skipped",
        "- unsteady: model_tests.py::Test::test_unsteady",
        "- fixed: model_tests.py::Test::test_fixed",
    ]
    assert "failed once, then passed 3 times; it had said: AssertionError: once" in page
    assert "it is patched" in page
    assert "| the pin | 7 | 2 | 1 |\n| with the patches | 4 | 3 | 2 |" in page
    assert page.endswith(
        "itself\n\n- `model_tests.py::Test::test_fixed`\n- `model_tests.py::Test::test_same_failure`\n"
    )
    junit = ElementTree.parse(driven.root / ".fork" / "upstream" / "patched.xml")
    assert len({case.get("name") for case in junit.iter("testcase")}) == 9

    again = driven.main("test-upstream", "--jobs", "1", "--source", "sdist")
    assert "4 of upstream's tests are lost" in again.err
    assert "unsteady" not in again.out
    assert "known from before" in again.out
    assert "upstream's tests on pin" not in again.out


def test_another_selection_driver_or_setting_is_another_baseline(
    driven: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven.ok("apply")
    git, environment = Git(driven.checkout), Environment(Path(sys.prefix), Origin.OWN)

    def key(*words: str, base: str = "1" * 40) -> str:
        selection = upstream_tests.Selection(driven.root / "tests" / "upstream" / "model_tests.py", words)
        runner = upstream_tests.Runner(git, environment, selection, driven.root, 1, driven.root)
        return upstream_tests.baseline_key(runner, base)

    keys = [key(), key("-k", "tp"), key(base="2" * 40)]
    assert key() == keys[0]
    monkeypatch.setenv("RUN_SLOW", "1")
    keys.append(key())
    write(driven.root, {"tests/upstream/model_tests.py": TESTS})
    keys.append(key())
    assert len(set(keys)) == 5


def test_a_run_that_breaks_is_no_baseline(driven: Tiny) -> None:
    write(driven.root, {"tests/upstream/model_tests.py": "import nothing_of_that_name\n"})
    said = driven.fails("test-upstream", "--jobs", "1", "--source", "sdist")
    assert "pytest ended with status 2 on pin" in said
    assert not list((driven.root / ".fork" / "upstream").glob("pin-*.xml"))


def test_no_test_runs_on_another_tree(tmp_path: Path) -> None:
    for name in ("meant", "found"):
        write(tmp_path / name, {"src/transformers/__init__.py": "", "tests/__init__.py": ""})
    write(tmp_path, {"test_nothing.py": "def test_nothing():\n    pass\n"})
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for tree, status in (("found", 0), ("meant", 4)):
        search = os.pathsep.join(str(tmp_path / part) for part in ("found/src", "found"))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "tree_guard", "--rootdir", tmp_path, "test_nothing.py"],
            cwd=tmp_path, env=kept | {"PYTHONPATH": f"{search}{os.pathsep}{REAL}", "FORK_TREE": str(tmp_path / tree)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
    assert f"expected it in {tmp_path / 'meant' / 'src'}" in done.stderr


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tiny:
    """A project on an upstream whose git repository holds whole suites and checks of the source."""
    folder = tmp_path / "whole"
    folder.mkdir()
    check = "import sys; from pathlib import Path; sys.exit('hooks' in Path('{}').read_text())\n"
    extra = {
        "tests/__init__.py": "",
        "tests/models/__init__.py": "",
        "tests/models/qwen3/__init__.py": "",
        "tests/models/qwen3/test_modeling_qwen3.py": TESTS,
        "tests/generation/test_all.py": "def test_generation():\n    pass\n",
        "utils/check_copies.py": check.format("src/transformers/modeling.py"),
        "utils/check_modular_conversion.py": check.format("src/transformers/__init__.py"),
    }
    for name, text in extra.items():
        monkeypatch.setitem(tiny_upstream.GIT_ONLY, name, text)
    setup = tiny_upstream.UPSTREAM["setup.py"] + '# "ruff==0.0.1"\n'
    monkeypatch.setitem(tiny_upstream.UPSTREAM, "setup.py", setup)
    release = build_release(folder)
    config = folder / "gitconfig"
    config.write_text(f'[url "{release.upstream}"]\n    insteadOf = {tiny_upstream.URL}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    return Tiny(release.project, release, capsys)


def test_a_git_checkout_has_whole_suites_and_checks_of_its_source(
    whole: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment(Path(sys.prefix), Origin.OWN)
    monkeypatch.setattr(upstream_tests, "ready", lambda *_: environment)

    def make(self: PrivateEnvironment) -> None:
        assert self.requirements.read_text() == "ruff==0.0.1\n"
        write(self.home / "bin", {"ruff": "#!/bin/sh\ncase $1-$* in check-*masking.py*) ;; *) exit 1 ;; esac\n"})
        (self.home / "bin" / "ruff").chmod(0o755)

    monkeypatch.setattr(PrivateEnvironment, "make", make)
    guard = whole.root / "tests" / "upstream"
    guard.mkdir()
    shutil.copy(REAL / "tree_guard.py", guard)
    said = whole.fails("test-upstream", "--jobs", "1", "--source", "git")
    page = (whole.root / ".fork" / "upstream" / "report.md").read_text()
    assert differences(page) == ["- new failure: utils/check_copies.py"], said
    assert "- `tests/models/qwen3/test_modeling_qwen3.py::Test::test_same_failure`" in page
    assert "- `ruff format`" in page
