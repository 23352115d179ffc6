"""Tiles count visible pairs exactly, from key ranges as from the whole mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_masks import inputs, said_patterns, unpadded
from torch import Tensor

from transformers.mask_patterns import Causal, Pattern, Sink, SlidingWindow, from_function
from transformers.mask_patterns.draw import tiles as tiles_module
from transformers.mask_patterns.draw.axes import short_number, ticks
from transformers.mask_patterns.draw.tiles import LEVELS, MOST_DENSE, Tiles, cuts, tiles_of


def counted(seen: Tensor, rows: list[int], columns: list[int]) -> list[list[int]]:
    """Ones between the given borders, one tile after the other."""
    return [
        [int(seen[top:bottom, left:right].sum()) for left, right in zip(columns, columns[1:], strict=False)]
        for top, bottom in zip(rows, rows[1:], strict=False)
    ]


def by_hand(
    pattern: Pattern, length: int, most: int, data: dict[str, Any]
) -> list[list[tuple[list[list[int]], list[list[int]]]]]:
    """Visible pairs, and those with a later key, per row, head and tile."""
    mask, borders = pattern.dense(length, **data), cuts(length, most).tolist()
    return [
        [(counted(seen, borders, borders), counted(seen.triu(1), borders, borders)) for seen in heads]
        for heads in mask
    ]


@given(st.data())
def test_tiles_are_the_counts_of_the_whole_mask(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 12))
    real = unpadded(batch, length)
    said = data.draw(said_patterns(real))
    given = inputs(real, said.reads)
    most = data.draw(st.integers(1, 13))
    found = [
        [(tiles.seen.tolist(), tiles.ahead.tolist()) for tiles in row]
        for row in tiles_of(*said.pattern.placed(length, **given), most)
    ]
    assert found == by_hand(said.pattern, length, most, given)


@given(st.integers(1, 200), st.integers(1, 200))
def test_cuts_are_as_even_as_they_can_be(length: int, most: int) -> None:
    sizes = cuts(length, most).diff()
    assert len(sizes) == min(length, most)
    assert int(sizes.sum()) == length
    assert int(sizes.max() - sizes.min()) <= 1


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_coarser_tiles_hold_what_finer_ones_do(length: int, rows: int, columns: int) -> None:
    pattern = SlidingWindow(3, symmetric=True)
    coarse = tiles_of(*pattern.placed(length), most=20)[0][0].coarser(rows, columns)
    assert (len(coarse.seen), len(coarse.seen[0])) == (min(rows, 20, length), min(columns, 20, length))
    seen = pattern.dense(length)[0, 0]
    borders = coarse.rows.tolist(), coarse.columns.tolist()
    assert coarse.seen.tolist() == counted(seen, *borders)
    assert coarse.ahead.tolist() == counted(seen.triu(1), *borders)


@given(st.integers(0, 12), st.integers(0, 12))
def test_only_empty_tiles_look_empty_and_only_full_ones_full(seen: int, ahead: int) -> None:
    counts = torch.tensor([[seen]]), torch.tensor([[min(seen, ahead)]])
    tiles = Tiles(torch.tensor([0, 3]), torch.tensor([0, 4]), *counts)  # twelve pairs
    level = abs(tiles.shades[0][0])
    assert (level == 0) == (seen == 0)
    assert (level == LEVELS) == (seen == 12)
    assert (tiles.shades[0][0] < 0) == (min(seen, ahead) > 0)


def test_100_000_positions_come_from_ranges_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "grid", None)  # a mask of 10 GB
    tiles = tiles_of(*(Sink(4) | SlidingWindow(1000)).placed(100_000), most=100)[0][0]
    band = torch.eye(100, dtype=torch.long)
    expected = 500_500 * band + 499_500 * band.roll(1, 0).tril()  # what the window shows of its own and the last tile
    expected[2:, 0] += 4 * 1000
    expected[1, 0] += 1000 + 999 + 998 + 997  # sinks that the window does not show already
    assert torch.equal(tiles.seen, expected)
    assert tiles.ahead.sum() == 0


def test_bands_of_a_mask_without_ranges_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "_AT_ONCE", 70)
    pattern = from_function(lambda b, h, q, k: (q * k) % 3 == 1)
    tiles = tiles_of(*pattern.placed(30), most=4)[0][0]
    assert [(tiles.seen.tolist(), tiles.ahead.tolist())] == by_hand(pattern, 30, 4, {})[0]


def test_a_long_mask_without_ranges_is_refused() -> None:
    pattern = from_function(lambda b, h, q, k: k <= q)
    with pytest.raises(ValueError, match=r"`length`: got 16,385; expected at most 16,384 .* no form as key ranges"):
        tiles_of(*pattern.placed(MOST_DENSE + 1), most=8)


def test_ticks_are_round() -> None:
    assert ticks(100_000, 5) == [0, 25_000, 50_000, 75_000, 100_000]
    assert ticks(16, 20) == list(range(17))
    assert ticks(64, 8) == [0, 10, 20, 30, 40, 50, 60]
    assert [short_number(n) for n in (0, 999, 1000, 1024, 2500, 25_000, 1_500_000)] == [
        "0", "999", "1k", "1024", "2.5k", "25k", "1.5M",
    ]  # fmt: skip


def test_causal_tiles_by_formula_where_they_do_not_come_out_even() -> None:
    tiles = tiles_of(*Causal().placed(100_003), most=128)[0][0]
    sizes = tiles.rows.diff()
    expected = torch.outer(sizes, sizes).tril(-1) + torch.diag(sizes * (sizes + 1) // 2)
    assert torch.equal(tiles.seen, expected)
