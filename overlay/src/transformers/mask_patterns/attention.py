"""What stands in for `attention_mask` inside the model, and how an attention function is called with it.

Every backend gets the mask in its own form; a query that sees nothing gets the output 0 and weights of 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from threading import RLock
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .errors import UnsupportedMaskError, bad_argument
from .lowering.flash import FlashArguments, packed_states
from .lowering.tiles import TilePlan
from .takers import TAKERS
from .tiled_sdpa import tiled_sdpa


READ = "mask_pattern_read"  # an argument: the config's pattern was read, and upstream's own mask is meant
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # what FlashAttention is told of it

logger = logging.getLogger(__name__)

AttentionOutput: TypeAlias = "tuple[Tensor, Tensor | None]"
AttentionFunction: TypeAlias = Callable[..., AttentionOutput]

# On a CPU, torch compiles FlexAttention anew for each shape, for seconds: below this many scores it runs uncompiled.
_WORTH_COMPILING = 2**22
_FEW = 16  # queries: with more, their mask for every head weighs more than keys for every head
_STANCE = RLock()  # the stance is the whole process's: two threads would restore it in the wrong order


class LoweredMask(Protocol):
    """A mask in the form that one backend takes."""

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        """Call upstream's attention function of that backend with this mask."""
        ...


@dataclass(frozen=True, eq=False)
class LayerMasks:
    """One lowered mask per layer of a model."""

    masks: tuple[LoweredMask, ...]

    def __getitem__(self, layer: int) -> LoweredMask:
        return self.masks[layer]

    def contiguous(self) -> LayerMasks:
        """These: from transformers 5.23 on `generate()` asks that of the masks that it made ahead, as of tensors."""
        return self


def attend(function: AttentionFunction, *args: Any, **kwargs: Any) -> AttentionOutput:
    """Call `function`, upstream's own, with the mask of this layer; calls without masks of ours pass unchanged.

    Raises:
        UnsupportedMaskError: a pattern has come this far, in the call or the config, as the model's forward does not
            ask for it.
    """
    given = kwargs["attention_mask"] if "attention_mask" in kwargs else args[4] if len(args) > 4 else None
    if isinstance(given, LayerMasks):
        module, q, k, v, _ = args  # so the models call it whose forward makes these masks
        return given[module.layer_idx].attend(function, module, q, k, v, **kwargs)
    read = kwargs.pop(READ, False)
    _check_nothing_ignored(args[0] if args else kwargs.get("module"), kwargs, read)
    return function(*args, **kwargs)


def _check_nothing_ignored(module: Any, kwargs: Mapping[str, Any], read: bool) -> None:
    """Refuse a pattern that no forward has made a mask from."""
    kind = type(module).__name__
    if kwargs.get("mask_pattern") is not None or kwargs.get("mask_inputs") is not None:
        raise UnsupportedMaskError(
            f"`mask_pattern`: {kind} belongs to a model that does not take one, and would ignore it. {TAKERS}"
        )
    said = None if read else getattr(getattr(module, "config", None), "mask_pattern", None)
    if said is not None:
        raise UnsupportedMaskError(
            f"`config.mask_pattern`: {kind} belongs to a model that did not read {said!r}, and would ignore it. "
            f"{TAKERS} Set config.mask_pattern = None for upstream's own mask."
        )


@dataclass(frozen=True, eq=False)
class NativeCausal:
    """Plain causal attention over unpadded rows: upstream's own fast path, which takes no mask."""

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        is_causal = q.shape[2] > 1  # whatever the config says; of one query it would show the first key alone
        return function(module, q, k, v, None, **{**kwargs, "is_causal": is_causal})


@dataclass(frozen=True, eq=False)
class Native:
    """Upstream's own mask, in upstream's own form, for a layer that keeps it."""

    mask: Any

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        return function(module, q, k, v, self.mask, **kwargs)


