"""Upstream moves what a patch stands on, and git merges clean into the wrong place: the rebase stops and says so.

Each case first lets plain git do it, so that what is refused here is what git is content with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from later_release import Later
from test_export_series import project
from test_rebase import LINE, MODELING, edited, no_environment, series, tree
from test_series import MASKING, commit_edit, files, head
from tiny_upstream import HEADS, IMPORT, UPSTREAM, Tiny, git

from fork import carry


__all__ = ["no_environment"]

TEXT = UPSTREAM[MODELING]
FORWARD = "    def forward(self, inputs_embeds, attention_mask=None, **kwargs):\n"


def renamed_class() -> dict[str, str]:
    """The class becomes a base class, and a new one takes its name."""
    later = HEADS.partition("class ForCausalLM")[0].replace("# four", "# 4").replace("# nine", "# 9")
    return {MODELING: TEXT.replace("class Model:", "class Base:") + later}


def moved_body() -> dict[str, str]:
    """The body goes into a helper, and the function that had it calls that."""
    helper = f"{FORWARD}        return self.run(inputs_embeds)\n\n    def run(self, inputs_embeds, **kwargs):\n"
    return {MODELING: TEXT.replace(FORWARD, helper, 1)}


def swapped_classes() -> dict[str, str]:
    """The lines stay, and the names of two classes are exchanged."""
    names = {"class Model:": "class ForTokens:", "class ForTokens:": "class Model:"}
    return {MODELING: "".join(names.get(line.strip(), line.strip("\n")) + "\n" for line in TEXT.splitlines(True))}


def renamed_function() -> dict[str, str]:
    """The method keeps its lines under another name."""
    return {MODELING: TEXT.replace("def forward", "def encode", 1)}


@dataclass(frozen=True)
class Case:
    """What upstream does, and where the patch was meant for and went."""

    release: Callable[[], Mapping[str, str]]
    meant: str
    went: str


CASES = {
    "class": Case(renamed_class, "Model.forward", "Base.forward"),
    "swapped": Case(swapped_classes, "Model.forward", "ForTokens.forward"),
    "helper": Case(moved_body, "Model.forward", "Model.run"),
    "function": Case(renamed_function, "Model.forward", "Model.encode"),
}


def merges_clean(tiny: Tiny, later: Later, pin: str, tmp_path: Path) -> bool:
    """Whether git alone carries the series without a conflict."""
    plain = tmp_path / "plain"
    git(tmp_path, "clone", "--quiet", "--no-checkout", str(later.upstream), str(plain))
    git(plain, "checkout", "--quiet", "-b", "series", tiny.release.commit)
    git(plain, "am", "--quiet", *(str(patch) for patch in sorted(tiny.series.glob("*.patch"))))
    git(plain, "rebase", "--quiet", "--onto", pin, tiny.release.commit)
    return "hooks.embeds(" in (plain / MODELING).read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_change_that_lands_elsewhere_is_refused(tiny: Tiny, later: Later, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    later.known("9.10.0", case.release())
    assert merges_clean(tiny, later, "v9.10.0", tmp_path)
    tiny.ok("apply")
    before = project(tiny), head(tiny), files(tiny)
    said = tiny.fails("rebase", "--to", "9.10.0")
    assert "0002-Show-the-hook-the-embeddings.patch merged clean, but landed wrong" in said
    assert f"meant for {case.meant} in {MODELING}, went to {case.went} in {MODELING}" in said
    assert (project(tiny), head(tiny), files(tiny)) == before
    assert "landed wrong" in tiny.fails("rebase-continue")  # nothing was mended
    assert [name for name in series(tiny) if name.endswith(".patch")] == []


def test_a_file_that_was_renamed_takes_the_change_along(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", {"src/transformers/models.py": TEXT})
    git(later.upstream, "rm", "--quiet", MODELING)
    git(later.upstream, "commit", "--quiet", "--amend", "--no-edit")
    commit = git(later.upstream, "rev-parse", "HEAD").strip()
    pin = tiny.root / "patches" / "v9.10.0" / "pin.cfg"
    pin.write_text("".join(f"commit = {commit}\n" if "commit" in line else line for line in pin.open()))
    said = tiny.fails("rebase", "--to", "9.10.0", "--source", "git")
    assert f"meant for <module> in {MODELING}, Model.forward in {MODELING}" in said
    assert "Model.forward in src/transformers/models.py" in said
    assert 'ARGS="--accept 2"' in said
    out = tiny.ok("rebase-continue", "--accept", "2").out
    assert "accepted: meant for" in out
    assert "1 unchanged, 1 adapted" in out
    assert "models.py" in series(tiny)["landing.json"]


def test_a_name_that_upstream_renamed_is_refused_and_cannot_be_accepted(tiny: Tiny, later: Later) -> None:
    """The patch's own line loads an argument whose name stands far above it: git sees no conflict."""
    tiny.ok("apply")
    file = tiny.checkout / MODELING
    nine = "        # nine\n"
    file.write_text(file.read_text().replace(nine, f"        hooks.embeds(attention_mask)\n{nine}", 1))
    commit_edit(tiny, MODELING, "", "Show the hook the mask")
    tiny.ok("export")
    later.known("9.10.0", edited(MODELING, "attention_mask=None", "mask=None"))
    said = tiny.fails("rebase", "--to", "9.10.0")
    assert "0003-Show-the-hook-the-mask.patch merged clean, but landed wrong" in said
    assert "loads 'attention_mask', which is bound nowhere there" in said
    assert "--accept" not in said
    assert "bound nowhere" in tiny.fails("rebase-continue", "--accept", "3")
    mended = tree(tiny) / MODELING
    mended.write_text(mended.read_text().replace("hooks.embeds(attention_mask)", "hooks.embeds(mask)"))
    assert "is edited and not committed" in tiny.fails("rebase-continue")
    git(tree(tiny), "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert "3 patches in, 3 out: 2 unchanged, 1 adapted" in tiny.ok("rebase-continue").out
    tiny.ok("verify")


def test_a_change_that_is_put_right_goes_through(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", renamed_class())
    tiny.fails("rebase", "--to", "9.10.0")
    file = tree(tiny) / MODELING
    base, name, model = file.read_text().partition("class Model:")
    hooked = "        hidden_states = hooks.embeds(inputs_embeds)\n"
    file.write_text(base.replace(hooked, LINE) + name + model.replace(LINE, hooked))
    git(tree(tiny), "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert "2 patches in, 2 out" in tiny.ok("rebase-continue").out
    assert '"scopes": ["Model.forward"]' in series(tiny)["landing.json"]


def test_a_hunk_that_got_lost_while_resolving_is_noticed(tiny: Tiny, later: Later) -> None:
    """Only one of the two changes of the patch is in what somebody staged."""
    later.known("9.10.0", edited(MODELING, LINE, "        hidden_states = inputs_embeds * 2\n"))
    tiny.fails("rebase", "--to", "9.10.0")
    file = tree(tiny) / MODELING
    ours = git(tree(tiny), "show", f":2:{MODELING}")
    file.write_text(ours.replace("import create_mask\n", f"import create_mask\n{IMPORT}"))
    git(tree(tiny), "add", MODELING)
    said = tiny.fails("rebase-continue")
    assert f"meant for Model.forward in {MODELING}, went to nowhere" in said
    assert "1 conflicted" in tiny.ok("rebase-continue", "--accept", "2").out


def test_the_same_lines_in_another_file_do_not_count(tiny: Tiny, later: Later) -> None:
    """What lies right stays right, however alike the rest of the release is."""
    twin = {"src/transformers/masking_twin.py": UPSTREAM[MASKING], "src/transformers/twin.py": TEXT}
    later.known("9.10.0", twin)
    assert "2 unchanged" in tiny.ok("rebase", "--to", "9.10.0").out


def test_a_class_that_keeps_its_old_name_beside_the_new_is_the_same_place(tiny: Tiny, later: Later) -> None:
    later.known("9.10.0", {MODELING: TEXT.replace("class Model:", "class Base:") + "\n\nModel = Base\n"})
    assert "2 patches in, 2 out" in tiny.ok("rebase", "--to", "9.10.0").out
    assert '"scopes": ["Base.forward"]' in series(tiny)["landing.json"]


def test_a_name_that_another_class_has_got_is_no_name_beside(tiny: Tiny, later: Later) -> None:
    """`Model = ForTokens` says nothing of the class that the change landed in."""
    later.known("9.10.0", {MODELING: TEXT.replace("class Model:", "class Base:") + "\n\nModel = ForTokens\n"})
    assert "went to Base.forward" in tiny.fails("rebase", "--to", "9.10.0")


def test_generated_files_that_are_not_there_are_left_out_by_name(
    tiny: Tiny, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carry, "GENERATED", "class ForTokens")
    tiny.ok("apply", "--source", "sdist")
    for name in (MODELING, MASKING):
        (tiny.checkout / name).write_text((tiny.checkout / name).read_text() + "\n\nEDIT = 1\n")
    git(tiny.checkout, "add", MODELING)
    commit_edit(tiny, MASKING, "", "Edit both")
    tiny.ok("export")
    later.release("9.10.0", {})
    later.remove("9.10.0", MODELING)
    out = tiny.ok("rebase", "--to", "9.10.0", "--source", "sdist").out
    assert f"dropped: 0002-Show-the-hook-the-embeddings.patch ({MODELING}: not there)" in out
    assert f"adapted: 0003-Edit-both.patch; without {MODELING}, which is not there" in out
    assert "3 patches in, 2 out: 1 unchanged, 1 adapted, 0 conflicted, 1 dropped" in out
    assert MODELING not in "".join(series(tiny).values())


def test_a_file_that_nobody_generates_is_not_left_out(tiny: Tiny, later: Later) -> None:
    tiny.ok("apply", "--source", "sdist")
    later.release("9.10.0", {})
    later.remove("9.10.0", MODELING)
    assert "the new release has no such file" in tiny.fails("rebase", "--to", "9.10.0", "--source", "sdist")
