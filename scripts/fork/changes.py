"""`make changes`: docs/what_the_fork_changes.md, from the patches themselves."""

from __future__ import annotations

from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path

from unidiff.patch import PatchSet

from fork.header import PROOF, STATUS
from fork.landing import read_record
from fork.pins import Pin, all_pins, default_pin
from fork.recipe import Recipe, read_recipe


PAGE = "docs/what_the_fork_changes.md"
HEAD = """\
# What the fork changes

Every edit of upstream's files, as `patches/` has it; what is new lies in `overlay/`. `make changes` writes this page.

"""


@dataclass(frozen=True)
class Told:
    """What a patch says of itself, and what it edits."""

    subject: str
    why: str
    status: str
    proofs: tuple[str, ...]
    edits: PatchSet

    @property
    def lines(self) -> int:
        """How many lines it adds and removes."""
        return int(self.edits.added + self.edits.removed)


def write(root: Path) -> None:
    """Write the page."""
    (root / PAGE).write_text(page(root), encoding="utf-8")
    print(f"written: {PAGE}")


def page(root: Path) -> str:
    """The page: what each release's series amounts to, and the default's, patch by patch."""
    default = default_pin(root)
    rows = "".join(row(pin, read_recipe(root, pin), pin == default) for pin in all_pins(root))
    table = f"| release | patches | files | places | changed lines |\n| --- | ---: | ---: | ---: | ---: |\n{rows}"
    patches = enumerate(read_recipe(root, default).patches.values(), start=1)
    return f"{HEAD}{table}\n" + "\n".join(section(number, read_patch(patch)) for number, patch in patches)


def read_patch(content: bytes) -> Told:
    """A patch as `make export` writes it: a mail, whose body ends in trailers and a diff."""
    mail = message_from_bytes(content, policy=policy.default)
    body = content.decode().partition("\n\n")[2]
    text, _, diff = body.partition("\ndiff --git ")
    why, _, trailers = text.rstrip().rpartition("\n\n")
    named = [line.partition(": ")[::2] for line in trailers.splitlines()]
    return Told(
        subject=str(mail["Subject"]).removeprefix("[PATCH] "),
        why=why.strip(),
        status=next(value for key, value in named if key == STATUS),
        proofs=tuple(value for key, value in named if key == PROOF),
        edits=PatchSet(f"diff --git {diff}"),
    )


def row(pin: Pin, recipe: Recipe, default: bool) -> str:
    """A release's line of the table. Places are runs of changed lines."""
    patches = [read_patch(content) for content in recipe.patches.values()]
    files = {file.path for told in patches for file in told.edits}
    places = sum(map(len, read_record(recipe.landing).values()))
    name = f"{pin.version} (default)" if default else pin.version
    return f"| {name} | {len(patches)} | {len(files)} | {places} | {sum(told.lines for told in patches)} |\n"


def section(number: int, told: Told) -> str:
    """A patch: what, why, where, and what shows that it is needed."""
    files = "".join(f"- `{file.path}`: {file.added} added, {file.removed} removed\n" for file in told.edits)
    proofs = ", ".join(f"`{proof}`" for proof in told.proofs)
    return f"## {number}. {told.subject}\n\n{told.why}\n\n{files}- upstream: {told.status}\n- proved by {proofs}\n"
