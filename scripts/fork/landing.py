"""The landing guard: a change must land in the function it was written for (DESIGN 4.1, rules 1 to 3).

Git finds a change's place by the lines around it, and upstream repeats its lines: a patch can apply clean
and edit another class. So each change is recorded with the scopes that its lines lie in, and with the names
that they load, and both are looked up again in the syntax tree whenever the patch is applied.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import json
import symtable
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from unidiff.patch import PatchSet

from fork.errors import ForkError
from fork.git import Git


MODULE = "<module>"
# How many files are kept parsed: a patch's, before and after.
FILES = 32
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS: Mapping[type[ast.AST], str] = {
    ast.ListComp: "listcomp",
    ast.SetComp: "setcomp",
    ast.DictComp: "dictcomp",
    ast.GeneratorExp: "genexpr",
}
# Bound in every module, by the interpreter.
IMPLICIT = {*dir(builtins), "__file__", "__path__", "__class__"}


@dataclass(frozen=True)
class Change:
    """A run of changed lines: where it lies, and the names that its new lines load."""

    file: str
    change: str
    scopes: tuple[str, ...]
    names: tuple[str, ...]


Landing = Mapping[str, Sequence[Change]]


def changes(git: Git, before: str, after: str) -> list[Change]:
    """The changes between two commits. A name that is bound nowhere is an error."""
    text = git.run("diff-tree", "-p", "--unified=0", "--full-index", "--no-ext-diff", before, after).stdout
    found = []
    for file in PatchSet(text):
        old, new = _source(git, before, file.source_file), _source(git, after, file.target_file)
        for hunk in file:
            added = {line.target_line_no for line in hunk if line.is_added and line.target_line_no}
            removed = {line.source_line_no for line in hunk if line.is_removed and line.source_line_no}
            lines = "".join(str(line) for line in hunk)
            found.append(
                Change(
                    file=file.path,
                    change=hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:12],
                    scopes=tuple(scopes(new, added, file.path) if added else scopes(old, removed, file.path)),
                    names=tuple(loaded_names(new, added, file.path)),
                )
            )
    return found


def _source(git: Git, commit: str, path: str) -> str | None:
    """A Python file's text in a commit; None for any other."""
    if not path.endswith(".py"):
        return None
    return git.run("cat-file", "blob", f"{commit}:{path.split('/', 1)[1]}").stdout


def scopes(source: str | None, lines: set[int], path: str) -> list[str]:
    """The innermost class or function of each line, in order, once each."""
    if source is None:
        return []
    found = []
    for line in sorted(lines):
        around = [name for first, last, name in spans(source, path) if first <= line <= last]
        found.append(max(around, key=lambda name: name.count("."), default=MODULE))
    return list(dict.fromkeys(found))


@lru_cache(FILES)
def spans(source: str, path: str) -> tuple[tuple[int, int, str], ...]:
    """First line, last line and dotted name of each class and function."""
    return tuple(_spans(parse(source, path), ""))


def _spans(node: ast.AST, prefix: str) -> Iterator[tuple[int, int, str]]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.expr):
            continue  # no class or function is in one
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}.{child.name}".lstrip(".")
            yield _first_line(child), child.end_lineno or child.lineno, name
        yield from _spans(child, name)


def _first_line(statement: ast.stmt) -> int:
    """Where a statement begins, its decorators included."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


@lru_cache(FILES)
def parse(source: str, path: str) -> ast.Module:
    """The syntax tree."""
    try:
        return ast.parse(source)
    except SyntaxError as problem:
        raise ForkError(
            f"{path}:{problem.lineno} is no Python after the patch ({problem.msg}), expected it to compile",
            next="make status",
        ) from None


def loaded_names(source: str | None, lines: set[int], path: str) -> list[str]:
    """The names that these lines load; each must be bound where they lie."""
    if source is None or not lines:
        return []
    tree = parse(source, path)
    if "import *" in source and any(_is_star(node) for node in ast.walk(tree)):
        return sorted({name.id for name, _ in _loads(tree, (), lines)})
    names = set()
    for name, tables in _loads(tree, (symtable.symtable(source, path, "exec"),), lines):
        if name.id not in IMPLICIT and not _bound(name.id, tables):
            raise ForkError(
                f"{path}:{name.lineno} loads {name.id!r}, which is bound nowhere there; expected a local, "
                f"an enclosing function's, a global or a builtin",
                next=f"git -C transformers log -1 -p -- {path}",
            )
        names.add(name.id)
    return sorted(names)


def _is_star(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


Tables = tuple[symtable.SymbolTable, ...]


def _loads(node: ast.AST, tables: Tables, lines: set[int]) -> Iterator[tuple[ast.Name, Tables]]:
    """Each name loaded on these lines, with the symbol tables around it, innermost first."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.lineno in lines:
        yield node, tables
    if isinstance(node, SCOPES) or type(node) in COMPREHENSIONS:
        kind = COMPREHENSIONS.get(type(node)) or getattr(node, "name", "lambda")
        inner = _table(tables[0], str(kind), getattr(node, "lineno", 0)) if tables else None
        tables = (inner, *tables) if inner else tables
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt) or _holds(child, lines):
            yield from _loads(child, tables, lines)


