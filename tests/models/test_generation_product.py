"""The product of masks, caches and ways to decode: every logit right, or an error that is known and explained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import generation_page
import pytest
import torch
from decoding import Batch, Keys, Way, decode, mask_until, shared_model
from generation_cells import LIMITS, Cell, Data, Outcome, difference, is_valid, limit, run
from generation_page import NEW_TOKENS, PAGE, STALE, cell_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import BACKENDS, FAMILIES
from test_generation import close, generate, step_logits, tiny_model, whole_logits

from transformers import mask_patterns
from transformers.mask_patterns import Causal, Document, Pattern


AXES: list[list[Any]] = [list(BACKENDS), list(FAMILIES), list(Batch), list(Keys), list(Way), list(Data)]
ON_THE_PAGE = [
    *(cell_of(way, keys, backend=backend) for backend in BACKENDS for way in Way for keys in Keys),
    *(cell_of(way, data=data) for way in Way for data in Data),
    *(cell_of(Way.GREEDY, keys, data) for keys in Keys for data in Data),
]
LINES = PAGE.read_text(encoding="utf-8").splitlines()


Pair = tuple[tuple[int, Any], tuple[int, Any]]  # two axes, and a value on each


def pairs_of(cell: Cell) -> set[Pair]:
    return set(combinations(enumerate(vars(cell).values()), 2))


def possible_pairs() -> set[Pair]:
    """Every pair that some valid cell holds: the first value of each axis goes with all others."""
    axes = combinations(enumerate(AXES), 2)
    pairs = {((i, one), (j, other)) for (i, first), (j, second) in axes for one in first for other in second}
    return {pair for pair in pairs if is_valid(Cell(*(dict(pair).get(i, axis[0]) for i, axis in enumerate(AXES))))}


@cache
def cells_for_all_pairs() -> list[Cell]:
    """With those on the page they hold every pair of values."""
    draw, cells = Random(0), []
    missing = possible_pairs().difference(*map(pairs_of, ON_THE_PAGE))
    while missing:
        wanted = dict(min(missing, key=str))
        drawn = (Cell(*(wanted.get(i, draw.choice(axis)) for i, axis in enumerate(AXES))) for _ in range(200))
        cells.append(max(filter(is_valid, drawn), key=lambda cell: len(pairs_of(cell) & missing)))
        missing -= pairs_of(cells[-1])
    return cells


def require_right_or_explained(cell: Cell) -> None:
    result = run(cell)
    if result.outcome is not Outcome.EQUAL:
        limit(cell, result)


@pytest.mark.parametrize("way", Way)
def test_the_page_says_of_each_way_what_runs(way: Way) -> None:
    assert generation_page.row_of_caches(way) in LINES, "run tests/models/generation_page.py"
    assert generation_page.row_of_data(way) in LINES, "run tests/models/generation_page.py"


@pytest.mark.parametrize("data", Data)
def test_the_page_says_of_each_mask_what_runs(data: Data) -> None:
    assert generation_page.row_of_data_in_caches(data) in LINES, "run tests/models/generation_page.py"


def test_the_rest_of_the_page_is_what_the_script_says() -> None:
    names = {*(way.value for way in Way), *(data.value for data in Data)}
    rest = [line for line in LINES if line.removeprefix("| ").split(" | ")[0].replace("\\|", "|") not in names]
    assert rest == generation_page.page([], [], []).splitlines(), "run tests/models/generation_page.py"


@pytest.mark.parametrize("part", range(4))
def test_every_pair_of_values_is_right_or_explained(part: int) -> None:
    for cell in cells_for_all_pairs()[part::4]:
        require_right_or_explained(cell)


@given(cell=st.builds(Cell, *(st.sampled_from(axis) for axis in AXES)).filter(is_valid))
@settings(max_examples=20)
def test_any_cell_is_right_or_explained(cell: Cell) -> None:
    require_right_or_explained(cell)


@pytest.mark.parametrize("data", Data)
def test_a_decoder_that_ignores_the_mask_is_found_out(data: Data) -> None:
    cell = cell_of(Way.GREEDY, data=data)
    model = shared_model(cell.backend, cell.family, cell.keys)
    ignored = decode(
        cell.way, cell.keys, model, cell.batch, lambda _, end: {"attention_mask": mask_until(cell.batch, end)}
    )
    assert "logits off by" in difference(cell, model, ignored)


def test_what_upstream_refuses_it_refuses_without_us(upstream: Path) -> None:
    script = Path(__file__).with_name("decoding.py")
    cells = {(cell.batch.name, cell.keys.name, cell.way.name): cell for cell in ON_THE_PAGE if upstreams(cell)}
    assert len(cells) > 30
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(upstream / "src")},
        input=json.dumps(list(cells)),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    for cell, said in zip(cells.values(), json.loads(done.stdout), strict=True):
        assert re.match(LIMITS[upstreams(cell)].message, said), (cell, said)


def upstreams(cell: Cell) -> str:
    """The limit of upstream's that a cell is to run into."""
    found = [name for name, one in LIMITS.items() if one.outcome is Outcome.UPSTREAM and one.where(cell)]
    return found[0] if found else ""


