"""Slots and positions: padding, caches and static tails never change what a pattern means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_masks import GROUPS, HEADS, Real, Said, brute_force, inputs, padded, ranks, said_patterns
from torch import Tensor

from transformers.mask_patterns import Document, Pattern, PrefixLM, from_function
from transformers.mask_patterns.inputs import PerToken, Rows
from transformers.mask_patterns.lowering.dense import visible_grid
from transformers.mask_patterns.positions import Layout


paddings = padded()


@st.composite
def said_in_padding(draw: st.DrawFn) -> tuple[Real, Said]:
    real = draw(paddings)
    return real, draw(said_patterns(real, depth=3))


@st.composite
def layouts(draw: st.DrawFn, real: Real) -> Layout:
    """Any forward over the rows: how much is cached, what the cache dropped, and how far it is allocated."""
    slots = len(real[0])
    q_offset = draw(st.integers(0, slots - 1))
    kv_offset = draw(st.integers(0, q_offset))
    kv_length = slots - kv_offset + draw(st.integers(0, 3))
    return Layout.of(
        len(real),
        slots - q_offset,
        real=torch.tensor(real),
        q_offset=q_offset,
        kv_offset=kv_offset,
        kv_length=kv_length,
        heads=HEADS,
        groups=GROUPS,
    )


def plain_layout(real: Real, q_offset: int = 0) -> Layout:
    """A forward that goes on from a cache of so many slots, which has kept them all."""
    queries = len(real[0]) - q_offset
    return Layout.of(len(real), queries, real=torch.tensor(real), q_offset=q_offset, heads=HEADS, groups=GROUPS)


def by_row(data: PerToken) -> list[list[int]]:
    return [[int(data[row, position]) for position in range(count)] for row, count in enumerate(data.counts.tolist())]


def whole(said: Said, layout: Layout, real: Real) -> Tensor:
    bound = said.pattern.bind(Rows(layout, inputs(real)))
    return visible_grid(bound, layout).expand(layout.batch, HEADS, -1, -1)


def listed(row: list[bool]) -> list[int]:
    return [-1 if rank is None else rank for rank in ranks(row)]


@given(paddings, st.data())
def test_layout_counts_the_real_tokens_of_each_row(real: Real, data: st.DataObject) -> None:
    layout = data.draw(layouts(real))
    rows = [listed(row) for row in real]
    unfilled = [-1] * (layout.kv_offset + layout.kv_length - layout.slots)
    assert layout.positions.tolist() == rows
    assert layout.queries.tolist() == [row[layout.q_offset :] for row in rows]
    assert layout.keys.tolist() == [row[layout.kv_offset :] + unfilled for row in rows]
    assert layout.counts.tolist() == [sum(row) for row in real]
    assert layout.length == max(map(sum, real))
    assert layout.is_padded == (not all(map(all, real)))


@given(said_in_padding(), st.data())
def test_every_query_and_key_is_the_token_it_holds(case: tuple[Real, Said], data: st.DataObject) -> None:
    real, said = case
    layout = data.draw(layouts(real))
    queries = range(layout.q_offset, layout.slots)
    keys = range(layout.kv_offset, layout.kv_offset + layout.kv_length)
    assert torch.equal(whole(said, layout, real), brute_force(said, real, queries, keys))


@given(said_in_padding())
def test_padding_never_changes_what_a_row_sees(case: tuple[Real, Said]) -> None:
    real, said = case
    grid = whole(said, plain_layout(real), real)
    for b, row in enumerate(real):
        tokens = torch.tensor(row).nonzero()[:, 0]
        padding = (~torch.tensor(row)).nonzero()[:, 0]
        length = range(len(tokens))
        for head in range(HEADS):
            alone = [[said.means(b, head // (HEADS // GROUPS), q, k) for k in length] for q in length]
            assert grid[b, head][tokens][:, tokens].tolist() == alone
        assert not grid[b, :, padding].any()
        assert not grid[b, :, :, padding].any()


@given(said_in_padding())
def test_a_cached_forward_is_the_last_rows_of_the_whole(case: tuple[Real, Said]) -> None:
    real, said = case
    whole_grid = whole(said, plain_layout(real), real)
    for split in range(len(real[0])):
        assert torch.equal(whole(said, plain_layout(real, split), real), whole_grid[:, :, split:])


@given(paddings, st.data())
def test_data_by_slot_is_put_in_positions(real: Real, data: st.DataObject) -> None:
    slots = len(real[0])
    lines = data.draw(
        st.lists(
            st.lists(st.integers(0, 9), min_size=slots, max_size=slots),
            min_size=len(real),
            max_size=len(real),
        )
    )
    layout = Layout.of(len(real), slots, real=torch.tensor(real))
    by_position = [[x for x, token in zip(*pair, strict=True) if token] for pair in zip(lines, real, strict=True)]
    rows = Rows(layout, {"document_ids": torch.tensor(lines)}).per_token("document_ids")
    assert rows is not None
    assert by_row(rows) == by_position


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integers_of_any_size_are_data(dtype: torch.dtype) -> None:
    rows = Rows(Layout.of(2, 3), {"prefix_lengths": torch.tensor([1, 2], dtype=dtype)})
    lengths = rows.per_row("prefix_lengths")
    assert lengths is not None
    assert (lengths.tolist(), lengths.dtype) == ([1, 2], torch.int64)


def test_one_line_of_data_stands_for_all_rows() -> None:
    rows = Rows(Layout.of(2, 3), {"prefix_lengths": torch.tensor([1]), "document_ids": torch.tensor([[4, 4, 5]])})
    lengths, ids = rows.per_row("prefix_lengths"), rows.per_token("document_ids")
    assert lengths is not None
    assert ids is not None
    assert lengths.tolist() == [1, 1]
    assert by_row(ids) == [[4, 4, 5]] * 2


def test_data_of_the_pattern_goes_before_data_of_the_call() -> None:
    rows = Rows(Layout.of(1, 3), {"prefix_lengths": torch.tensor([1])})
    assert PrefixLM(torch.tensor([2])).bind(rows) == PrefixLM(torch.tensor([2]))


def test_what_nobody_gave_is_none() -> None:
    assert Rows(Layout.of(1, 3)).per_row("prefix_lengths") is None
    assert Rows(Layout.of(1, 3)).per_token("document_ids") is None


REFUSED: dict[str, list[tuple[object, str]]] = {
    "prefix_lengths": [
        (torch.tensor([1, 2, 3]), r"got shape \(3,\); expected shape \(2,\)"),
        (torch.tensor([[1], [2]]), r"got shape \(2, 1\); expected shape \(2,\)"),
        (torch.tensor(1), r"got shape \(\); expected shape \(2,\)"),
        (torch.tensor([1.0, 2.0]), r"got torch.float32; expected a tensor of integers"),
        (torch.tensor([True, False]), r"got torch.bool; expected a tensor of integers"),
        ([1, 2], r"got list; expected a tensor of integers"),
        (torch.tensor([1, -1]), r"got \[1, -1\]; expected numbers of at least 0"),
    ],
    "document_ids": [
        (torch.zeros(2, 2, dtype=torch.long), r"got shape \(2, 2\); expected shape \(2, 3\)"),
        (torch.zeros(2, 4, dtype=torch.long), r"got shape \(2, 4\); expected shape \(2, 3\)"),
        (torch.zeros(3, 3, dtype=torch.long), r"got shape \(3, 3\); expected shape \(2, 3\)"),
        (torch.zeros(3, dtype=torch.long), r"got shape \(3,\); expected two dimensions"),
        (torch.zeros(2, 3), r"got torch.float32; expected a tensor of integers"),
        (torch.zeros(2, 3, dtype=torch.complex64), r"got torch.complex64; expected a tensor of integers"),
    ],
}


@pytest.mark.parametrize(("name", "data", "message"), [(name, *case) for name in REFUSED for case in REFUSED[name]])
def test_unfit_data_is_refused_by_name(name: str, data: Any, message: str) -> None:
    pattern = PrefixLM() if name == "prefix_lengths" else Document()
    with pytest.raises(ValueError, match=f"`{name}`: {message}"):
        pattern.bind(Rows(Layout.of(2, 3), {name: data}))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (PrefixLM(), "prefix_lengths"),
        (Document(), "document_ids"),
        (PrefixLM(until=3), "input_ids"),
        (Document(separator=3), "input_ids"),
    ],
)
def test_missing_data_is_asked_for_by_name(pattern: PrefixLM | Document, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}`: got nothing; expected .*mask_inputs={{'{name}': \.\.\.}}"):
        pattern.bind(Rows(Layout.of(1, 3)))


PROMPT = torch.tensor([[True, True, True, False], [False, True, True, True]])  # padded right, and left
IDS = torch.tensor([[0, 0, 1, 9], [9, 2, 2, 2]])


def test_data_seen_at_prefill_goes_on_with_the_last_token() -> None:
    seen: dict[str, list[Tensor]] = {}
    Rows(Layout.of(2, 4, real=PROMPT), {"document_ids": IDS}, seen).per_token("document_ids")
    real = torch.cat([PROMPT, torch.ones(2, 2, dtype=torch.bool)], dim=1)
    later = Rows(Layout.of(2, 1, real=real, q_offset=5), {"document_ids": IDS}, seen).per_token("document_ids")
    assert later is not None
    assert by_row(later) == [[0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]


@pytest.mark.parametrize("ids", [IDS, IDS[:, :3], IDS + 1])
def test_short_data_not_seen_at_prefill_is_refused(ids: Tensor) -> None:
    seen: dict[str, list[Tensor]] = {} if ids is IDS else {"document_ids": [IDS]}
    rows = Rows(Layout.of(2, 2, q_offset=4), {"document_ids": ids}, seen)
    with pytest.raises(ValueError, match=r"`document_ids`: got shape .*; expected shape \(2, 6\)"):
        rows.per_token("document_ids")


def test_data_is_remembered_at_prefill_only() -> None:
    seen: dict[str, list[Tensor]] = {}
    Rows(Layout.of(1, 1, q_offset=2), {"document_ids": torch.tensor([[0, 0, 1]])}, seen).per_token("document_ids")
    assert seen == {}


@pytest.mark.parametrize("also", [PrefixLM(2), from_function(lambda b, h, q, k: q >= k)], ids=str)
def test_rows_without_a_single_token_see_nothing(also: Pattern) -> None:
    layout = Layout.of(2, 3, real=torch.zeros(2, 3, dtype=torch.bool))
    pattern = Document(torch.zeros(2, 3, dtype=torch.long)) | also
    assert not visible_grid(pattern.bind(Rows(layout)), layout).any()
