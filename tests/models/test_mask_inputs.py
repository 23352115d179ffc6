"""The three mask inputs - none, 2D, whole - on every backend equal the plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain_reference
import pytest
import torch
from small_models import BACKENDS, DENSE, UPSTREAM_BACKENDS, make_model, static_cache
from torch import Tensor

from transformers.mask_patterns import UnsupportedMaskError


TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.15}  # the masks below change logits by several units
LOW = {dtype: torch.finfo(dtype).min for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def random_mask(heads: int, rows: int = 2, length: int = 9) -> Tensor:
    """A random whole mask, future keys among the visible, with a row that sees nothing and one that sees one key."""
    mask = torch.rand(rows, heads, length, length, generator=torch.Generator().manual_seed(heads)) < 0.4
    mask[:, :, 3] = False
    mask[0, 0, 5] = torch.arange(length) == 7
    return mask


def whole(mask: Tensor, length: int = 9) -> Tensor:
    return mask.expand(2, 4, length, length)


def expected(model: Any, ids: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return plain_reference.logits(
        model, ids, whole(visible, ids.shape[1]), positions, None if bias is None else whole(bias)
    )


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(
        got.double(), want, atol=TOLERANCE[dtype], rtol=0.03 if dtype == torch.bfloat16 else 1e-5
    )


every_model = pytest.mark.parametrize("family", DENSE)  # bf16 takes rounded logits to other experts
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@every_model
@pytest.mark.parametrize("backend", UPSTREAM_BACKENDS)
@every_dtype
def test_no_mask_is_causal(family: str, backend: str, dtype: torch.dtype, ids: Tensor) -> None:
    model = make_model(family, dtype, attn_implementation=backend)
    with torch.no_grad():
        assert_close(model(ids).logits, expected(model, ids, causal(9)), dtype)


@every_model
@pytest.mark.parametrize("backend", UPSTREAM_BACKENDS)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32], ids=["bool", "int", "float"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_2d_mask_hides_padding(family: str, backend: str, kind: torch.dtype, side: str, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, :3] = False
    real = real if side == "left" else real.flip(-1)
    want = expected(model, ids, causal(9) & real[:, None, None, :])
    with torch.no_grad():
        got = model(ids, attention_mask=real.to(kind)).logits
    assert_close(got[real], want[real])


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda m: m,
    "uint8": lambda m: m.to(torch.uint8),
    "int64": lambda m: m.long(),
    "additive -inf": lambda m: torch.zeros(m.shape).masked_fill(~m, -torch.inf),
    "additive minimum": lambda m: torch.zeros(m.shape).masked_fill(~m, LOW[torch.float32]),
    "additive fp16 minimum": lambda m: torch.zeros(m.shape, dtype=torch.float16).masked_fill(~m, LOW[torch.float16]),
    "additive fp64 minimum": lambda m: torch.zeros(m.shape, dtype=torch.float64).masked_fill(~m, LOW[torch.float64]),
    "additive bf16": lambda m: torch.zeros(m.shape, dtype=torch.bfloat16).masked_fill(~m, LOW[torch.bfloat16]),
}


@every_model
@every_backend
@every_dtype
@pytest.mark.parametrize("form", ["bool", "int64", "additive minimum"])
def test_a_4d_mask_is_the_whole_mask(family: str, backend: str, dtype: torch.dtype, form: str, ids: Tensor) -> None:
    model = make_model(family, dtype, attn_implementation=backend)
    mask = random_mask(heads=1)
    with torch.no_grad():
        got = model(ids, attention_mask=FORMS[form](mask)).logits
    assert_close(got, expected(model, ids, mask), dtype)


@every_backend
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_4d_mask_says_the_same(backend: str, form: str, heads: int, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    mask = random_mask(heads)
    with torch.no_grad():
        assert_close(model(ids, attention_mask=FORMS[form](mask)).logits, expected(model, ids, mask))


@every_backend
def test_a_3d_mask_is_a_4d_mask_with_one_head(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    mask = random_mask(heads=1)
    with torch.no_grad():
        assert_close(model(ids, attention_mask=mask[:, 0]).logits, expected(model, ids, mask))


@every_model
@every_backend
@every_dtype
def test_a_bias_is_added_to_the_scores_of_its_own_head(
    family: str, backend: str, dtype: torch.dtype, ids: Tensor
) -> None:
    model = make_model(family, dtype, attn_implementation=backend)
    mask = random_mask(heads=4)
    bias = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.no_grad():
        got = model(ids, attention_mask=bias.masked_fill(~mask, -torch.inf)).logits
    assert_close(got, expected(model, ids, mask, bias), dtype)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_learned_bias_is_trained_from_zero(backend: str, ids: Tensor) -> None:
    learned = torch.zeros(1, 4, 9, 9, requires_grad=True)
    mask = learned.masked_fill(~causal(9), -torch.inf)
    make_model(attn_implementation=backend)(ids, attention_mask=mask).logits.logsumexp(-1).sum().backward()
    assert learned.grad is not None
    assert learned.grad.abs().max() > 0


@every_backend
def test_a_4d_mask_covers_the_cache_too(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    mask = causal(9) & random_mask(heads=4)
    with torch.no_grad():
        first = model(ids[:, :6], attention_mask=mask[:, :, :6, :6], use_cache=True)
        then = model(ids[:, 6:], attention_mask=mask[:, :, 6:], past_key_values=first.past_key_values)
    assert_close(torch.cat([first.logits, then.logits], dim=1), expected(model, ids, mask))


@every_backend
def test_a_4d_mask_cannot_show_slots_that_a_static_cache_has_not_filled(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    cache = static_cache(model.config, 16)
    everything = torch.ones(2, 1, 9, 16, dtype=torch.bool)
    with torch.no_grad():
        got = model(ids, attention_mask=everything, past_key_values=cache).logits
    assert_close(got, expected(model, ids, everything[..., :9]))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_rows_that_see_nothing_have_finite_gradients(backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    mask = random_mask(heads=1)
    model(ids, attention_mask=mask).logits.square().sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert got
    assert all(torch.isfinite(g).all() for g in got.values())


ZEROS_AND_ONES = "zeros and ones"
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "batch": (lambda m: m[:1].expand(3, -1, -1, -1), "shape (3, 1, 9, 9)", "(2, 1 or 4, 9, 9)"),
    "heads": (lambda m: m.expand(2, 2, 9, 9), "shape (2, 2, 9, 9)", "(2, 1 or 4, 9, 9)"),
    "queries": (lambda m: m[:, :, :8], "shape (2, 1, 8, 9)", "(2, 1 or 4, 9, 9)"),
    "keys": (lambda m: m[..., :8], "shape (2, 1, 9, 8)", "(2, 1 or 4, 9, 9)"),
    "dimensions": (lambda m: m[None], "5 dimensions", "3 or 4"),
    "one dimension": (lambda m: m[0, 0, 0], "1 dimensions", "3 or 4"),
    "NaN": (lambda m: torch.zeros(m.shape).masked_fill(m, torch.nan), "NaN", "finite numbers or -inf"),
    "+inf": (lambda m: torch.zeros(m.shape).masked_fill(m, torch.inf), "+inf", "finite numbers or -inf"),
    ZEROS_AND_ONES: (lambda m: m.float(), ZEROS_AND_ONES, "either way"),
    "integers": (lambda m: m.long() * 2, "values other than 0 and 1", "integers 0 and 1"),
    "complex": (lambda m: m.to(torch.complex64), "torch.complex64", "bool"),
}


@every_backend
@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_mask_is_refused(backend: str, case: str, ids: Tensor) -> None:
    change, got, want = WRONG[case]
    with pytest.raises(ValueError, match="`attention_mask`: got ") as error:
        make_model(attn_implementation=backend)(ids, attention_mask=change(random_mask(heads=1)))
    assert got in str(error.value)
    assert f"expected {want}"[9:] in str(error.value)
    assert str(error.value).rstrip().endswith((".", "().", "first, then the new ones."))


def test_a_backend_that_cannot_take_a_whole_mask_refuses_it(ids: Tensor) -> None:
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"  # its package needs a GPU
    with pytest.raises(UnsupportedMaskError, match="'flash_attention_2' cannot obey a 4D attention_mask.*'sdpa'"):
        model(ids, attention_mask=random_mask(heads=1))
