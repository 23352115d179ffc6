"""Replace files of the project, all or none.

The new files are staged with a plan in a temporary folder; renaming that folder to `.fork/replace` is the
moment of decision. From then on the plan is carried out, by this run or by the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fork.project import SCRATCH, Project
from fork.recipe import File


def replace(project: Project, old: Mapping[str, File], new: Mapping[str, File]) -> list[str]:
    """Take the project's files from `old` to `new`; a line for each that changed."""
    changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
    if not changed:
        return []
    with project.scratch() as scratch:
        staged = scratch / "replace"
        staged.mkdir()
        plan = []
        for number, path in enumerate(changed):
            plan.append({"path": path, "old": _digest(old.get(path)), "remove": path not in new})
            if path in new:
                (staged / str(number)).write_bytes(new[path].content)
                (staged / str(number)).chmod(0o755 if new[path].executable else 0o644)
        (staged / "plan.json").write_text(json.dumps(plan))
        staged.rename(_decided(project))
    finish(project)
    return [f"{'removed' if path not in new else 'written'}: {path}" for path in changed]


def _decided(project: Project) -> Path:
    return project.state / "replace"


def _digest(file: File | None) -> str | None:
    return hashlib.sha256(file.content).hexdigest() if file else None


def finish(project: Project) -> None:
    """Carry out what is left of a plan."""
    staged = _decided(project)
    if not staged.exists():
        return
    for number, step in enumerate(json.loads((staged / "plan.json").read_text())):
        new, path = staged / str(number), project.root / step["path"]
        if step["remove"] or new.exists():
            _set_aside(project, path, step["old"])
        if step["remove"]:
            path.unlink(missing_ok=True)
            _prune(path.parent, project.root)
        elif new.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(new, path)
    done = staged.rename(project.state / f"{SCRATCH}replaced")
    shutil.rmtree(done)


def _set_aside(project: Project, path: Path, expected: str | None) -> None:
    """Keep a file that somebody wrote after the plan was made."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() == expected:
        return
    print(f"rescued: {path.relative_to(project.root)} -> {keep(project, path)}")


def keep(project: Project, path: Path) -> Path:
    """Copy a file to where nothing is ever removed; the copy's place in the project."""
    kept = project.state / "rescued" / path.relative_to(project.root)
    while kept.exists():
        kept = kept.with_name(f"{kept.name}~")
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, kept)
    return kept.relative_to(project.root)


def _prune(folder: Path, root: Path) -> None:
    """Remove folders that have become empty."""
    while folder != root and folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