def _holds(statement: ast.stmt, lines: set[int]) -> bool:
    """Whether some of the lines are in a statement."""
    last = statement.end_lineno or statement.lineno
    return any(_first_line(statement) <= line <= last for line in lines)


def _table(outer: symtable.SymbolTable, name: str, line: int) -> symtable.SymbolTable | None:
    """The table of the scope that starts on this line; type parameters put one more table between."""
    for table in outer.get_children():
        if table.get_name() == name and table.get_lineno() == line:
            return table
        inner = _table(table, name, line)
        if inner:
            return inner
    return None


def _bound(name: str, tables: Tables) -> bool:
    for depth, table in enumerate(tables):
        if depth and table.get_type() == "class":
            continue  # a method does not see its class's names
        try:
            symbol = table.lookup(name)
        except KeyError:
            continue
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_parameter() or symbol.is_namespace():
            return True
    return False


def write_record(landing: Landing) -> bytes:
    """The record as `landing.json` holds it: a line for each change."""
    patches = []
    for patch, found in landing.items():
        lines = ",\n".join(f"  {json.dumps(asdict(change))}" for change in found)
        patches.append(f"{json.dumps(patch)}: [\n{lines}\n ]")
    return ("{\n " + ",\n ".join(patches) + "\n}\n").encode()


def read_record(content: bytes | None) -> Landing:
    """The record, read."""
    if content is None:
        return {}
    try:
        return {
            patch: [
                Change(entry["file"], entry["change"], tuple(entry["scopes"]), tuple(entry["names"]))
                for entry in entries
            ]
            for patch, entries in json.loads(content).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ForkError(
            f"landing.json is unreadable ({problem!r}), expected what make export wrote",
            next="git checkout -- patches",
        ) from None


def check(recorded: Landing, landed: Landing) -> None:
    """Each change that was recorded must lie in the scopes it was recorded in."""
    for patch, found in landed.items():
        for change in recorded.get(patch, ()):
            meant = _places(recorded[patch], change)
            here = _places(found, change)
            if here and meant != here:
                raise ForkError(
                    f"{patch} landed in another place of {change.file}: meant for "
                    f"{_words(meant)}, went to {_words(here)}",
                    next=f"open patches/*/{patch} and move the change, or make export if it was meant",
                )


def moved(meant: Sequence[Change], landed: Sequence[Change]) -> str | None:
    """Where changes were meant for and where they went instead, after a merge; None if all is as it was.

    Lines that are the same must lie where they lay, as often. What is left was changed by hand: its places count.
    """
    left, came = _exact(meant) - _exact(landed), _exact(landed) - _exact(meant)
    lost = {(file, scopes) for file, _, scopes in left} - {(file, scopes) for file, _, scopes in came}
    new = {(file, scopes) for file, _, scopes in came} - {(file, scopes) for file, _, scopes in left}
    if not lost and not new:
        return None
    return f"meant for {_where(lost)}, went to {_where(new)}"


def renamed(git: Git, meant: Sequence[Change], commit: str) -> list[Change]:
    """The same changes, by the names that classes have in a commit which still binds their old ones to them."""
    files = {change.file for change in meant if change.file.endswith(".py")}
    new = {file: aliases(git.run("cat-file", "blob", f"{commit}:{file}", check=False).stdout, file) for file in files}
    return [
        replace(change, scopes=tuple(_renamed(scope, new.get(change.file, {})) for scope in change.scopes))
        for change in meant
    ]


def aliases(source: str, path: str) -> dict[str, str]:
    """The names that a module binds to its classes beside their own, as in `Old = New`."""
    body = parse(source, path).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    pairs = [
        (target.id, node.value.id)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return {old: new for old, new in pairs if new in classes and old not in classes}


def _renamed(scope: str, names: Mapping[str, str]) -> str:
    first, *rest = scope.split(".")
    return ".".join([names.get(first, first), *rest])


def _places(found: Sequence[Change], like: Change) -> Counter[tuple[str, ...]]:
    """Where the same lines lie in the same file, and how often."""
    return Counter(change.scopes for change in found if (change.file, change.change) == (like.file, like.change))


def _words(places: Counter[tuple[str, ...]]) -> str:
    return "; ".join(" and ".join(scopes) for scopes in places)


def _exact(found: Sequence[Change]) -> Counter[tuple[str, str, tuple[str, ...]]]:
    return Counter((change.file, change.change, change.scopes) for change in found)


def _where(places: set[tuple[str, tuple[str, ...]]]) -> str:
    return ", ".join(f"{' and '.join(scopes)} in {file}" for file, scopes in sorted(places)) or "nowhere"
