"""Pictures as SVG and PNG: what they show is read back from them."""

from __future__ import annotations

import os
import re
import sys
import xml.etree.ElementTree as ET
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_masks import inputs, said_patterns, unpadded

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PerHead,
    PerLayer,
    PrefixLM,
    Sink,
    SlidingWindow,
    Tree,
)
from transformers.mask_patterns.draw.picture import picture, telling_length
from transformers.mask_patterns.draw.shapes import FUTURE, HIDDEN, PAST
from transformers.mask_patterns.draw.tiles import LEVELS


NS = {"svg": "http://www.w3.org/2000/svg"}
SUBPATH = re.compile(r"M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z")


def masks(svg: str) -> list[list[list[str]]]:
    """The cells of each panel, by class name, `hidden` where no other path lies; no cell may be painted twice."""
    return [_cells(group) for group in ET.fromstring(svg).findall("svg:g[@class='mask']", NS)]


def _cells(group: ET.Element) -> list[list[str]]:
    background, *paths = group.findall("svg:path", NS)
    assert background.get("class") == "hidden"
    side = int(_rectangles(background)[0][2])
    grid = [["hidden"] * side for _ in range(side)]
    for path in paths:
        for x, y, width, height in _rectangles(path):
            for row in grid[y : y + height]:
                assert row[x : x + width] == ["hidden"] * width
                row[x : x + width] = [str(path.get("class"))] * width
    return grid


def _rectangles(path: ET.Element) -> list[tuple[int, int, int, int]]:
    d = str(path.get("d"))
    assert SUBPATH.sub("", d) == ""
    found = [[int(number) for number in match] for match in SUBPATH.findall(d)]
    assert all(width == back for _, _, width, _, back in found)
    return [(x, y, width, height) for x, y, width, height, _ in found]


def texts(svg: str) -> list[str]:
    return [str(element.text) for element in ET.fromstring(svg).findall("svg:text", NS)]


@given(st.data())
def test_the_cells_of_an_svg_are_the_mask(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 9))
    said = data.draw(said_patterns(unpadded(batch, length)))
    given_data = inputs(unpadded(batch, length), said.reads)
    expected = []
    heads = [seen for row in said.pattern.dense(length, **given_data).tolist() for seen, _ in groupby(row)]
    for seen in heads:  # neighbours that look the same share one
        signs = [[f"past-{LEVELS}" if k <= q else f"future-{LEVELS}" for k in range(length)] for q in range(length)]
        rows = zip(seen, signs, strict=True)
        expected.append([[sign if s else "hidden" for s, sign in zip(*row, strict=True)] for row in rows])
    assert masks(picture(said.pattern, length, **given_data).svg()) == expected


def test_tiles_are_shaded_by_the_part_that_is_visible() -> None:
    (tiles,) = masks(picture(Sink(1) | SlidingWindow(1000), 100_000).svg())
    assert len(tiles) == 128
    assert {row[0] for row in tiles[3:]} == {"past-1"}
    assert {tiles[q][k] for q in range(2, 128) for k in range(1, q - 1)} - {"hidden"} <= {"past-1"}
    assert {tiles[q][q] for q in range(128)} == {"past-2"}
    assert {tiles[q][k] for q in range(128) for k in range(q + 1, 128)} == {"hidden"}


@pytest.mark.parametrize(
    "pattern", ["causal", "sink(4) | sliding_window(1024)", "~sliding_window(30000, symmetric=true)"]
)
def test_a_picture_of_100_000_positions_is_small(pattern: str) -> None:
    assert len(picture(Pattern.parse(pattern), 100_000).svg()) < 30_000


def test_a_random_picture_of_tiles_is_not_large() -> None:
    ids = torch.randint(0, 2, (1, 128), generator=torch.Generator().manual_seed(0))
    assert len(picture(Document(ids), 128).svg()) < 200_000


def test_a_document_says_pattern_positions_and_panels() -> None:
    svg = picture(PrefixLM(torch.tensor([1, 2])), 3).svg()
    assert ET.fromstring(svg).findtext("svg:title", namespaces=NS) == "prefix_lm(<2 length>)"
    shown = texts(svg)
    assert shown[0] == "prefix_lm(<2 length>)"
    for row in ("row 0", "row 1"):
        at = shown.index(row)
        assert shown[at + 1 : at + 9] == ["key →", "← query", "0", "0", "1", "1", "2", "2"]
    assert shown[-2:] == ["visible", "visible, later than the query"]


def test_tokens_are_escaped() -> None:
    svg = picture(Causal(), 3, tokens=["<script>", "a & b", "\x00"]).svg()
    assert "<script>" not in svg
    assert [name for name in ("<script>", "a␣&␣b", "\\x00") if texts(svg).count(name) == 2] == [
        "<script>", "a␣&␣b", "\\x00",
    ]  # fmt: skip


