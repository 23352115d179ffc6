"""What a run that did not end leaves, and taking it away; who requires what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stub_wheels import listing, put, site, stub, stubs

from fork import journal
from fork.develop import TESTS, equip
from fork.env import Environment, Origin
from fork.errors import ForkError
from fork.inventory import Inventory, take
from fork.journal import Journal, mend
from fork.requirements import Constraint, excluding, problems, standing


@pytest.fixture
def environment(home: Path) -> Environment:
    """The research environment."""
    return Environment(home, Origin.NAMED)


def before(environment: Environment) -> Journal:
    """The journal, written and read again as the next run would."""
    journal.write(environment, journal.of(take(environment), frozenset({"transformers"})))
    found = journal.read(environment)
    assert found is not None
    return found


def mended(environment: Environment, unfinished: Journal) -> Inventory:
    """The environment after mending; doing it twice must do no more."""
    mend(take(environment), unfinished)
    once = listing(environment.home)
    mend(take(environment), unfinished)
    assert listing(environment.home) == once
    return take(environment)


def test_a_package_without_record_goes_and_others_stay(environment: Environment, wheels: Path) -> None:
    put(environment.home, *stubs(wheels, "safetensors-0.8.0"))
    unfinished, place = before(environment), site(environment.home)
    kept = listing(place)
    put(environment.home, *stubs(wheels, "tokenizers-0.23.1"))
    (place / "tokenizers-0.23.1.dist-info" / "RECORD").unlink()
    assert mended(environment, unfinished).get("tokenizers") is None
    assert kept.items() <= listing(place).items()


def test_an_environment_that_was_left_half_changed_gets_nothing_more(environment: Environment, tmp_path: Path) -> None:
    before(environment)
    with pytest.raises(ForkError, match=r"was cut short, expected a whole environment") as refusal:
        equip(tmp_path, environment, TESTS)
    assert "make install VENV=" in refusal.value.next


def test_a_package_half_removed_goes_wholly(environment: Environment, wheels: Path) -> None:
    put(environment.home, *stubs(wheels, "transformers-4.57.0"))
    unfinished, place = before(environment), site(environment.home)
    (place / "transformers" / "part7.py").unlink()
    found = mended(environment, unfinished)
    assert found.get("transformers") is None
    assert unfinished.lost(found) == ["transformers"]
    assert not (place / "transformers").exists()


def test_a_package_put_aside_and_not_yet_replaced_goes_with_its_files(environment: Environment, wheels: Path) -> None:
    put(environment.home, *stubs(wheels, "transformers-4.57.0"))
    unfinished, place = before(environment), site(environment.home)
    (place / "transformers-4.57.0.dist-info").rename(place / "~ransformers-4.57.0.dist-info")
    assert mended(environment, unfinished).get("transformers") is None
    assert not [entry.name for entry in place.iterdir() if "ransformers" in entry.name]


def test_what_was_put_aside_does_not_take_its_successor_along(environment: Environment, wheels: Path) -> None:
    put(environment.home, *stubs(wheels, "safetensors-0.7.0"))
    unfinished, place = before(environment), site(environment.home)
    (place / "safetensors-0.7.0.dist-info").rename(place / "~afetensors-0.7.0.dist-info")
    put(environment.home, *stubs(wheels, "safetensors-0.8.0"))
    found = mended(environment, unfinished).get("safetensors")
    assert found is not None
    assert (found.version, found.whole) == ("0.8.0", True)
    assert not list(place.glob("~*"))


def test_files_without_metadata_do_not_hide_the_checkout(environment: Environment, wheels: Path) -> None:
    put(environment.home, *stubs(wheels, "safetensors-0.8.0"))
    unfinished, place = before(environment), site(environment.home)
    put(environment.home, *stubs(wheels, "transformers-4.57.0"))
    shutil.rmtree(place / "transformers-4.57.0.dist-info")
    assert mended(environment, unfinished).transformers is None


def test_what_was_broken_before_is_not_ours_to_mend(environment: Environment, wheels: Path) -> None:
    put(environment.home, *stubs(wheels, "safetensors-0.8.0", "tokenizers-0.23.1"))
    place = site(environment.home)
    (place / "safetensors-0.8.0.dist-info" / "RECORD").unlink()
    (place / "tokenizers-0.23.1.dist-info").rename(place / "~okenizers-0.23.1.dist-info")
    unfinished = before(environment)
    kept = listing(place)
    mended(environment, unfinished)
    assert listing(place) == kept


def test_a_file_that_is_no_journal_is_refused(environment: Environment) -> None:
    journal.path(environment).write_text("{")
    with pytest.raises(ForkError, match="is no journal of ours"):
        journal.read(environment)


def test_requirements_are_read_as_pip_check_reads_them(environment: Environment, wheels: Path, tmp_path: Path) -> None:
    requires = [
        "safetensors<1",
        "torch>=3",
        'gone; python_version < "3"',
        'gone; extra == "all"',
        "absent[extra]>=1",
        "not a requirement!",
        "transformers==4.57.0",
    ]
    put(environment.home, *stubs(wheels, "safetensors-0.8.0", "torch-2.6.0", "transformers-4.57.0"))
    put(environment.home, stub(tmp_path, "tool", "1", requires))
    found = take(environment)
    assert sorted(map(str, problems(found)))[:2] == [
        "tool requires absent>=1, found none",
        "tool requires torch>=3, found 2.6.0",
    ]
    assert standing(found, frozenset({"transformers"})) == {
        Constraint("tool", "safetensors", "<1"),
        Constraint("tool", "transformers", "==4.57.0"),
    }


@pytest.mark.parametrize(
    ("specifier", "allowed"),
    [("", True), (">=4", True), ("==9.9.0", True), ("<=9.9.0", True), ("<5", False), ("!=9.9.0", False)],
)
def test_a_local_version_counts_as_its_release(
    environment: Environment, wheels: Path, tmp_path: Path, specifier: str, allowed: bool
) -> None:
    put(environment.home, stub(tmp_path, "user", "1", [f"transformers{specifier}"]))
    assert (excluding(take(environment), "transformers", "9.9.0+masks.1") == []) is allowed


def test_a_requirement_already_broken_excludes_nothing_more(
    environment: Environment, wheels: Path, tmp_path: Path
) -> None:
    put(
        environment.home,
        *stubs(wheels, "transformers-4.57.0"),
        stub(tmp_path, "user", "1", ["transformers<4"]),
    )
    assert not excluding(take(environment), "transformers", "9.9.0+masks.1")
