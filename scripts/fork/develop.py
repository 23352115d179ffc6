"""`make test`, `make lint`, `make demo` and `make bench`: what stands on the install."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from packaging.requirements import Requirement

from fork import journal
from fork.bootstrap import lint_environment
from fork.change import change
from fork.env import Environment, venv_argument
from fork.errors import ForkError
from fork.install import install
from fork.inventory import Inventory, take
from fork.lock import exclusive
from fork.pip import clean_environment
from fork.requirements import met
from fork.source import Source


TESTS = "requirements-test.txt"
LIBRARIES = ("scripts", "overlay/src")
CHECKED = (*LIBRARIES, "tests", "examples", "benchmarks")
# A worker a core, each with one thread: more threads than cores wait for each other.
MOST_WORKERS = 8
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Not for what runs inside the environment: which one it is has been decided, and make's flags are make's.
DECIDED = ("VENV", "SOURCE", "UPSTREAM", "WHEELHOUSE", "MODEL", "ARGS", "PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")


def test(root: Path, source: Source, upstream: str, words: Sequence[str]) -> NoReturn:
    """Install, add what the tests need, and become pytest."""
    with exclusive(root):
        environment = ready_for_tests(root, source, upstream)
    os.chdir(root)
    become(environment, ["-m", "pytest", "--numprocesses", str(workers()), "--dist", "worksteal", *words], THREADS)


def workers() -> int:
    """A worker a core, up to a few."""
    return min(os.cpu_count() or 1, MOST_WORKERS)


def demo(root: Path, source: Source, upstream: str, model: str) -> NoReturn:
    """Install, and become the demo."""
    with exclusive(root):
        environment = install(root, source, upstream)
    become(environment, [str(root / "examples" / "demo.py"), *(["--model", model] if model else [])])


def bench(root: Path, source: Source, upstream: str, words: Sequence[str]) -> NoReturn:
    """Install, add what the benchmarks need, and become the one of attention."""
    with exclusive(root):
        environment = ready_for_tests(root, source, upstream)
    become(environment, [str(root / "benchmarks" / "attention_speed.py"), *words])


def lint(root: Path, source: Source, upstream: str) -> None:
    """Run ruff and mypy, each of them, whatever another found."""
    tools = lint_environment(root)
    tools.make()
    with exclusive(root):
        environment = ready_for_tests(root, source, upstream)
    ruff, mypy = str(tools.home / "bin" / "ruff"), str(tools.home / "bin" / "mypy")
    paths = [path for path in CHECKED if (root / path).is_dir()]
    faults = check(root, [ruff, "check", *paths]) + check(root, [ruff, "format", "--check", *paths])
    for group, search in type_groups(root):
        faults += check(root, [mypy, "--python-executable", str(environment.python), *group], MYPYPATH=search)
    if faults:
        raise ForkError(
            f"{faults} checks found faults (above), expected none",
            next=f"'{ruff}' check --fix; '{ruff}' format; mend the rest; make lint",
        )


def check(root: Path, command: Sequence[str], **variables: str) -> bool:
    """Run one check, and say which; whether it found faults."""
    print(f"== {Path(command[0]).name} {' '.join(command[1:])}")
    return subprocess.run(command, cwd=root, env=clean_environment() | variables).returncode != 0


def type_groups(root: Path) -> Iterator[tuple[list[str], str]]:
    """What mypy checks in one go, and where it looks for modules besides.

    Tests and examples find their helpers beside them, so each of their folders is a world of its own, with
    the overlay in it. The types of torch and pytest come from the research environment.
    """
    yield list(LIBRARIES), ""
    files = (file for place in CHECKED if place not in LIBRARIES for file in (root / place).rglob("*.py"))
    for folder in sorted({file.parent for file in files}):
        scripts = sorted(str(file.relative_to(root)) for file in folder.glob("*.py"))
        yield ["overlay/src", *scripts], str(folder)


def ready_for_tests(root: Path, source: Source, upstream: str) -> Environment:
    """Install, and add what our tests need. The caller holds the lock."""
    return ready(root, source, upstream, TESTS)


def ready(root: Path, source: Source, upstream: str, requirements: str) -> Environment:
    """Install, and add the requirements that are not met yet. The caller holds the lock."""
    environment = install(root, source, upstream)
    equip(root, environment, requirements)
    return environment


def equip(root: Path, environment: Environment, requirements: str) -> None:
    """Add the requirements that are not met yet to an environment that is there. The caller holds the lock."""
    if journal.read(environment):
        raise ForkError(
            f"an install into {environment.home} was cut short, expected a whole environment",
            next=f"make install{venv_argument(environment)}",
        )
    file = root / "scripts" / requirements
    inventory = take(environment)
    if unmet(file, inventory):
        before = journal.of(inventory, movable=frozenset())
        change(root, environment, inventory, before, ["--requirement", str(file)])
        journal.close(environment)


def unmet(file: Path, inventory: Inventory) -> list[Requirement]:
    """The requirements in a file that the environment does not meet."""
    return [
        requirement
        for requirement in required(file)
        if not (found := inventory.get(requirement.name)) or not met(requirement, found.version)
    ]


def required(file: Path) -> Iterator[Requirement]:
    """The requirements in a file, and in those that it names with -r."""
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from required(file.parent / text.removeprefix("-r ").strip())
        elif text:
            yield Requirement(text)


def become(environment: Environment, words: Sequence[str], single: Sequence[str] = ()) -> NoReturn:
    """Replace this process by the environment's Python, as if the environment were active."""
    kept = {name: value for name, value in clean_environment().items() if name not in DECIDED}
    active = {
        "VIRTUAL_ENV": str(environment.home),
        "PATH": f"{environment.python.parent}:{kept.get('PATH', '')}",
    }
    variables = kept | active | dict.fromkeys(single, "1")
    os.execve(environment.python, [str(environment.python), *words], variables)
