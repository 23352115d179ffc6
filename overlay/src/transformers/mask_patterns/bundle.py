"""The library as files that lie flat in one folder: the only layout in which transformers loads a model's own code."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path


_PACKAGE = "transformers.mask_patterns"
_ROOT = Path(__file__).parent
# Pictures are drawn in the fork, where they may need packages that whoever loads an exported model does not have.
_LEFT_OUT = f"{_PACKAGE}.draw"


@dataclass(frozen=True)
class _Module:
    """A module of this package."""

    name: str

    @property
    def file(self) -> Path:
        path = _ROOT.joinpath(*self.name.split(".")[2:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    @property
    def flat_name(self) -> str:
        return "_".join(self.name.split(".")[1:])

    @property
    def parent(self) -> str:
        """What one dot in its imports stands for."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]


def bundle(name: str) -> dict[str, str]:
    """The module `name` of this package and all that it imports from it, as `{file name: text}`.

    In the texts, imports from this package are from the flat files, and those from transformers are absolute.

    Raises:
        ValueError: two modules would have the same flat name, or one imports in a way that flat files cannot.
    """
    waiting, files = [_Module(f"{_PACKAGE}.{name}")], {}
    seen = set(waiting)
    while waiting:
        module = waiting.pop()
        text, imported = _flattened(module)
        if f"{module.flat_name}.py" in files:
            raise ValueError(f"{module.name}: another module is called {module.flat_name} too. Rename one of them.")
        files[f"{module.flat_name}.py"] = text
        waiting += imported - seen
        seen |= imported
    return files


def _flattened(module: _Module) -> tuple[str, set[_Module]]:
    """The text of a module with its imports rewritten, and what it imports from this package."""
    text = module.file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = resolve_name("." * node.level + (node.module or ""), module.parent)
        here = lines[node.lineno - 1]
        if not _is_bundled(source):
            found, line = set(), _from(source, here)
        elif parts := {
            _Module(f"{source}.{alias.name}") for alias in node.names if _is_module(f"{source}.{alias.name}")
        }:
            found, line = parts, _modules(module, node, parts, here)
        else:
            found, line = {_Module(source)}, _from(f".{_Module(source).flat_name}", here)
        imported |= found
        lines[node.lineno - 1] = line
    return "".join(lines), imported


def _from(source: str, line: str) -> str:
    return re.sub(r"from\s+[\w.]+\s+import", f"from {source} import", line, count=1)


def _modules(module: _Module, node: ast.ImportFrom, parts: set[_Module], line: str) -> str:
    """`from . import a` in terms of flat files; transformers finds these only where names are imported from them."""
    if len(parts) != 1 or len(node.names) != 1:
        raise ValueError(f"{module.name}, line {node.lineno}: import one module at a time: {line.strip()!r}.")
    (part,), (alias,) = parts, node.names
    indent, flat = line[: node.col_offset], part.flat_name
    return f"{indent}from .{flat} import __name__ as _\n{indent}from . import {flat} as {alias.asname or alias.name}\n"


def _is_module(name: str) -> bool:
    return _Module(name).file.exists()


def _is_bundled(name: str) -> bool:
    return f"{name}.".startswith(f"{_PACKAGE}.") and not f"{name}.".startswith(f"{_LEFT_OUT}.")
