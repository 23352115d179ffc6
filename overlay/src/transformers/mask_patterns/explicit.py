"""Masks that the caller passes whole, as 3D or 4D tensors: checked, and told apart into what is visible and a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import bad_argument
from .positions import Layout


_SHAPES = "(batch, query, key) or (batch, 1 or heads, query, key)"
_SAY_BOOL = "Pass a bool mask, True where the query may see the key: mask.bool()."


@dataclass(frozen=True, eq=False)
class WholeMask:
    """A mask for every query and key of one forward.

    Args:
        visible: bool `(batch or 1, heads or 1, queries, keys)`.
        bias: what is added to the scores, floating, of the same shape; None where the mask only hides.
    """

    visible: Tensor
    bias: Tensor | None = None


def whole_mask(mask: Tensor, layout: Layout, heads: int, dtype: torch.dtype) -> WholeMask:
    """Read a caller's `attention_mask` of 3 or 4 dimensions.

    Bool and integer masks of 0 and 1 say what is visible. A floating mask is added to the scores; in it, -inf and
    the minimum of its dtype or of the model's hide.

    Args:
        mask: `(batch, queries, keys)` or `(batch or 1, 1 or heads, queries, keys)`.
        layout: where the tokens of the forward lie; `keys` are all that the key/value tensors hold.
        heads: query heads.
        dtype: the model's.

    Raises:
        ValueError: wrong size or dtype, an integer other than 0 and 1, NaN or +inf, or a floating mask of zeros and
            ones, which could be meant either way.
    """
    mask = mask[:, None] if mask.ndim == 3 else mask
    _check_shape(mask, layout, heads)
    mask = mask.to(layout.positions.device)
    if mask.dtype == torch.bool:
        return WholeMask(mask)
    if mask.is_floating_point():
        return _additive(mask, dtype)
    if mask.is_complex() or bool(((mask != 0) & (mask != 1)).any()):
        got = str(mask.dtype) if mask.is_complex() else f"{mask.dtype} with values other than 0 and 1"
        raise bad_argument("attention_mask", got, "bool, integers 0 and 1, or an additive floating mask", _SAY_BOOL)
    return WholeMask(mask.bool())


def _check_shape(mask: Tensor, layout: Layout, heads: int) -> None:
    sizes = ((1, layout.batch), (1, heads), (layout.q_length,), (layout.kv_length,))
    if any(size not in allowed for size, allowed in zip(mask.shape, sizes, strict=True)):
        expected = f"{_SHAPES}: ({layout.batch}, 1 or {heads}, {layout.q_length}, {layout.kv_length})"
        remedy = "It covers every query of this forward and every key: cached ones first, then the new ones."
        raise bad_argument("attention_mask", f"shape {tuple(mask.shape)}", expected, remedy)


def _additive(mask: Tensor, dtype: torch.dtype) -> WholeMask:
    bias = mask.to(dtype)  # what is too small for the model's dtype hides, too large is as bad as +inf
    if bool((bias.isnan() | bias.isposinf()).any()):
        got = "NaN" if bool(mask.isnan().any()) else f"+inf, as {dtype},"
        raise bad_argument("attention_mask", f"{got} in a {mask.dtype} mask", "finite numbers or -inf", _SAY_BOOL)
    if bool(((mask == 0) | (mask == 1)).all()) and bool(mask.any()):
        got = f"a {mask.dtype} mask of zeros and ones"
        expected = (
            "an additive mask (0 where visible, -inf where hidden) or a bool mask; this could be meant either way"
        )
        raise bad_argument("attention_mask", got, expected, _SAY_BOOL)
    visible = (mask > torch.finfo(mask.dtype).min) & (bias > torch.finfo(dtype).min)
    bias = bias.where(visible, 0)
    return WholeMask(visible, bias if bias.requires_grad or bool(bias.any()) else None)


def real_tokens(mask: Tensor, batch: int, slots: int, kv_length: int) -> Tensor:
    """Read a caller's 2D `attention_mask`: bool `(batch, slots)`, True at real tokens.

    Args:
        mask: bool, or integers or floats 0 and 1, `(batch, slots)`; with a static cache also `(batch, kv_length)`.

    Raises:
        ValueError: wrong size, or values other than 0 and 1.
    """
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] not in (slots, max(slots, kv_length)):
        expected = f"shape ({batch}, {slots}), or a whole mask {_SHAPES}"
        remedy = "A 2D mask covers everything so far: cached tokens first, then the new ones."
        raise bad_argument("attention_mask", f"shape {tuple(mask.shape)}", expected, remedy)
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        got = f"{mask.dtype} with values other than 0 and 1"
        raise bad_argument(
            "attention_mask", got, "1 at real tokens and 0 at padding", "Pass mask.bool() if that is meant."
        )
    return mask[:, :slots].bool()