def test_every_named_pattern_says_how_it_goes_on() -> None:
    public = {name: getattr(mask_patterns, name) for name in mask_patterns.__all__}
    named = {name for name, of in public.items() if isinstance(of, type) and issubclass(of, Pattern)} - {"Pattern"}
    assert named == set(NEW_TOKENS)


@pytest.mark.parametrize("name", [name for name, new in NEW_TOKENS.items() if new.raises == STALE])
def test_what_a_cache_cannot_hold_runs_without_one(name: str) -> None:
    """Every step is that of a whole forward over the tokens so far."""
    model, ids = tiny_model(), torch.tensor([[6, 7, 5, 8, 9, 6, 7, 5, 8]])
    call = {"mask_pattern": NEW_TOKENS[name].text, "do_sample": False, "sequence_bias": {(5,): 9.0}}
    out = generate(model, ids, torch.ones_like(ids), use_cache=False, max_new_tokens=4, **call)
    for step, got in enumerate(out.logits):
        so_far = out.sequences[:, : 9 + step]
        with torch.no_grad():
            close(got, model(so_far, mask_pattern=call["mask_pattern"], use_cache=False).logits[:, -1])


@pytest.mark.parametrize("name", NEW_TOKENS)
def test_new_tokens_follow_the_rule_or_are_refused(name: str) -> None:
    model, new = tiny_model(), NEW_TOKENS[name]
    ids = torch.tensor([[6, 7, 5, 8, 9, 6, 7, 5, 8]])
    call = {"mask_pattern": new.text, "do_sample": False, "sequence_bias": {(5,): 9.0}, "max_new_tokens": 4}
    if new.raises:
        for cached in (True, False) if name in ("Tree", "BlockDiffusion") else (True,):
            with pytest.raises(ValueError, match=new.raises):
                generate(model, ids, torch.ones_like(ids), use_cache=cached, **call)
        return
    out = generate(model, ids, torch.ones_like(ids), **call)
    assert (out.sequences[:, 9:-1] == 5).any()
    pattern = "prefix_lm(3)" if name == "PrefixLM" else new.text
    close(step_logits(out, 9), whole_logits(model, out.sequences, torch.ones_like(ids), mask_pattern=pattern))


def test_the_example_of_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PAGE.parents[1])
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    model, prompt, real = names["model"].float(), names["prompt"], torch.ones_like(names["prompt"])
    out = generate(model, prompt, real, use_cache=False, max_new_tokens=5, do_sample=False)
    del model.get_mask_pattern
    alone = Causal() & Document(torch.tensor([[0, 0, 1, 1, 2, 3, 4, 5, 6]]))
    close(step_logits(out, 4), whole_logits(model, out.sequences, real, mask_pattern=alone))
