"""Masks that the caller passes as tensors: read for what they mean, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transformers.mask_patterns.explicit import real_tokens, whole_mask
from transformers.mask_patterns.positions import Layout


BATCH, HEADS, QUERIES, KEYS = 2, 4, 3, 5
LAYOUT = Layout.of(BATCH, QUERIES, q_offset=KEYS - QUERIES)
SEEN = torch.rand(BATCH, HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(0)) < 0.5
INF = float("inf")
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
both_floats = [
    pytest.mark.parametrize("dtype", FLOATS, ids=str),
    pytest.mark.parametrize("model", FLOATS[:3], ids=lambda dtype: f"model {dtype}"),
]


def additive(visible: Tensor, dtype: torch.dtype, hidden: float) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, hidden)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_bool_and_integers_say_what_is_visible(dtype: torch.dtype) -> None:
    mask = whole_mask(SEEN.to(dtype), LAYOUT, HEADS, torch.float32)
    assert mask.bias is None
    assert torch.equal(mask.visible, SEEN)


@both_floats[0]
@both_floats[1]
@pytest.mark.parametrize("hidden", ["-inf", "minimum"])
def test_additive_masks_hide_by_infinity_or_their_minimum(dtype: torch.dtype, model: torch.dtype, hidden: str) -> None:
    value = -INF if hidden == "-inf" else torch.finfo(dtype).min
    mask = whole_mask(additive(SEEN, dtype, value), LAYOUT, HEADS, model)
    assert mask.bias is None
    assert torch.equal(mask.visible, SEEN)


@pytest.mark.parametrize("model", FLOATS[:3], ids=str)
def test_the_minimum_of_the_models_dtype_hides_in_any_other(model: torch.dtype) -> None:
    mask = whole_mask(additive(SEEN, torch.float32, torch.finfo(model).min), LAYOUT, HEADS, model)
    assert torch.equal(mask.visible, SEEN)


def test_what_the_models_dtype_cannot_hold_hides() -> None:
    mask = whole_mask(additive(SEEN, torch.float32, -1e9), LAYOUT, HEADS, torch.float16)
    assert mask.bias is None
    assert torch.equal(mask.visible, SEEN)


@both_floats[0]
@both_floats[1]
def test_other_numbers_are_a_bias_and_are_kept(dtype: torch.dtype, model: torch.dtype) -> None:
    bias = torch.tensor([[-0.5, 0.0, 1.0, 2.0, -8.0]], dtype=dtype).expand(BATCH, HEADS, QUERIES, KEYS)
    mask = whole_mask(bias.masked_fill(~SEEN, -INF), LAYOUT, HEADS, model)
    assert torch.equal(mask.visible, SEEN)
    assert mask.bias is not None
    assert mask.bias.dtype == model
    assert torch.equal(mask.bias, bias.to(model).masked_fill(~SEEN, 0))


def test_a_large_finite_number_is_a_bias_where_the_model_can_hold_it() -> None:
    mask = whole_mask(additive(SEEN, torch.float32, -1e9), LAYOUT, HEADS, torch.float32)
    assert mask.visible.all()
    assert mask.bias is not None
    assert torch.equal(mask.bias == 0, SEEN)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_a_floating_mask_of_zeros_hides_nothing(value: float) -> None:
    mask = whole_mask(torch.full((1, 1, QUERIES, KEYS), value), LAYOUT, HEADS, torch.float32)
    assert mask.visible.all()
    assert mask.bias is None


@pytest.mark.parametrize("rows", [1, BATCH])
@pytest.mark.parametrize("heads", [1, HEADS])
def test_one_row_or_one_head_stands_for_all(rows: int, heads: int) -> None:
    given = SEEN[:rows, :heads]
    assert torch.equal(whole_mask(given, LAYOUT, HEADS, torch.float32).visible, given)


def test_three_dimensions_are_one_head_for_all() -> None:
    mask = whole_mask(SEEN[:, 0], LAYOUT, HEADS, torch.float32)
    assert torch.equal(mask.visible, SEEN[:, :1])


@pytest.mark.parametrize(
    "shape",
    [
        (BATCH + 1, 1, QUERIES, KEYS),
        (BATCH, 2, QUERIES, KEYS),
        (BATCH, HEADS + 1, QUERIES, KEYS),
        (BATCH, 1, 1, KEYS),
        (BATCH, 1, KEYS, KEYS),
        (BATCH, 1, QUERIES, QUERIES),
        (BATCH, 1, QUERIES, KEYS + 1),
        (BATCH, 1, KEYS, QUERIES),
        (HEADS, QUERIES, KEYS),
        (BATCH, QUERIES, 1),
        (0, 1, QUERIES, KEYS),
    ],
    ids=str,
)
def test_a_wrong_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="^`attention_mask`: got shape ") as caught:
        whole_mask(torch.ones(shape, dtype=torch.bool), LAYOUT, HEADS, torch.float32)
    message = str(caught.value)
    assert f"({BATCH}, 1 or {HEADS}, {QUERIES}, {KEYS})" in message
    assert "cached ones first" in message


def ones_and(value: float, dtype: torch.dtype) -> Tensor:
    mask = torch.ones(BATCH, 1, QUERIES, KEYS, dtype=dtype)
    mask[1, 0, 2, 3] = value
    return mask


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (ones_and(float("nan"), torch.float32), "NaN in a torch.float32 mask"),
        (ones_and(float("nan"), torch.bfloat16), "NaN in a torch.bfloat16 mask"),
        (ones_and(INF, torch.float32), r"\+inf, as torch.float16, in a torch.float32 mask"),
        (ones_and(1e9, torch.float32), r"\+inf, as torch.float16, in a torch.float32 mask"),
        (ones_and(0.0, torch.float32), "a torch.float32 mask of zeros and ones"),
        (ones_and(1.0, torch.float32), "a torch.float32 mask of zeros and ones"),
        (ones_and(0.0, torch.bfloat16), "a torch.bfloat16 mask of zeros and ones"),
        (ones_and(0.0, torch.float64), "a torch.float64 mask of zeros and ones"),
        (ones_and(2, torch.int64), "torch.int64 with values other than 0 and 1"),
        (ones_and(-1, torch.int8), "torch.int8 with values other than 0 and 1"),
        (ones_and(255, torch.uint8), "torch.uint8 with values other than 0 and 1"),
        (ones_and(0, torch.complex64), "torch.complex64"),
    ],
)
def test_values_of_no_clear_meaning_are_refused(mask: Tensor, got: str) -> None:
    remedy = r"Pass a bool mask, True where the query may see the key: mask\.bool\(\)\.$"
    with pytest.raises(ValueError, match=f"^`attention_mask`: got {got}; expected .*{remedy}"):
        whole_mask(mask, LAYOUT, HEADS, torch.float16)


REAL = torch.tensor([[False, True, True], [True, True, False]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_a_2d_mask_marks_real_tokens(dtype: torch.dtype) -> None:
    assert torch.equal(real_tokens(REAL.to(dtype), 2, 3, 3), REAL)


def test_behind_a_static_cache_the_mask_may_cover_what_is_not_filled_yet() -> None:
    longer = torch.nn.functional.pad(REAL, (0, 4), value=True)
    assert torch.equal(real_tokens(longer, 2, slots=3, kv_length=7), REAL)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 3), (2, 2), (2, 4), (2, 0), (2, 3, 1)], ids=str)
def test_a_2d_mask_of_a_wrong_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^`attention_mask`: got shape .*; expected shape \(2, 3\), or .* so far"):
        real_tokens(torch.ones(shape, dtype=torch.long), 2, 3, 3)


def test_a_2d_mask_of_what_a_cache_has_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(2, 3\); expected shape \(2, 9\)"):
        real_tokens(REAL, 2, slots=9, kv_length=3)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), -INF])
def test_a_2d_mask_of_other_numbers_is_refused(value: float) -> None:
    mask = torch.tensor([[1, 1, value], [1, 1, 1]])
    with pytest.raises(ValueError, match="with values other than 0 and 1; expected 1 at real tokens"):
        real_tokens(mask, 2, 3, 3)
