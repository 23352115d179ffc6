"""Pictures in the terminal: small masks key by key, long ones in shaded tiles."""

from __future__ import annotations

import pytest
import torch

from transformers.mask_patterns import (
    Causal,
    Document,
    PerHead,
    PerLayer,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)
from transformers.mask_patterns.draw.picture import picture


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_small_mask_is_drawn_key_by_key(capsys: pytest.CaptureFixture[str]) -> None:
    (Sink(1) | SlidingWindow(2)).show(5)
    assert shown(capsys) == [
        "sink(1) | sliding_window(2)",
        "",
        "q\\k 0 1 2 3 4",
        "  0 ■ ⬚ ⬚ ⬚ ⬚",
        "  1 ■ ■ ⬚ ⬚ ⬚",
        "  2 ■ ■ ■ ⬚ ⬚",
        "  3 ■ ⬚ ■ ■ ⬚",
        "  4 ■ ⬚ ⬚ ■ ■",
    ]


def test_later_keys_have_a_sign_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    SlidingWindow(2, symmetric=True).show(3)
    assert shown(capsys)[2:] == [
        "q\\k 0 1 2",
        "  0 ■ ◆ ⬚",
        "  1 ■ ■ ◆",
        "  2 ⬚ ■ ■",
        "",
        "◆ a key later than its query",
    ]


def test_tokens_stand_on_both_axes(capsys: pytest.CaptureFixture[str]) -> None:
    Causal().show(5, tokens=["The", " cat", "猫", "\n", "Antidisestablishment"])
    assert shown(capsys)[2:] == [
        "                     A",
        "                     n",
        "                     t",
        "                     i",
        "               ␣     d",
        "             T c     i",
        "             h a   \\ s",
        "         q\\k e t 猫n …",
        "         The ■ ⬚ ⬚ ⬚ ⬚",
        "        ␣cat ■ ■ ⬚ ⬚ ⬚",
        "          猫 ■ ■ ■ ⬚ ⬚",
        "          \\n ■ ■ ■ ■ ⬚",
        "Antidisesta… ■ ■ ■ ■ ■",
    ]


def test_rows_stand_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    (Causal() & Document()).show(2, document_ids=torch.tensor([[0, 0], [0, 1]]))
    rows = [["row 0", "q\\k 0 1", "  0 ■ ⬚", "  1 ■ ■"], ["row 1", "q\\k 0 1", "  0 ■ ⬚", "  1 ⬚ ■"]]
    assert shown(capsys) == ["causal & document", "", *rows[0], "", *rows[1]]


def test_heads_that_look_alike_are_drawn_once(capsys: pytest.CaptureFixture[str]) -> None:
    from_function(lambda b, h, q, k: (k <= q) & ((h < 3) | (k == q))).show(2, heads=4)
    heads = [["heads 0-2", "q\\k 0 1", "  0 ■ ⬚", "  1 ■ ■"], ["head 3", "q\\k 0 1", "  0 ■ ⬚", "  1 ⬚ ■"]]
    assert shown(capsys)[2:] == [*heads[0], "", *heads[1]]


def test_groups_of_heads_are_drawn_as_often_as_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    PerHead({"0-1": Causal(), 2: SlidingWindow(1)}).show(2)
    heads = [["heads 0-1", "q\\k 0 1", "  0 ■ ⬚", "  1 ■ ■"], ["head 2", "q\\k 0 1", "  0 ■ ⬚", "  1 ⬚ ■"]]
    assert shown(capsys)[2:] == [*heads[0], "", *heads[1]]


def test_layers_are_drawn_as_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    masks = PerLayer({"0-3": "causal", 4: "native", 5: Sink(1), "sliding_attention": SlidingWindow(1)})
    masks.show(2)
    layers = [
        ["layers 0-3: causal", "q\\k 0 1", "  0 ■ ⬚", "  1 ■ ■"],
        ["layer 5: sink(1)", "q\\k 0 1", "  0 ■ ⬚", "  1 ■ ⬚"],
        ["sliding_attention: sliding_window(1)", "q\\k 0 1", "  0 ■ ⬚", "  1 ⬚ ■"],
    ]
    assert shown(capsys) == [str(masks), "", *layers[0], "", *layers[1], "", *layers[2]]


def test_data_is_for_the_layers_that_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    masks = PerLayer({0: "causal", "default": "causal & document"})
    masks.show(2, document_ids=torch.tensor([[0, 1]]))
    assert [line for line in shown(capsys) if line.startswith("  1")] == ["  1 ■ ■", "  1 ⬚ ■"]
    with pytest.raises(ValueError, match=r"`mask_inputs`: got \['segment_ids'\]"):
        masks.show(2, document_ids=torch.tensor([[0, 1]]), segment_ids=torch.tensor([[0, 1]]))


def test_upstreams_own_masks_alone_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="expected a pattern for some layer"):
        picture(PerLayer({"default": "native"}), 4)


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (11, "q\\k 0   2   4   6   8   10"),
        (36, "q\\k 0   2   4   6   8   10  12  14  16  18  20  22  24  26  28  30  32  34"),
        (64, "q\\k 0    5    10   15   20   25   30   35   40   45   50   55   60"),
    ],
)
def test_up_to_64_tokens_are_not_shaded_and_fit_into_80_columns(length: int, header: str) -> None:
    lines = picture(Causal(), length).text().splitlines()[2:]
    assert lines[0] == header
    assert max(map(len, lines)) <= 80
    signs = [line[4:].replace(" ", "") for line in lines[1:]]
    assert signs == ["■" * (q + 1) + "⬚" * (length - 1 - q) for q in range(length)]


def test_a_long_mask_is_shaded_in_32_by_64_tiles() -> None:
    lines = picture(Causal(), 128).text().splitlines()[2:]
    assert lines[0] == "q\\k 0                        50                       100"
    labels = {0: "0", 12: "50", 25: "100"}
    assert [line[:3].strip() for line in lines[1:]] == [labels.get(row, "") for row in range(32)]
    # four queries and two keys a tile: of the two on the diagonal, 7 and 3 of 8 pairs are visible
    assert [line[4:] for line in lines[1:]] == ["█" * 2 * row + "▓▒" + "·" * (62 - 2 * row) for row in range(32)]


def test_a_long_mask_that_looks_ahead_says_so() -> None:
    assert picture(PrefixLM(70), 100).text().endswith("\n\nsome queries see later keys")
    assert "later" not in picture(PrefixLM(1), 100).text()  # the first token sees itself anyway


def test_a_thin_window_does_not_vanish_at_100_000_tokens() -> None:
    lines = picture(Sink(1) | SlidingWindow(2), 100_000).text().splitlines()[3:]
    tiles = [set(line[4:]) for line in lines]
    assert all(row == {"░", "·"} for row in tiles)
    assert all(line[4] == "░" for line in lines)