@dataclass(frozen=True, eq=False)
class SdpaMask:
    """A mask for `scaled_dot_product_attention`.

    Args:
        mask: bool, or floating and added to the scores, `(batch or 1, heads or 1, queries, keys)`.
        empty: bool `(batch or 1, heads or 1, queries)`, queries that see nothing; None if there are none. Their rows
            of `mask` show something, as a softmax over nothing is NaN, in gradients too; their output is set to 0.
        exact: whether upstream is to be called as it calls itself, so that the result is the same to the bit.
    """

    mask: Tensor
    empty: Tensor | None
    exact: bool = False

    @classmethod
    def of(cls, visible: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> SdpaMask:
        visible, empty = _without_empty_rows(visible)
        return cls(visible if bias is None else bias.masked_fill(~visible, -torch.inf), empty, exact)

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        _check_keys(self.mask.shape[-1], k)
        mask = self.mask if self.mask.dtype == torch.bool else self.mask.to(q.dtype)
        mask = mask.to(q.device)
        if q.shape[2] <= _FEW and not self.exact and _is_plain_sdpa(function, kwargs):
            return _zero(self.empty, _few_queries(q, k, v, mask, kwargs), None)
        output, weights = function(module, q, k, v, mask, **kwargs)
        return _zero(self.empty, output, weights)


@dataclass(frozen=True, eq=False)
class TiledMask:
    """A mask for attention tile by tile, in place of `scaled_dot_product_attention` with a mask that hides much.

    Args:
        dense: makes the same mask for a call that tiles do not serve.
    """

    plan: TilePlan
    dense: Callable[[], LoweredMask]

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        if kwargs.get("dropout") or q.shape[-1] != v.shape[-1] or not _is_plain_sdpa(function, kwargs):
            return self._dense.attend(function, module, q, k, v, **kwargs)
        _check_keys(self.plan.keys, k)
        return tiled_sdpa(q, k, v, self.plan, kwargs.get("scaling")), None

    @cached_property
    def _dense(self) -> LoweredMask:
        return self.dense()


@dataclass(frozen=True, eq=False)
class KeysMask:
    """For SDPA, what one query sees where all rows and heads see the same: whole runs of keys.

    Args:
        spans: half-open intervals of places in the key/value tensors, in order.
        kv_length: how many places these have.
    """

    spans: tuple[tuple[int, int], ...]
    kv_length: int

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        _check_keys(self.kv_length, k)
        if not self.spans:
            return v.new_zeros(len(q), 1, q.shape[1], v.shape[3]), None
        k, v = self._seen(k), self._seen(v)
        if _is_plain_sdpa(function, kwargs):
            return _few_queries(q, k, v, None, kwargs), None
        return function(module, q, k, v, None, **kwargs)

    def _seen(self, states: Tensor) -> Tensor:
        runs = [states[:, :, start:end] for start, end in self.spans]
        return runs[0] if len(runs) == 1 else torch.cat(runs, dim=2)


def _is_plain_sdpa(function: AttentionFunction, kwargs: Mapping[str, Any]) -> bool:
    """Whether this is upstream's own function for SDPA, asked for nothing that only it knows."""
    ours = function.__module__.endswith(".integrations.sdpa_attention")
    return ours and not kwargs.get("output_attentions") and kwargs.get("position_bias") is None


def _few_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]) -> Tensor:
    """SDPA where the heads that share keys go as queries of one head, so that no key is copied, as upstream's does.

    Args:
        mask: `(batch or 1, heads or 1, queries, keys)`, or None.

    Returns:
        `(batch, queries, heads, head_dim)`.
    """
    groups, served = k.shape[1], q.shape[1] // k.shape[1]
    if mask is not None:
        each = mask.unflatten(1, (groups, served)) if mask.shape[1] > 1 else mask[:, :, None]
        mask = each.expand(-1, -1, served, -1, -1).flatten(2, 3)
    output: Tensor = torch.nn.functional.scaled_dot_product_attention(
        q.unflatten(1, (groups, served)).flatten(2, 3),
        k,
        v,
        attn_mask=mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
    )
    output = output.unflatten(2, (served, q.shape[2])).permute(0, 3, 1, 2, 4)
    return output.flatten(2, 3)


