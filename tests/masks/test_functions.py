"""Users' functions, written as FlexAttention's `mask_mod`: they see what `create_mask` of torch sees, in positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from transformers.mask_patterns import Causal, Document, Pattern, from_function
from transformers.mask_patterns.checks import first_future_key, is_autoregressive
from transformers.mask_patterns.inputs import Rows
from transformers.mask_patterns.lowering.dense import visible_grid
from transformers.mask_patterns.positions import Layout


BATCH, HEADS, LENGTH = 2, 3, 6
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2]])
TABLE = torch.rand(BATCH, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
WINDOWS = torch.tensor([1, 2, 4])
MaskMod = Callable[[Any, Any, Any, Any], Any]

FUNCTIONS: dict[str, tuple[MaskMod, tuple[int, int]]] = {  # the batch and head sizes that it needs
    "causal": (lambda b, h, q, k: q >= k, (1, 1)),
    "chained indexing": (lambda b, h, q, k: DOCUMENTS[b][q] == DOCUMENTS[b][k], (BATCH, 1)),
    "indexing at once": (lambda b, h, q, k: TABLE[b, h, q, k], (BATCH, HEADS)),
    "a window per head": (lambda b, h, q, k: (q >= k) & (q - k < WINDOWS[h]), (1, HEADS)),
    "one head sees all": (lambda b, h, q, k: (h == 0) | (q >= k), (1, HEADS)),
    "rows apart": (lambda b, h, q, k: q >= k + b, (BATCH, 1)),
    "where": (lambda b, h, q, k: torch.where(q > 2, k < 2, k < 4), (1, 1)),
    "queries only": (lambda b, h, q, k: q > 2, (1, 1)),
    "keys only": (lambda b, h, q, k: k > 2, (1, 1)),
    "heads only": (lambda b, h, q, k: h == 1, (1, HEADS)),
    "everything": (lambda b, h, q, k: b.new_ones((), dtype=torch.bool), (BATCH, 1)),  # asks the row
    "a constant": (lambda b, h, q, k: torch.tensor(False), (1, 1)),
}


def whole(pattern: Pattern, layout: Layout) -> Tensor:
    seen: Tensor = visible_grid(pattern.bind(Rows(layout)), layout)
    return seen


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_sees_what_it_sees_under_flex_attention(name: str) -> None:
    function, _ = FUNCTIONS[name]
    seen = whole(from_function(function), Layout.of(BATCH, LENGTH, heads=HEADS))
    expected = create_mask(function, BATCH, HEADS, LENGTH, LENGTH, device="cpu")
    assert torch.equal(seen.expand(BATCH, HEADS, -1, -1), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_and_heads_that_a_function_does_not_look_at_are_kept_once(name: str) -> None:
    function, size = FUNCTIONS[name]
    assert whole(from_function(function), Layout.of(BATCH, LENGTH, heads=HEADS)).shape[:2] == size


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_padding_a_function_gets_positions(name: str) -> None:
    function, _ = FUNCTIONS[name]
    real = torch.tensor([[False, True, True, False, True, True], [True, True, True, True, False, False]])
    seen = whole(from_function(function), Layout.of(BATCH, LENGTH, real=real, heads=HEADS)).expand(
        BATCH, HEADS, -1, -1
    )
    alone = create_mask(function, BATCH, HEADS, LENGTH, LENGTH, device="cpu")
    for b in range(BATCH):
        slots = real[b].nonzero()[:, 0]
        count = len(slots)
        assert torch.equal(seen[b][:, slots][..., slots], alone[b, :, :count, :count])
        assert int(seen[b].sum()) == int(alone[b, :, :count, :count].sum())


def test_a_function_composes_with_what_the_library_has() -> None:
    function = FUNCTIONS["a window per head"][0]
    pattern = (from_function(function) | ~Causal()) & Document(DOCUMENTS)
    seen = whole(pattern, Layout.of(BATCH, LENGTH, heads=HEADS))
    places = torch.arange(LENGTH)
    causal = places[:, None] >= places
    same = DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :]
    own = create_mask(function, BATCH, HEADS, LENGTH, LENGTH, device="cpu")
    assert torch.equal(seen, (own | ~causal) & same[:, None])


def test_a_function_that_returns_python_bools_is_one_of_constants() -> None:
    assert from_function(lambda b, h, q, k: True).dense(3).all()
    assert torch.equal((from_function(lambda b, h, q, k: True) & Causal()).dense(3), Causal().dense(3))


def test_on_plain_integers_a_function_answers_plainly() -> None:
    assert from_function(lambda b, h, q, k: q >= k).visible(2, 1) is True


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda b, h, q, k: (q - k) % 2, "a result of torch.int64"),
        (lambda b, h, q, k: (q >= k).float(), "a result of torch.float32"),
        (lambda b, h, q, k: None, "a result of NoneType"),
        (lambda b, h, q, k: 1, "a result of int"),
        (lambda b, h, q, k: q >= k and k > 0, "a branch on a tensor"),
        (lambda b, h, q, k: q >= k if q > 1 else k > 0, "a branch on a tensor"),
    ],
)
def test_a_function_that_is_no_mask_mod_is_told_why(function: MaskMod, got: str) -> None:
    with pytest.raises(ValueError, match=f"^`function`: got {got} in <function <lambda>>; expected bool"):
        whole(from_function(function), Layout.of(BATCH, LENGTH, heads=HEADS))


def test_a_users_own_error_is_left_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        from_function(lambda b, h, q, k: q >= k // (1 // 0)).dense(3)


def test_checks_ask_a_function_for_every_pair() -> None:
    assert is_autoregressive(from_function(FUNCTIONS["causal"][0]), LENGTH)
    assert first_future_key(from_function(lambda b, h, q, k: (k <= q) | ((q == 2) & (k == 4))), LENGTH) == (2, 4)


def test_the_checks_ask_every_head() -> None:
    looks_ahead = from_function(lambda b, h, q, k: (k <= q) | ((h == 2) & (k == q + 1)))
    assert is_autoregressive(looks_ahead, LENGTH)  # head 0 alone
    assert first_future_key(looks_ahead, LENGTH, heads=HEADS) == (0, 1)
    assert not is_autoregressive(looks_ahead, LENGTH, heads=HEADS)