def test_a_title_of_any_length_is_wrapped_and_cut() -> None:
    pattern = Pattern.parse(" | ".join(f"sink({i})" for i in range(200)))
    title = texts(picture(pattern, 4).svg())[:3]
    assert " ".join(title).startswith("sink(0) | sink(1) | sink(2) | ")
    assert title[2].endswith(" …")
    assert max(map(len, title)) < 50


@pytest.mark.parametrize("tokens", ["abc", ["a", "b"], ["a", "b", 3]])
def test_tokens_that_do_not_fit_are_refused(tokens: list[str]) -> None:
    with pytest.raises(ValueError, match="`tokens`: got .* expected a list of 3 strings"):
        picture(Causal(), 3, tokens=tokens)


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`length`: got 0; expected at least one token"):
        Causal().show(0)


def test_a_saved_svg_is_the_picture(tmp_path: Path) -> None:
    Causal().save(tmp_path / "mask.svg", 4, tokens=list("abcd"))
    assert (tmp_path / "mask.svg").read_text(encoding="utf-8") == picture(Causal(), 4, tokens=list("abcd")).svg()
    assert os.listdir(tmp_path) == ["mask.svg"]


def test_a_saved_png_has_the_colours_of_the_mask(tmp_path: Path) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.image import imread

    SlidingWindow(2, symmetric=True).save(tmp_path / "mask.png", 3)
    image = imread(tmp_path / "mask.png")
    colours = [[to_hex(pixel) for pixel in row[::4]] for row in image[::4].tolist()]
    counts = [sum(row.count(colour) for row in colours) for colour in (PAST[-1], FUTURE[-1], HIDDEN)]
    cell = (24 * 2 // 4) ** 2  # sampled pixels
    assert [round(count / cell, 0) for count in counts] == [5, 2, 2]


def test_a_png_of_tiles_and_several_panels_is_made(tmp_path: Path) -> None:
    PrefixLM(torch.tensor([10, 20, 80])).save(tmp_path / "mask.PNG", 100)
    assert (tmp_path / "mask.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_png_without_matplotlib_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib, or save a .svg"):
        Causal().save(tmp_path / "mask.png", 4)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"), [("mask.jpg", "ends in .svg or .png"), ("no/mask.svg", "a folder that")]
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"`path`: got '.*{name}'; expected .*{expected}"):
        Causal().save(tmp_path / name, 4)
    assert not os.listdir(tmp_path)


def test_a_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError("disk full")

    Causal().save(tmp_path / "mask.svg", 4)
    before = (tmp_path / "mask.svg").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="disk full"):
        Bidirectional().save(tmp_path / "mask.svg", 4)
    assert (tmp_path / "mask.svg").read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.svg"]


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (Causal(), 16),
        (Sink(4) | SlidingWindow(1024), 4096),
        (SlidingWindow(2**31 - 1), 131_072),
        (Causal() & ~Document(torch.zeros(2, 50, dtype=torch.long)), 50),
        (PrefixLM(torch.tensor([3, 9])), 36),
        (PrefixLM(until=151_643), 16),
        (PerHead({0: Causal(), "default": ~SlidingWindow(9)}), 36),
        (PerLayer({0: Causal(), 1: SlidingWindow(6), "default": "native"}), 24),
        (Tree(2, (-1, 0, 0)), 5),
        (Tree(torch.tensor([2, 3]), torch.tensor([[-1, 0, -1], [-1, 0, 1]])), 6),
    ],
    ids=str,
)
def test_a_notebook_shows_a_length_at_which_the_pattern_does_something(
    pattern: Pattern | PerLayer, length: int
) -> None:
    assert telling_length(pattern) == length


def test_a_notebook_shows_the_picture() -> None:
    assert Sink(1)._repr_svg_() == picture(Sink(1), 16).svg()
    layers = PerLayer({0: Sink(1), "default": "causal"})
    assert layers._repr_svg_() == picture(layers, 16).svg()
    assert len(masks(picture(layers, 16).svg())) == 2


def test_a_picture_shows_itself() -> None:
    drawn = Causal().picture(2, tokens=["a", "b"])
    assert repr(drawn) == drawn.text() == "causal\n\nq\\k a b\n  a ■ ⬚\n  b ■ ■"
    assert drawn._repr_svg_() == drawn.svg()


@pytest.mark.parametrize("pattern", [Document(), Causal() & PrefixLM(until=5)], ids=str)
def test_a_notebook_falls_back_to_text_where_data_is_missing(pattern: Pattern) -> None:
    assert pattern._repr_svg_() is None