@dataclass(frozen=True, eq=False)
class EagerMask:
    """A mask for upstream's eager attention, which adds it to the scores; `empty` as in `SdpaMask`."""

    mask: Tensor
    empty: Tensor | None

    @classmethod
    def of(cls, visible: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> EagerMask:
        visible, empty = _without_empty_rows(visible)
        bias = torch.zeros((), dtype=dtype, device=visible.device).expand_as(visible) if bias is None else bias
        return cls(bias.masked_fill(~visible, -torch.inf), empty)

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        _check_keys(self.mask.shape[-1], k)
        output, weights = function(module, q, k, v, self.mask.to(q.device), **kwargs)
        return _zero(self.empty, output, weights)


@dataclass(frozen=True, eq=False)
class FlexMask:
    """A mask for FlexAttention: blocks, and a bias `(batch, heads, queries, keys)` or None."""

    blocks: BlockMask
    bias: Tensor | None = None

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        if self.bias is not None:
            _check_takes_bias(function)
            shape = (len(q), q.shape[1], q.shape[2], k.shape[2])
            kwargs["position_bias"] = self.bias.to(q.dtype).expand(shape)
        scores = len(q) * q.shape[1] * q.shape[2] * k.shape[2]
        small = q.device.type == "cpu" and (scores < _WORTH_COMPILING or self.bias is not None)
        if small and not torch.compiler.is_compiling():
            output: AttentionOutput = _uncompiled(function, module, q, k, v, self.blocks, **kwargs)
            return output
        try:
            return function(module, q, k, v, self.blocks, **kwargs)
        except Exception as error:
            if not _is_from_compiler(error):
                raise
            raise UnsupportedMaskError(
                f"flex_attention: torch {torch.__version__} cannot compile it for queries {tuple(q.shape)}, keys "
                f"{tuple(k.shape)}, {q.dtype} on {q.device.type} ({type(error).__name__}). The mask is fine: use "
                "attn_implementation='sdpa' or 'eager', or another length."
            ) from error


@dataclass(frozen=True, eq=False)
class FlashMask:
    """A mask that FlashAttention's own arguments say, in place of the config's window and what `position_ids` imply.

    Args:
        keys: how many the key/value tensors hold.
    """

    arguments: FlashArguments
    keys: int

    def attend(
        self, function: AttentionFunction, module: Any, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> AttentionOutput:
        _check_keys(self.keys, k)
        if given := [name for name in PACKING if kwargs.get(name) is not None]:
            remedy = "Leave it out, and say the documents in the pattern: `Causal() & Document()`."
            raise bad_argument(given[0], "a value beside a mask pattern", "none", remedy)
        said = self.arguments
        kwargs |= {"is_causal": said.is_causal, "sliding_window": said.window, "position_ids": None}
        if (packed := said.packed) is None:
            return function(module, q, k, v, None, **kwargs)
        kwargs |= {"cu_seq_lens_q": packed.query_ends.to(q.device), "cu_seq_lens_k": packed.key_ends.to(q.device)}
        kwargs |= {"max_length_q": packed.most_queries, "max_length_k": packed.most_keys}
        k, v = packed_states(k, packed.keys), packed_states(v, packed.keys)
        output, weights = function(module, packed_states(q, packed.queries), k, v, None, **kwargs)
        return packed.unpacked(output, len(q), q.shape[2]), weights


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _uncompiled(function: AttentionFunction, *args: Any, **kwargs: Any) -> AttentionOutput:
    """What a function returns where torch compiles nothing of it, nor of what calls it."""
    with _STANCE, torch.compiler.set_stance("force_eager"):
        return function(*args, **kwargs)


def _check_takes_bias(function: AttentionFunction) -> None:
    """Refuse a bias that upstream's function would drop, as before transformers 5."""
    if "position_bias" not in signature(function).parameters:
        raise UnsupportedMaskError(
            "attention_mask: flex_attention in this release of transformers takes no floating mask for all heads. "
            "Pass a bool mask, or load the model with attn_implementation='sdpa'."
        )


def _is_from_compiler(error: Exception) -> bool:
    """Whether torch failed while compiling: its compilers' own errors, and what they say of CPUs they do not serve."""
    module = type(error).__module__
    return module.startswith(("torch._inductor", "torch._dynamo")) or isinstance(error, NotImplementedError)


def _check_keys(announced: int, k: Tensor) -> None:
    """Refuse keys that the cache did not announce: a mask of one key would stretch over all of them."""
    if announced != k.shape[-2]:
        raise UnsupportedMaskError(
            f"past_key_values: the cache announced {announced} keys and holds {k.shape[-2]}; no mask fits. "
            "Pass use_cache=False, or DynamicCache() without a config."
        )


def _without_empty_rows(visible: Tensor) -> tuple[Tensor, Tensor | None]:
    """The mask with every empty row made full, and which rows those were, if any."""
    empty = ~visible.any(-1)
    if not bool(empty.any()):
        return visible, None
    return visible | empty[..., None], empty


def _zero(empty: Tensor | None, output: Tensor, weights: Tensor | None) -> AttentionOutput:
    """Attention output `(batch, queries, heads, head_dim)` and weights, 0 for the queries that see nothing."""
    if empty is None:
        return output, weights
    empty = empty.to(output.device)[..., None]
    output = output.masked_fill(empty.transpose(1, 2), 0)
    return output, None if weights is None else weights.masked_fill(empty, 0)
