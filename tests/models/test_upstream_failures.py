"""What upstream gets wrong, by the numbers in the design's list: here the answer is right, or a clear error.

4, 5, 6, 7 and 9 stand here. 1, 2 and 3 are about masks given whole: `test_mask_inputs.py`.
"""

from __future__ import annotations

from typing import Any

import plain_reference
import pytest
import torch
from small_models import BACKENDS, make_model
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PerHead,
    PrefixLM,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    from_function,
    hooks,
)
from transformers.mask_patterns.attention import LayerMasks


every_backend = pytest.mark.parametrize("backend", BACKENDS)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.double(), atol=2e-5, rtol=1e-5)


def expected(model: Any, ids: Tensor, visible: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return plain_reference.logits(model, ids, visible.expand(len(ids), 4, -1, -1), positions)


# 4. A mask function on FlashAttention is dropped: plain causal runs, silently.


@pytest.mark.parametrize(
    "backend", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "paged|sdpa"]
)
@pytest.mark.parametrize(
    "pattern",
    [
        Sink(4),
        PrefixLM(4),
        from_function(lambda b, h, q, k: k <= q),
        PerHead({0: Causal(), 1: Sink(1)}),
        {0: Causal(), 1: "sink(1)"},
        {0: "native", 1: "sink(1)"},
    ],
    ids=str,
)
def test_4_a_backend_that_cannot_express_a_pattern_says_so(pattern: Any, backend: str, ids: Tensor) -> None:
    model = make_model()
    model.config._attn_implementation = backend  # their packages need a GPU
    with pytest.raises(UnsupportedMaskError, match=r"cannot obey mask_pattern='.*'eager', 'sdpa', 'flex_attention'"):
        model(ids, mask_pattern=pattern)


def test_4_flash_attention_takes_plain_causal_and_nothing_that_upstream_would_read_into_it(ids: Tensor) -> None:
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"  # its package needs a GPU
    embeds, mask = model.model.embed_tokens(ids), torch.ones_like(ids)
    plain, again = torch.arange(9)[None], torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    for causal in (Causal(), {"default": "causal"}, {0: "native", 1: "causal"}):
        assert hooks.masks(model.model, mask, ids, embeds, plain, None, {"mask_pattern": causal}) is mask
        assert hooks.masks(model.model, None, ids, embeds, plain, None, {"mask_pattern": causal}) is None
        made = hooks.masks(model.model, None, ids, embeds, again, None, {"mask_pattern": causal})
        assert isinstance(made["full_attention"], LayerMasks)


# 5. A per-head mask function is evaluated for head 0 only, silently.

WIDTHS = torch.tensor([1, 3, 2, 9])
PER_HEAD: dict[str, tuple[Pattern, list[int]]] = {  # and the width of each query head's window
    "a function": (from_function(lambda b, h, q, k: (k <= q) & (q - k < WIDTHS[h])), [1, 3, 2, 9]),
    "groups": (PerHead({0: SlidingWindow(3), 1: Causal()}), [3, 3, 9, 9]),
    "a function in a group": (
        PerHead({0: from_function(lambda b, h, q, k: (k <= q) & (q - k < WIDTHS[h])), 1: SlidingWindow(2)}),
        [1, 3, 2, 2],
    ),
}


@every_backend
@pytest.mark.parametrize("name", PER_HEAD)
def test_5_heads_differ(name: str, backend: str, ids: Tensor) -> None:
    pattern, widths = PER_HEAD[name]
    model = make_model(attn_implementation=backend)
    back = torch.arange(9)[:, None] - torch.arange(9)
    visible = torch.stack([(back >= 0) & (back < width) for width in widths])[None]
    with torch.no_grad():
        got = model(ids, mask_pattern=pattern).logits
    close(got, expected(model, ids, visible))
    assert not torch.allclose(got.double(), expected(model, ids, visible[:, :1]), atol=1e-2)  # all as head 0


# 6. Packed position_ids isolate documents only without a cache and without a 2D mask; by default they leak.

PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5, 6]])
DOCUMENTS = {0: [(0, 4), (4, 7), (7, 9)], 1: [(0, 2), (2, 9)]}


