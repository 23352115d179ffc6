"""The landing guard, on changes that git is content with."""

from __future__ import annotations

import json
import re
from textwrap import dedent

import pytest
from test_series import commit_edit
from tiny_upstream import IMPORT, Tiny, git

from fork.errors import ForkError
from fork.landing import loaded_names, scopes


SOURCE = dedent(
    """\
    import os

    class Model:
        size = 1

        @property
        def deep(self):
            def inner(x):
                return [x * y for y in range(x)]
            return inner

        def forward(self, inputs_embeds, *args, **kwargs):
            try:
                total = lambda z: z + inputs_embeds
            except ValueError as problem:
                raise problem
            if (found := os.name) and kwargs:
                return found
            return total

    def after():
        return Model
    """
)


def line(text: str) -> int:
    return next(number for number, each in enumerate(SOURCE.splitlines(), 1) if text in each)


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("import os", "<module>"),
        ("size = 1", "Model"),
        ("@property", "Model.deep"),
        ("return [x", "Model.deep.inner"),
        ("return inner", "Model.deep"),
        ("total = lambda", "Model.forward"),
        ("return Model", "after"),
    ],
)
def test_the_scope_of_a_line_is_the_innermost(text: str, scope: str) -> None:
    assert scopes(SOURCE, {line(text)}, "a.py") == [scope]


def test_a_change_can_lie_in_more_than_one_scope() -> None:
    assert scopes(SOURCE, {line("size"), line("return Model")}, "a.py") == ["Model", "after"]
    assert scopes(None, {1}, "a.py") == []


def test_names_of_every_kind_of_binding_are_found() -> None:
    names = loaded_names(SOURCE, set(range(1, SOURCE.count("\n") + 1)), "model.py")
    assert {"x", "y", "z", "range", "inner", "problem", "found", "os", "kwargs", "total", "Model"} <= set(names)


@pytest.mark.parametrize(
    ("text", "names"),
    [("@property", ["property"]), ("except", ["ValueError"]), ("raise", ["problem"]), ("return found", ["found"])],
)
def test_a_line_loads_what_stands_on_it(text: str, names: list[str]) -> None:
    assert loaded_names(SOURCE, {line(text)}, "model.py") == names


@pytest.mark.parametrize("name", ["input_embeds", "size", "inner", "nowhere"])
def test_a_name_that_is_not_bound_there_is_an_error(name: str) -> None:
    """Renamed by upstream; a class's name seen from a method; another function's local; nothing at all."""
    spoiled = SOURCE.replace("            return total\n", f"            return {name}\n").replace(
        "        return total\n", f"        return {name}\n"
    )
    with pytest.raises(ForkError, match=f"loads '{name}', which is bound nowhere there"):
        loaded_names(spoiled, {line("return total")}, "model.py")


def test_a_star_import_may_bind_anything() -> None:
    assert loaded_names("from os import *\nprint(getcwd())\n", {2}, "m.py") == ["getcwd", "print"]


def test_a_patch_that_lands_in_another_class_is_refused(tiny: Tiny) -> None:
    """Moved to a class that looks the same, with its blob ids put right: git applies it clean."""
    tiny.ok("apply")
    git(tiny.checkout, "reset", "--quiet", "--hard", "HEAD~1")
    modeling = tiny.checkout / "src/transformers/modeling.py"
    imports = "import create_mask\n"
    text = modeling.read_text().replace(imports, f"{imports}{IMPORT}")
    place = text.rindex("hidden_states = inputs_embeds")
    modeling.write_text(text[:place] + text[place:].replace("= inputs_embeds", "= hooks.embeds(inputs_embeds)", 1))
    commit_edit(tiny, "src/transformers/modeling.py", "", "Show the hook the embeddings")
    moved = git(tiny.checkout, "format-patch", "--stdout", "--full-index", "--unified=10", "-1")
    (patch,) = tiny.series.glob("0002-*")
    patch.write_text(moved)
    git(tiny.checkout, "reset", "--quiet", "--hard", "refs/fork/applied")
    for command in ("apply", "verify"):
        result = tiny.main(command)
        assert result.status == 1
        assert "meant for Model.forward, went to ForTokens.forward" in result.err + result.out
    assert "hooks.embeds" in modeling.read_text().split("class ForCausalLM")[0]


def test_a_patch_that_uses_a_name_upstream_renamed_is_refused(tiny: Tiny) -> None:
    (patch,) = tiny.series.glob("0002-*")
    patch.write_text(patch.read_text().replace("hooks.embeds(inputs_embeds)", "hooks.embeds(input_embeds)"))
    assert "loads 'input_embeds'" in tiny.fails("apply")


def test_export_records_what_verify_requires(tiny: Tiny) -> None:
    tiny.ok("apply")
    (tiny.series / "landing.json").unlink()
    tiny.ok("apply")
    assert "does not record" in tiny.main("verify").out
    tiny.ok("export")
    tiny.ok("apply")
    record = json.loads((tiny.series / "landing.json").read_text())
    assert [len(changes) for changes in record.values()] == [2, 2]
    tiny.ok("verify")


def test_an_unreadable_record_is_said(tiny: Tiny) -> None:
    (tiny.series / "landing.json").write_text("<<<<<<< ours\n")
    assert re.search("landing.json is unreadable.*git checkout", tiny.fails("apply"), re.S)
