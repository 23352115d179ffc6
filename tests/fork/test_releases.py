"""Every release between the pins is tried by itself, and the page says what came of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from killer import leftovers
from later_release import Later
from stub_wheels import stub
from test_export_series import project
from test_rebase import CONFLICT, MODELING, edited, no_environment
from test_series import MASKING
from test_silent_landing import renamed_class
from tiny_upstream import VERSION, Tiny, write

from fork import companions, records, releases, trial
from fork.bootstrap import PrivateEnvironment
from fork.errors import ForkError
from fork.pins import Pin
from fork.progress import Stop
from fork.project import Project
from fork.records import Record
from fork.releases_page import PAGE, page
from fork.trial import Smoke, Stopped, Trial


__all__ = ["no_environment"]

SMOKE = """\
from transformers import masking, modeling
from transformers.mask_patterns import hooks


def test_the_mask_comes_from_the_hook(monkeypatch):
    monkeypatch.setattr(hooks, "mask", lambda built: "seen")
    assert masking.create_mask(2) == "seen"


def test_embeddings_are_kept():
    assert modeling.Model(None).forward(1) == 1
"""
CLEAN = {"README.md": "moved on\n"}
# Every line of the patch merges, and the model is broken all the same.
BROKEN = edited(MODELING, "        # eleven\n", "        hidden_states += 1\n")
ADAPTED = edited(MODELING, "        # five\n", "        # 5\n")


@pytest.fixture(autouse=True)
def tested(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smoke test of the small project, run by this environment, and only that."""
    write(tiny.root, dict.fromkeys(releases.TESTS, "") | {trial.SMOKE: SMOKE, "docs/gallery.md": ""})
    here = PrivateEnvironment(Path(sys.prefix), Path(__file__))
    monkeypatch.setattr(trial, "environment_for", lambda *_: here)


def lines(tiny: Tiny) -> list[str]:
    """The rows of the table, the newest release first."""
    rows = [line for line in (tiny.root / PAGE).read_text().splitlines() if line.startswith("| 9.")]
    assert page(records.read(tiny.root)).endswith("\n".join([*rows, ""]))
    return rows


def publish(later: Later) -> None:
    """Five releases, and one with a series of its own."""
    later.release("9.10.0", CLEAN)
    later.release("9.11.0", CONFLICT)
    later.release("9.12.0", renamed_class())
    later.release("9.13.0", BROKEN)
    later.release("9.13.1", ADAPTED)
    later.pin("9.14.0", {})


def test_each_release_is_told_as_it_is(tiny: Tiny, later: Later) -> None:
    publish(later)
    before = {name: text for name, text in project(tiny).items() if name.startswith(("patches", "overlay"))}
    tiny.ok("releases")
    assert lines(tiny) == [
        "| 9.14.0 | a pin | clean | 2 of 2 | works |",
        "| 9.13.1 | 9.14.0 | adapted: 0002 | 2 of 2 | works |",
        "| 9.13.0 | 9.14.0 | clean | 1 of 2 | broken: test_embeddings_are_kept: AssertionError: assert 2 == 1 |",
        f"| 9.12.0 | {VERSION} | wrong landing: 0002 | not run | by hand: 0002 meant for Model.forward in {MODELING}, "
        f"went to Base.forward in {MODELING} |",
        f"| 9.11.0 | {VERSION} | conflict: 0002 | not run | by hand: 0002 {MODELING} |",
        f"| 9.10.0 | {VERSION} | clean | 2 of 2 | works |",
        f"| {VERSION} | a pin | clean | 2 of 2 | works |",
    ]
    text = (tiny.root / PAGE).read_text()
    assert "4 of 7 releases work without a hand touching them." in text
    assert f"- {VERSION} to 9.10.0, 2 releases: works\n" in text
    assert {name: text for name, text in project(tiny).items() if name.startswith(("patches", "overlay"))} == before
    assert not tiny.checkout.exists() or not any(tiny.checkout.iterdir())
    assert not leftovers(tiny)


