"""FlashAttention 2 and 3 in plain torch, with the arguments and the meaning that flash-attn documents, and strict.

Query i of a sequence of m queries and n keys stands at key i + n - m. With `window_size=(left, right)` it sees the
keys from `left` before that place to `right` behind it, -1 being no limit; `causal` makes `right` 0. A query that sees
nothing gets 0.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from transformers import modeling_flash_attention_utils as upstream


Window = tuple[int, int]


@dataclass
class Calls:
    """The arguments of each call; `packed` of those to the varlen function, `whole` of the others."""

    packed: list[dict[str, Any]] = field(default_factory=list)
    whole: list[dict[str, Any]] = field(default_factory=list)


def one_sequence(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: Window) -> Tensor:
    """Attention of `(queries, heads, head_dim)` over `(keys, groups, head_dim)`."""
    queries, keys, served = len(q), len(k), q.shape[1] // k.shape[1]
    left, right = window[0], 0 if causal else window[1]
    visible = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        place = i + keys - queries
        for j in range(keys):
            visible[i, j] = (left < 0 or j >= place - left) and (right < 0 or j <= place + right)
    k, v = k.repeat_interleave(served, 1), v.repeat_interleave(served, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).masked_fill(~visible, 0)
    return torch.einsum("hij,jhd->ihd", weights, v)


def check_states(*states: Tensor) -> None:
    for tensor in states:
        assert tensor.stride(-1) == 1
        assert tensor.numel()


def whole(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: Window) -> Tensor:
    """Rows of equal length, `(batch, length, heads, head_dim)`."""
    check_states(q, k, v)
    assert len(q) == len(k) == len(v)
    rows = zip(q, k, v, strict=True)
    return torch.stack([one_sequence(one, keys, values, scale, causal, window) for one, keys, values in rows])


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: tuple[Tensor, Tensor],
    most: tuple[Any, Any],
    scale: Any,
    causal: Any,
    window: Any,
) -> Tensor:
    """Sequences one behind the other, `(length, heads, head_dim)`."""
    check_states(q, k, v)
    for states, cu_seqlens, longest in zip((q, k), ends, most, strict=True):
        assert cu_seqlens.dtype == torch.int32
        assert cu_seqlens[0] == 0
        assert cu_seqlens[-1] == len(states)
        assert int(cu_seqlens.diff().max()) == longest
        assert int(cu_seqlens.diff().min()) > 0
    lengths = [cu_seqlens.diff().tolist() for cu_seqlens in (ends[0], ends[1], ends[1])]
    sequences = zip(*(states.split(n) for states, n in zip((q, k, v), lengths, strict=True)), strict=True)
    return torch.cat([one_sequence(one, keys, values, scale, causal, window) for one, keys, values in sequences])


def version_2(calls: Calls) -> types.ModuleType:
    """The module `flash_attn`."""

    def flash_attn_func(
        q: Any,
        k: Any,
        v: Any,
        dropout_p: Any = 0.0,
        softmax_scale: Any = None,
        causal: Any = False,
        window_size: Any = (-1, -1),
        softcap: Any = 0.0,
        deterministic: Any = False,
    ) -> Tensor:
        calls.whole.append({"causal": causal, "window_size": window_size, "dropout_p": dropout_p})
        return whole(q, k, v, softmax_scale, causal, window_size)

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: Any,
        max_seqlen_k: Any,
        dropout_p: Any = 0.0,
        softmax_scale: Any = None,
        causal: Any = False,
        window_size: Any = (-1, -1),
        softcap: Any = 0.0,
        deterministic: Any = False,
    ) -> Tensor:
        calls.packed.append({"causal": causal, "window_size": window_size, "dropout_p": dropout_p, "q": cu_seqlens_q})
        ends, most = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        return packed(q, k, v, ends, most, softmax_scale, causal, window_size)

    return module("flash_attn", flash_attn_func, flash_attn_varlen_func)


def version_3(calls: Calls) -> types.ModuleType:
    """The module `flash_attn_interface`, which knows no dropout, and gives the log-sum-exp too."""

    def flash_attn_func(
        q: Any,
        k: Any,
        v: Any,
        softmax_scale: Any = None,
        causal: Any = False,
        window_size: Any = (-1, -1),
        softcap: Any = 0.0,
        deterministic: Any = False,
    ) -> tuple[Tensor, None]:
        calls.whole.append({"causal": causal, "window_size": window_size})
        return whole(q, k, v, softmax_scale, causal, window_size), None

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: Any,
        max_seqlen_k: Any,
        seqused_q: Any = None,
        seqused_k: Any = None,
        softmax_scale: Any = None,
        causal: Any = False,
        window_size: Any = (-1, -1),
        softcap: Any = 0.0,
        deterministic: Any = False,
    ) -> tuple[Tensor, None]:
        calls.packed.append({"causal": causal, "window_size": window_size, "q": cu_seqlens_q})
        ends, most = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        return packed(q, k, v, ends, most, softmax_scale, causal, window_size), None

    return module("flash_attn_interface", flash_attn_func, flash_attn_varlen_func)


def module(name: str, *functions: Callable[..., Any]) -> types.ModuleType:
    made: Any = types.ModuleType(name)
    for function in functions:
        setattr(made, function.__name__, function)
    made.flash_attn_with_kvcache = None
    return made  # type: ignore[no-any-return]


def install(patch: pytest.MonkeyPatch) -> Calls:
    """Let upstream find these where it looks for flash-attn."""
    calls = Calls()
    padding: Any = types.ModuleType("flash_attn.bert_padding")
    padding.pad_input, padding.unpad_input = upstream._pad_input, upstream._unpad_input
    for found in (version_2(calls), version_3(calls), padding):
        patch.setitem(sys.modules, found.__name__, found)
    for version, is_there in ((2, True), (3, True), (4, False)):  # before transformers 5 there is no 4
        name = f"is_flash_attn_{version}_available"
        patch.setattr(upstream, name, lambda is_there=is_there: is_there, raising=version < 4)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_pad_fn", "_unpad_fn"):
        patch.setattr(upstream, name, None, raising=name != "_loaded_implementation")
    patch.setattr(upstream, "_process_flash_kwargs_fn", None)
    return calls