@every_backend
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("with_mask", [True, False], ids=["2D mask", "no mask"])
@pytest.mark.parametrize("pattern", ["causal & document", "document(causal)"])
def test_6_packed_position_ids_isolate_documents(
    pattern: str, with_mask: bool, use_cache: bool, backend: str, ids: Tensor
) -> None:
    model = make_model(attn_implementation=backend)
    mask = torch.ones_like(ids) if with_mask else None
    with torch.no_grad():
        call = {"attention_mask": mask, "position_ids": PACKED, "use_cache": use_cache}
        got = model(ids, mask_pattern=pattern, **call).logits
        for row, documents in DOCUMENTS.items():
            for a, b in documents:
                close(got[row, a:b], model(ids[row : row + 1, a:b], mask_pattern=Causal()).logits[0])


@every_backend
def test_6_they_do_so_in_left_padding_and_for_tokens_that_go_on_from_a_cache(backend: str, ids: Tensor) -> None:
    model, pattern = make_model(attn_implementation=backend), Causal() & Document()
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([0]), 0)
    positions = torch.tensor([[1, 0, 1, 2, 0, 1, 2, 3, 4]] * 2)
    with torch.no_grad():
        start = {"attention_mask": mask[:, :7], "position_ids": positions[:, :7]}
        first = model(ids[:, :7], mask_pattern=pattern, use_cache=True, **start)
        then = {"attention_mask": mask, "position_ids": positions[:, 7:]}
        last = model(ids[:, 7:], mask_pattern=pattern, past_key_values=first.past_key_values, **then)
        got = torch.cat([first.logits, last.logits], dim=1)
        for a, b in ((1, 4), (4, 9)):
            close(got[:, a:b], model(ids[:, a:b], mask_pattern=Causal()).logits)


# 7. Prefix-LM under left padding is wrong: it counts slots, not positions.


@every_backend
@pytest.mark.parametrize("padding", [1, 4])
def test_7_a_prefix_is_counted_from_the_first_token(padding: int, backend: str, ids: Tensor) -> None:
    model, pattern = make_model(attn_implementation=backend), PrefixLM(torch.tensor([3, 5]))
    padded = torch.cat([torch.zeros(2, padding, dtype=torch.long), ids], dim=1)
    mask = torch.ones_like(padded).index_fill(1, torch.arange(padding), 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = model(ids, mask_pattern=pattern).logits
        for call in ({}, {"position_ids": positions}):
            got = model(padded, attention_mask=mask, mask_pattern=pattern, **call).logits
            close(got[:, padding:], whole)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    prefix = torch.arange(9) < torch.tensor([3, 5])[:, None]
    close(whole, expected(model, ids, (causal | prefix[:, None])[:, None]))


# 9. A row that may see nothing: 0 on sdpa and flex, a uniform mean over all keys, future included, on eager.


@every_backend
@pytest.mark.parametrize(
    ("pattern", "empty"),
    [
        ("causal & ~sliding_window(3)", [0, 1, 2]),
        ("~bidirectional", range(9)),
        ("sink(2) & ~sink(1)", [0]),
        ("per_head(0: causal, 1: causal & ~sink(1))", []),  # empty for two of the heads only
    ],
)
def test_9_a_query_that_sees_nothing_gets_0(pattern: str, empty: Any, backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend)
    outputs: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
    with torch.no_grad():
        got = model(ids, mask_pattern=pattern).logits
    visible = Pattern.parse(pattern).dense(9)
    close(got, expected(model, ids, visible.repeat_interleave(4 // visible.shape[1], 1)))
    sees = [q not in empty for q in range(9)]
    for output in outputs:  # what goes into the output projection, of every layer
        assert output.any(-1).tolist() == [sees, sees]
    if "per_head" in pattern:
        heads = outputs[0].unflatten(-1, (4, -1)).any(-1)
        assert heads[0, 0].tolist() == [True, True, False, False]


def test_9_on_all_backends_alike(ids: Tensor) -> None:
    pattern = Bidirectional() & ~SlidingWindow(9)  # only the future: nothing for the last
    with torch.no_grad():
        eager, sdpa, flex = (make_model(attn_implementation=b)(ids, mask_pattern=pattern).logits for b in BACKENDS)
    close(eager, sdpa)
    close(eager, flex)
