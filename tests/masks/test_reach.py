"""What can influence what through several layers, against a search in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_masks import GROUPS, Real, Said, brute_force, inputs, padded, said_patterns, unpadded
from torch import Tensor

from transformers.mask_patterns import Bidirectional, Document, Pattern, PrefixLM, SlidingWindow, from_function, reach
from transformers.mask_patterns.checks import label_leaks, network
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.positions import Layout
from transformers.mask_patterns.ranges import Ranges


BATCH, LENGTH = 2, 6
REAL = unpadded(BATCH, LENGTH)
ROWS = Rows(Layout.of(BATCH, LENGTH, heads=GROUPS, groups=GROUPS), inputs(REAL))
intervals = st.tuples(st.integers(0, 9), st.integers(0, 9))
stacks = st.lists(said_patterns(REAL, depth=3), min_size=1, max_size=4)


def reads_next(layers: Sequence[Pattern], rows: Rows | Layout, endless: bool = False) -> Tensor:
    rows = rows if isinstance(rows, Rows) else Rows(rows)
    return network(layers, rows, endless=endless).reads_next.expand(rows.layout.batch, -1)


def masks_of(said: Sequence[Said], real: Real) -> list[Tensor]:
    """What any head sees in each layer: bool `(batch, n, n)`."""
    slots = range(len(real[0]))
    return [brute_force(layer, real, slots, slots, GROUPS).any(1) for layer in said]


def searched(masks: Sequence[Tensor]) -> list[list[set[int]]]:
    """Per row and position, what it reaches through the masks `(batch, n, n)` of layers, first to last."""
    batch, n, _ = masks[0].shape
    reached = [[{i} for i in range(n)] for _ in range(batch)]
    for mask in masks:
        reached = [
            [set.union(row[i], *(row[k] for k in range(n) if mask[b, i, k])) for i in range(n)]
            for b, row in enumerate(reached)
        ]
    return reached


def next_of(reached: list[list[set[int]]]) -> Tensor:
    return torch.tensor([[i + 1 in to for i, to in enumerate(row)] for row in reached])


@given(st.lists(st.lists(intervals, min_size=3, max_size=3), min_size=1, max_size=4))
def test_covering_is_the_union_of_intervals(queries: list[list[tuple[int, int]]]) -> None:
    sides = torch.tensor(queries).permute(2, 1, 0)[:, None, None]
    union = Ranges.covering(sides[0], sides[1], 9)
    expected = [[any(a <= k < b for a, b in query) for k in range(9)] for query in queries]
    assert union.contains(torch.arange(9)[None])[0, 0].tolist() == expected
    assert union == ~~union  # canonical: what complements give always is


@given(st.integers(0, 2**40 - 1))
def test_a_grid_is_the_union_of_its_runs(bits: int) -> None:
    grid = torch.tensor([bits >> i & 1 for i in range(40)], dtype=torch.bool).reshape(2, 1, 4, 5)
    runs = Ranges.of_grid(grid)
    assert torch.equal(runs.contains(torch.arange(5)[None]), grid)
    assert runs == ~~runs


@pytest.mark.parametrize("most_intervals", [reach.MOST_INTERVALS, 0], ids=["intervals", "matrices"])
@pytest.mark.parametrize("endless", [False, True])
def test_the_next_token_is_reached_as_a_search_finds(endless: bool, most_intervals: int) -> None:
    @given(stacks)
    def agree(said: list[Said]) -> None:
        expected = next_of(searched(masks_of(said, REAL) * (LENGTH if endless else 1)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reach, "MOST_INTERVALS", most_intervals)
            assert torch.equal(reads_next([layer.pattern for layer in said], ROWS, endless), expected)

    agree()


@given(st.data(), st.lists(st.integers(0, 1), min_size=1, max_size=12))
def test_equal_layers_are_multiplied_once_and_in_their_order(data: st.DataObject, order: list[int]) -> None:
    two = [data.draw(said_patterns(REAL, depth=3)) for _ in range(2)]
    found = reads_next([two[i].pattern for i in order], ROWS)
    assert torch.equal(found, next_of(searched(masks_of([two[i] for i in order], REAL))))


def test_the_order_of_layers_matters() -> None:
    zero_sees_two = from_function(lambda b, h, q, k: (q == 0) & (k == 2))
    two_sees_one = from_function(lambda b, h, q, k: (q == 2) & (k == 1))
    layout = Layout.of(1, 3)
    assert reads_next([two_sees_one, zero_sees_two], layout).tolist() == [[True, False, False]]
    assert reads_next([zero_sees_two, two_sees_one], layout).tolist() == [[False, False, False]]


def test_a_path_may_change_heads() -> None:
    def skip(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.where(h == 0, (q == 0) & (k == 2), (q == 2) & (k == 1))

    layer = from_function(skip)
    assert reads_next([layer], Layout.of(1, 3, heads=2)).tolist() == [[False, False, False]]
    assert reads_next([layer] * 2, Layout.of(1, 3, heads=2)).tolist() == [[True, False, False]]
    assert reads_next([layer] * 2, Layout.of(1, 3, heads=1)).tolist() == [[False, False, False]]


@st.composite
def padded_stacks(draw: st.DrawFn) -> tuple[Real, list[Said]]:
    real = draw(padded(most_slots=7))
    return real, draw(st.lists(said_patterns(real, depth=2), min_size=1, max_size=3))


@given(padded_stacks())
def test_labels_leak_by_slot_as_a_search_finds(drawn: tuple[Real, list[Said]]) -> None:
    real, said = drawn
    slots = range(len(real[0]))
    layout = Layout.of(len(real), len(slots), real=torch.tensor(real), heads=GROUPS, groups=GROUPS)
    reached = searched(masks_of(said, real))
    expected = [
        [t > 0 and row[t] and row[t - 1] and t in reached[b][t - 1] for t in slots] for b, row in enumerate(real)
    ]
    stack = network([layer.pattern for layer in said], Rows(layout, inputs(real)))
    assert label_leaks(stack, layout).expand(len(real), -1).tolist() == expected


@pytest.mark.parametrize(
    ("pattern", "leaks"),
    [
        (Document(torch.arange(100_000) // 1000), 100 * 999),
        (PrefixLM(5000), 4999),
        (PrefixLM(5500) & Document(torch.arange(100_000) // 1000), 5 * 999 + 499),
        (~Document(torch.arange(100_000) // 25_000), 99_999),  # over another document and back
    ],
    ids=["documents", "prefix", "prefix in documents", "other documents"],
)
def test_a_hundred_thousand_tokens_are_counted_exactly(pattern: Pattern, leaks: int) -> None:
    assert int(pattern.check(100_000).leaks.sum()) == leaks


def test_a_window_reaches_as_far_as_its_layers() -> None:
    """Token 0 sees only what is 40 ahead, and it takes layers of a backward window of 4 to come back from there."""
    jump = from_function(lambda b, h, q, k: (q == 0) & (k == 40))
    layout = Layout.of(1, 50)
    for layers in range(12, 15):
        found = reads_next([SlidingWindow(4)] * layers + [jump], layout)
        assert bool(found[0, 0]) == (layers >= 13)  # 39 tokens back, 3 a layer


def test_many_intervals_go_to_matrices_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even tokens see even ones, odd see odd: no token reads the next, though all read the future."""
    alternating = Document(torch.arange(400) % 2)
    assert not alternating.check(400).leaks.any()
    assert alternating.check(400).future == (0, 2)
    assert (alternating | SlidingWindow(2, symmetric=True)).check(400).leaks.sum() == 399
    monkeypatch.setattr(reach, "MOST_DENSE", 399)
    with pytest.raises(ValueError, match=r"`length`: got 400 tokens, for a mask of more than 64 .* at most 399"):
        alternating.check(400)


def test_intervals_that_become_many_on_the_way_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "MOST_INTERVALS", 2)
    comb = from_function(lambda b, h, q, k: (k == q + 4) | (k == q + 12))
    layout = Layout.of(1, 60)
    assert not reads_next([comb] * 3, layout).any()
    monkeypatch.setattr(reach, "MOST_DENSE", 59)
    with pytest.raises(ValueError, match="Check the same pattern on fewer tokens"):
        reads_next([comb] * 3, layout)


def test_rows_without_a_token_leak_nothing() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.long)
    assert not Bidirectional().check(3, attention_mask=nothing).leaks.any()
    assert not Bidirectional().check(0).leaks.any()