def test_a_patch_that_stops_does_not_keep_the_next_from_being_tried(tiny: Tiny, later: Later) -> None:
    files = edited(MASKING, " for q in rows]\n", " for q in range(length)]\n") | CONFLICT
    later.pin("9.10.0", {})
    later.release("9.9.1", files)
    tiny.ok("releases", "9.9.1")
    (one, other) = records.read(tiny.root)["9.9.1"].trials
    assert [each.patch[:4] for each in one.stopped] == ["0001", "0002"] == [each.patch[:4] for each in other.stopped]
    assert one.stopped[0].said == MASKING


def test_what_is_known_is_not_tried_again(tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    later.release("9.9.1", CLEAN)
    later.pin("9.10.0", {})
    tiny.ok("releases")
    known = records.read(tiny.root)
    monkeypatch.setattr(trial, "download", pytest.fail)
    tiny.ok("releases")
    assert records.read(tiny.root) == known
    monkeypatch.undo()
    hooks = tiny.root / "overlay/src/transformers/mask_patterns/hooks.py"
    hooks.write_text(hooks.read_text() + "\n# another overlay\n")
    monkeypatch.setattr(trial, "environment_for", lambda *_: PrivateEnvironment(Path(sys.prefix), Path(__file__)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tiny.release.wheelhouse} {later.wheelhouse}")
    tiny.ok("releases", "9.9.1")
    changed = records.read(tiny.root)
    assert [version for version in known if changed[version] != known[version]] == ["9.9.1"]
    assert changed["9.9.1"].trials == known["9.9.1"].trials


def test_an_archive_that_is_not_the_recorded_one_is_refused(tiny: Tiny, later: Later) -> None:
    later.release("9.9.1", CLEAN)
    later.pin("9.10.0", {})
    tiny.ok("releases", "9.9.1")
    known = records.read(tiny.root)["9.9.1"]
    later.release("9.9.2", CONFLICT)
    records.write(tiny.root, {"9.9.1": known, "9.9.2": Record(known.sha256, (), known.trials)})
    said = tiny.fails("releases", "9.9.2")
    assert f"expected\n  {known.sha256}" in said
    assert "nothing in it was unpacked or run" in said


def test_cut_short_it_goes_on(tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(later)
    smoke = trial.Workshop._smoke

    def interrupted(shop: trial.Workshop, pin: Pin, release: trial.Fetched, scratch: Path) -> Smoke:
        if release.version == "9.10.0":
            raise KeyboardInterrupt
        return smoke(shop, pin, release, scratch)

    monkeypatch.setattr(trial.Workshop, "_smoke", interrupted)
    assert tiny.main("releases").status == 130
    assert [row.split()[1] for row in lines(tiny)] == ["9.14.0", "9.13.1", "9.13.0", "9.12.0", "9.11.0"]
    assert not list((tiny.root / ".fork").glob("tmp-*"))
    monkeypatch.setattr(trial.Workshop, "_smoke", smoke)
    assert "9.13.0" not in tiny.ok("releases").out
    assert len(lines(tiny)) == 7


def test_a_release_that_is_none_is_refused(tiny: Tiny, later: Later) -> None:
    later.pin("9.10.0", {})
    assert f"'9.9.7' is no release from {VERSION} to 9.10.0" in tiny.fails("releases", "9.9.7")


def test_the_nearest_pin_is_that_with_fewer_releases_between() -> None:
    pins = [Pin(version, f"v{version}", None, "", "") for version in ("1.0.0", "2.0.0")]
    versions = ["2.0.0", "1.9.0", "1.3.0", "1.2.0", "1.1.0", "1.0.0"]
    order = {version: [pin.version for pin in releases.nearest(version, versions, pins)] for version in versions}
    assert order["1.1.0"] == ["1.0.0", "2.0.0"]
    assert order["1.9.0"] == ["2.0.0", "1.0.0"]
    assert order["1.2.0"] == ["1.0.0", "2.0.0"]
    assert order["2.0.0"] == ["2.0.0"]
    assert [pin.version for pin in releases.nearest("0.9.0", versions, pins)] == ["1.0.0"]


def test_the_better_series_is_taken_and_of_equals_the_nearer() -> None:
    stop = Stopped("0001-a.patch", Stop.CONFLICT, "a.py")
    works, broken = Trial("2.0.0", (), (), Smoke(3, 0)), Trial("1.0.0", (), (), Smoke(2, 1, "why"))
    one, two = Trial("1.0.0", (), (stop,), None), Trial("2.0.0", (), (stop, stop), None)
    assert Record("", (), (broken, works)).best == works
    assert Record("", (), (two, one)).best == one
    assert Record("", (), (one, two)).best == one
    assert Record("", (), (one, Trial("2.0.0", (), (stop,), None))).best == one
    assert not Trial("1.0.0", (), (), Smoke(0, 0)).works  # nothing ran


def test_another_series_counts_only_where_it_was_tried() -> None:
    stop = Stopped("0001-a.patch", Stop.CONFLICT, "a.py")
    works, stops = Trial("1.0.0", (), (), Smoke(3, 0)), Trial("1.0.0", (), (stop,), None)
    assert Record("", ("a",), (works,)).holds(["a", "changed"])
    assert not Record("", ("a",), (works,)).holds(["changed", "b"])
    assert not Record("", ("a",), (stops,)).holds(["a", "new"])
    assert Record("", ("a", "b"), (stops, stops)).holds(["a", "b"])
    assert not Record("", ("a", "b"), (stops, works)).holds(["a", "changed"])


def test_an_unreadable_record_is_told(tiny: Tiny) -> None:
    write(tiny.root, {records.FILE: json.dumps({"9.9.0": {}})})
    assert f"{records.FILE} is unreadable" in tiny.fails("releases")


METADATA = "Metadata-Version: 2.1\nName: transformers\nRequires-Python: >=3.10\n"


def test_releases_that_require_alike_share_an_environment(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    packages = [("huggingface-hub", "0.36.0"), ("huggingface-hub", "1.5.0"), ("torch", "2.13.0")]
    packages += [(name, "9.0.0") for name in ("accelerate", "hypothesis", "pytest", "safetensors", "tokenizers")]
    for name, version in packages:
        stub(wheels, name, version, [])
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def home(requirement: str) -> Path:
        told = f'{METADATA}Requires-Dist: {requirement}\nRequires-Dist: nowhere; extra == "dev"\n'
        return companions.environment_for(Project(tiny.root), VERSION, told, "2.13.0").home

    old, new = home("huggingface-hub<1.0,>=0.30"), home("huggingface-hub<2.0,>=1.3")
    assert old != new
    assert home("huggingface-hub<1.0,>=0.34") == old
    assert home("huggingface-hub<2.0,>=1.5") == new
    shutil.rmtree(old)
    assert home("huggingface-hub<1.0,>=0.30") == old


def test_requirements_are_found_where_older_builders_wrote_them(tmp_path: Path) -> None:
    beside = "numpy>=1.17\nrequests\n\n[dev]\nnowhere\n\n[torch]\ntorch>=2.1\n"
    write(tmp_path, {"PKG-INFO": METADATA, "src/transformers.egg-info/requires.txt": beside})
    assert companions.read_metadata(tmp_path) == f"Requires-Dist: numpy>=1.17\nRequires-Dist: requests\n{METADATA}"
    (tmp_path / "PKG-INFO").write_text(f"{METADATA}Requires-Dist: numpy>=2\n")
    assert companions.read_metadata(tmp_path) == f"{METADATA}Requires-Dist: numpy>=2\n"


def test_a_release_for_a_newer_python_says_so(tiny: Tiny) -> None:
    told = METADATA.replace("3.10", "9.99")
    with pytest.raises(ForkError, match="9.9.0 needs Python >=9.99, this is"):
        companions.environment_for(Project(tiny.root), VERSION, told, "2.13.0")


def test_the_committed_page_says_what_is_recorded() -> None:
    """After a hand has touched it: make releases."""
    root = Path(__file__).parents[2]
    assert (root / PAGE).read_text(encoding="utf-8") == page(records.read(root))
