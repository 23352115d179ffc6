"""Let pip change the research environment, so that its other packages stay as good as they were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fork import journal
from fork.env import Environment, venv_argument
from fork.errors import ForkError
from fork.inventory import Inventory, take
from fork.journal import Journal
from fork.pip import pip_install, pip_upon, wheelhouse
from fork.project import Project
from fork.requirements import Constraint


CAUSES = "The conflict is caused by:"
CAUSE = re.compile(r"^\S+ +(\S+ \S+ depends on .*)$", re.MULTILINE)
CONSTRAINED = re.compile(r"The user requested \(constraint\) ([A-Za-z0-9._-]+)")
ERROR = re.compile(r"^\S+ +ERROR: (?!\[present-rich\])(.*)$", re.MULTILINE)
HELD_BY_US = "make install, which leaves it alone,"


def mended(environment: Environment, inventory: Inventory) -> tuple[Inventory, Journal | None]:
    """Take away what a run that did not end left broken; the inventory now, and that run's journal."""
    unfinished = journal.read(environment)
    if unfinished is None:
        return inventory, None
    print(f"an earlier run did not end: mending {environment.home}")
    journal.mend(inventory, unfinished)
    return take(environment), unfinished


def change(
    root: Path, environment: Environment, inventory: Inventory, before: Journal, words: Sequence[str]
) -> Inventory:
    """Have pip install what the words say, under what other packages require; the inventory afterwards.

    pip resolves everything before it changes anything. The journal is written first, and closed here only
    if nothing has changed: closing it is the caller's last act.
    """
    journal.write(environment, before)
    held = [*before.standing(inventory), *held_torch(inventory)]
    file, log = Project(root).state / "constraints.txt", Project(root).state / "pip.log"
    file.write_text("".join(f"{line}\n" for line in sorted({each.line for each in held})), encoding="utf-8")
    status = pip_install(pip_upon(environment.python), [*words, "--constraint", str(file)], log)
    after = take(environment)
    if status:
        untouched = after == inventory and not before.broken(after)
        if untouched:
            journal.close(environment)
        raise failure(environment, log, held, untouched)
    refuse_new_problems(environment, before, after)
    return after


def held_torch(inventory: Inventory) -> list[Constraint]:
    """Torch stays what it is."""
    torch = inventory.get("torch")
    return [Constraint(HELD_BY_US, "torch", f"=={torch.version}")] if torch else []


def refuse_new_problems(environment: Environment, before: Journal, after: Inventory) -> None:
    """What pip's resolver was not told of."""
    found = before.new_problems(after)
    if found:
        raise ForkError(
            f"in {environment.home} {'; '.join(map(str, found))}. It was not so before",
            next=f"'{environment.python}' -m pip check, then make install{venv_argument(environment)}",
        )


def failure(environment: Environment, log: Path, held: Iterable[Constraint], untouched: bool) -> ForkError:
    """Why pip failed: which installed package stands in the way, or what pip said."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    fate = "Nothing was changed" if untouched else "The next make install puts right what it left"
    causes = text.rpartition(CAUSES)[2]
    names = set(CONSTRAINED.findall(causes)) if CAUSES in text else set()
    against = narrowing([each for each in held if each.name in names])
    if against:
        wants = "; ".join(dict.fromkeys(CAUSE.findall(causes)))
        requirers = " ".join(sorted({each.requirer for each in against if each.requirer != HELD_BY_US}))
        return ForkError(
            f"no versions fit together in {environment.home}: {wants}; but {'; '.join(map(str, against))}. {fate}",
            next=f"'{environment.python}' -m pip install --upgrade {requirers or 'torch'}, "
            "then make install; or make install VENV=another/path",
        )
    said = "\n".join(dict.fromkeys(ERROR.findall(text))) or "nothing"
    folder = wheelhouse()
    remedy = f"put what is missing into WHEELHOUSE={folder}" if folder else "check the network and pip's configuration"
    return ForkError(
        f"pip could not change {environment.home}. It said:\n{said}\n(its log: {log}). {fate}",
        next=f"{remedy}, then make install{venv_argument(environment)}",
    )


def narrowing(constraints: list[Constraint]) -> list[Constraint]:
    """Of several constraints on a package, those with an upper end: a lower one seldom stands in the way."""
    upper = [each for each in constraints if any(sign in each.specifier for sign in ("<", "==", "~", "!"))]
    return sorted(upper or constraints)
