"""Pictures in the terminal: small masks key by key, long ones in tiles that never lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformers.mask_patterns import Causal, Document, Sink, SlidingWindow
from transformers.mask_patterns.draw import text


def test_a_small_mask_is_drawn_key_by_key(capsys: pytest.CaptureFixture[str]) -> None:
    (Sink(1) | SlidingWindow(2)).show(5)
    assert capsys.readouterr().out == (
        "■ ⬚ ⬚ ⬚ ⬚\n"
        "■ ■ ⬚ ⬚ ⬚\n"
        "■ ■ ■ ⬚ ⬚\n"
        "■ ⬚ ■ ■ ⬚\n"
        "■ ⬚ ⬚ ■ ■\n"
    )  # fmt: skip


def test_rows_and_heads_stand_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    (Causal() & Document()).show(2, document_ids=torch.tensor([[0, 0], [0, 1]]))
    assert capsys.readouterr().out == "row 0, head 0:\n■ ⬚\n■ ■\nrow 1, head 0:\n■ ⬚\n⬚ ■\n"


def test_a_mask_of_64_tokens_is_not_shaded() -> None:
    lines = text(Causal().dense(64)).split("\n")
    assert lines == [" ".join("■" * (q + 1) + "⬚" * (63 - q)) for q in range(64)]


def test_a_long_mask_is_shaded_in_64_tiles() -> None:
    lines = [line.split(" ") for line in text(Causal().dense(128)).split("\n")]  # two by two tokens a tile
    assert [len(line) for line in lines] == [64] * 64
    assert all(lines[q][k] == ("■" if k < q else "⬚") for q in range(64) for k in range(64) if q != k)
    assert {lines[q][q] for q in range(64)} == {"▓"}  # three of four


@pytest.mark.parametrize(("queries", "keys"), [(100, 100), (65, 3), (1, 200), (4000, 4000)])
@pytest.mark.parametrize("one", [False, True])
def test_a_single_key_is_never_lost_among_others(queries: int, keys: int, one: bool) -> None:
    seen = torch.full((1, 1, queries, keys), not one)
    seen[0, 0, queries // 2, keys // 2] = one
    drawn = text(seen).replace(" ", "").replace("\n", "")
    assert set(drawn) - {"⬚" if one else "■"}


def tiles(seen: Tensor, rows: int, columns: int) -> list[list[Tensor]]:
    """The parts of a mask, cut as evenly as they can be; where that does not come out even, they overlap."""
    return [_cut(line, columns, 1) for line in _cut(seen, rows, 0)]


def _cut(seen: Tensor, parts: int, dim: int) -> list[Tensor]:
    size = seen.shape[dim]
    bounds = [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
    return [seen.narrow(dim, start, end - start) for start, end in bounds]


@settings(max_examples=20)
@given(st.integers(65, 100), st.integers(1, 100), st.integers(0, 99), st.sampled_from([0.0, 0.001, 0.02, 0.3]))
def test_a_tile_is_empty_or_full_only_where_the_mask_is(queries: int, keys: int, seed: int, part: float) -> None:
    few = torch.rand(queries, keys, generator=torch.Generator().manual_seed(seed)) < part
    for seen in (few, ~few):
        lines = [line.split(" ") for line in text(seen[None, None]).split("\n")]
        for line, row in zip(lines, tiles(seen, len(lines), len(lines[0])), strict=True):
            assert [shade == "⬚" for shade in line] == [not tile.any() for tile in row]
            assert [shade == "■" for shade in line] == [bool(tile.all()) for tile in row]
