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
        target = _Module(resolve_name("." * node.level + (node.module or ""), module.parent))
        if _is_bundled(target.name):
            _check(module, node, target)
            imported.add(target)
            source = f".{target.flat_name}"
        else:
            source = target.name
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(r"from\s+[\w.]+\s+import", f"from {source} import", line, count=1)
    return "".join(lines), imported


def _is_bundled(name: str) -> bool:
    return f"{name}.".startswith(f"{_PACKAGE}.") and not f"{name}.".startswith(f"{_LEFT_OUT}.")


def _check(module: _Module, node: ast.ImportFrom, target: _Module) -> None:
    """Refuse to import modules, rather than names from them: transformers would not find the file."""
    names = [alias.name for alias in node.names if _Module(f"{target.name}.{alias.name}").file.exists()]
    if names or target.name == _PACKAGE:
        what = ", ".join(names or [alias.name for alias in node.names])
        raise ValueError(f"{module.name}, line {node.lineno}: write `from .module import name` for {what}.")
