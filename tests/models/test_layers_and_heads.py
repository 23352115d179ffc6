"""Another pattern for each layer, for each group of heads, and both at once, on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import plain_reference
import pytest
import torch
from small_models import BACKENDS, CANNOT_LINK, DENSE, make_model
from torch import Tensor

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.mask_patterns import Causal, PatternSyntaxError, PerHead, PerLayer, Sink, SlidingWindow


Sees = Callable[[int, int, int], bool]  # head, query, key
LAST_TWO_SLIDE: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
SLIDING = LAST_TWO_SLIDE | {"num_hidden_layers": 4}
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def c(h: int, q: int, k: int) -> bool:
    """Causal."""
    return k <= q


def w(h: int, q: int, k: int) -> bool:
    """A window of two tokens."""
    return k in (q - 1, q)


def s(h: int, q: int, k: int) -> bool:
    """The first token, and a window of two."""
    return (k == 0 and k <= q) or w(h, q, k)


def n(h: int, q: int, k: int) -> bool:
    """The window of `SLIDING`."""
    return q - 2 <= k <= q


def by_group(first: Sees, second: Sees) -> Sees:
    """4 query heads in 2 groups."""
    return lambda h, q, k: (first, first, second, second)[h](h, q, k)


W, S = SlidingWindow(2), Sink(1) | SlidingWindow(2)
SAID: dict[str, tuple[Any, Sequence[Sees]]] = {
    "numbers": ({0: W, "1": "causal", 2: S, 3: W}, (w, c, s, w)),
    "ranges": ({"0-1": W, "2 - 3": S}, (w, w, s, s)),
    "a default": ({"1-2": S, "default": Causal()}, (c, s, s, c)),
    "types": ({"full_attention": S, "sliding_attention": Causal()}, (s, s, c, c)),
    "a type and numbers": ({"sliding_attention": W, 0: S, 1: Causal()}, (s, c, w, w)),
    "a plain pattern": (Causal(), (c, c, c, c)),
    "heads": (PerHead({0: Causal(), 1: S}), (by_group(c, s),) * 4),
    "heads with a default": (PerHead({1: W, "default": S}), (by_group(s, w),) * 4),
    "heads under operators": (
        Causal() & ~PerHead({0: W, 1: "~causal"}),
        (by_group(lambda h, q, k: k < q - 1, c),) * 4,
    ),
    "heads in layers": (
        {0: PerHead({0: Causal(), 1: W}), 1: {"per_head": {"0": "causal", "default": str(S)}}, "default": W},
        (by_group(c, w), by_group(c, s), w, w),
    ),
}
NATIVE: dict[str, tuple[Any, Sequence[Sees]]] = {
    "native by type": ({"full_attention": S, "sliding_attention": "native"}, (s, s, n, n)),
    "native by number": ({0: "native", 3: "native", "default": W}, (c, w, w, n)),
    "native by default": ({1: PerHead({0: W, 1: S}), "default": "native"}, (c, by_group(w, s), n, n)),
    "one native": ({3: "native", "default": W}, (w, w, w, n)),
}


def grids(layers: Sequence[Sees], real: Tensor) -> Tensor:
    """Bool `(layers, batch, heads, slots, slots)`."""
    batch, slots = real.shape
    seen = torch.zeros(len(layers), batch, 4, slots, slots, dtype=torch.bool)
    for layer, sees in enumerate(layers):
        for b in range(batch):
            tokens = real[b].nonzero()[:, 0].tolist()
            for h in range(4):
                for q, q_slot in enumerate(tokens):
                    for k, k_slot in enumerate(tokens):
                        seen[layer, b, h, q_slot, k_slot] = sees(h, q, k)
    return seen


def expected(model: Any, ids: Tensor, layers: Sequence[Sees], real: Tensor | None = None) -> Tensor:
    real = torch.ones(ids.shape, dtype=torch.bool) if real is None else real
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return plain_reference.logits(model, ids, grids(layers, real), positions)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.double(), atol=2e-5, rtol=1e-5)


@every_backend
@pytest.mark.parametrize("name", SAID)
def test_every_layer_and_head_obeys_its_own(name: str, backend: str, ids: Tensor) -> None:
    said, layers = SAID[name]
    model = make_model(attn_implementation=backend, **SLIDING)
    with torch.no_grad():
        close(model(ids, mask_pattern=said, use_cache=False).logits, expected(model, ids, layers))


@every_backend
@pytest.mark.parametrize("name", ["numbers", "heads in layers"])
def test_in_left_padding_too(name: str, backend: str, ids: Tensor) -> None:
    said, layers = SAID[name]
    model = make_model("qwen2", attn_implementation=backend, **SLIDING)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, :3] = False
    with torch.no_grad():
        got = model(ids, attention_mask=real, mask_pattern=said, use_cache=False).logits
    close(got[real], expected(model, ids, layers, real)[real])


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *product(NATIVE, ["eager", "sdpa"]),
        pytest.param("one native", "flex_attention", marks=CANNOT_LINK),  # upstream compiles it, for seconds
    ],
)
def test_a_native_layer_keeps_upstreams_own_mask(name: str, backend: str, ids: Tensor) -> None:
    said, layers = NATIVE[name]
    model = make_model(attn_implementation=backend, **SLIDING)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, :3] = False
    with torch.no_grad():
        got = model(ids, attention_mask=real, mask_pattern=said, use_cache=False).logits
    close(got[real], expected(model, ids, layers, real)[real])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
def test_native_layers_are_upstreams_bit_for_bit(family: str, backend: str, padded: bool, ids: Tensor) -> None:
    model = make_model(family, attn_implementation=backend, **SLIDING)
    mask = torch.ones_like(ids)
    mask[0, :2] = int(not padded)
    with torch.no_grad():
        plain = model(ids, attention_mask=mask).logits
        for said in ({"full_attention": "native", "default": "native"}, {"default": "native"}, "native"):
            assert torch.equal(model(ids, attention_mask=mask, mask_pattern=said).logits, plain)
    handed: list[Any] = []
    layers = model.model.layers
    for layer in layers:
        layer.self_attn.register_forward_pre_hook(lambda _, __, kwargs: handed.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(ids, attention_mask=mask, use_cache=False)
        model(ids, attention_mask=mask, mask_pattern={2: "native", "default": Causal()}, use_cache=False)
    upstreams, ours = handed[2]["attention_mask"], handed[6]["attention_mask"][2].mask
    assert torch.equal(upstreams, ours)  # the tensor that upstream makes for its sliding layers


@pytest.mark.parametrize(
    ("said", "backend"),
    [
        *product([SAID["heads in layers"][0], {"0-1": S, "default": W}], BACKENDS),
        *product([{"default": "native", 1: S}], ["eager", "sdpa"]),
    ],
)
def test_decoding_with_a_cache_is_decoding_without(said: Any, backend: str, ids: Tensor) -> None:
    model = make_model(attn_implementation=backend, num_hidden_layers=4)  # whose cache keeps every key
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, mask_pattern=said, **settings)
    assert torch.equal(cached, model.generate(ids, mask_pattern=said, use_cache=False, **settings))
    assert not torch.equal(cached, model.generate(ids, mask_pattern=Causal(), **settings))
    model.config.mask_pattern = said
    assert torch.equal(model.generate(ids, **settings), cached)


def test_sliding_layers_may_decode_within_their_window(ids: Tensor) -> None:
    """The cache of a sliding layer keeps what its own pattern shows, and what upstream's mask does."""
    model = make_model(**SLIDING)
    for said in ({"full_attention": S, "sliding_attention": W}, {"full_attention": S, "sliding_attention": "native"}):
        with torch.no_grad():
            whole = model(ids, mask_pattern=said, use_cache=False).logits
            out = model(ids[:, :6], mask_pattern=said, use_cache=True)
            parts = [out.logits]
            for i in range(6, 9):
                out = model(ids[:, i : i + 1], mask_pattern=said, past_key_values=out.past_key_values)
                parts.append(out.logits)
        close(torch.cat(parts, dim=1), whole)


SAVED: list[tuple[Any, Any]] = [
    (PerLayer({0: Causal(), 1: S}), {"0": "causal", "1": "sink(1) | sliding_window(2)"}),
    ({1: "native", "default": W}, {"1": "native", "default": "sliding_window(2)"}),
    (PerHead({0: W, 1: Causal()}), {"per_head": {"0": "sliding_window(2)", "1": "causal"}}),
    (
        {0: PerHead({1: W, "default": S}), "default": W & ~PerHead({"default": Sink(1)})},
        {
            "0": {"per_head": {"1": "sliding_window(2)", "default": "sink(1) | sliding_window(2)"}},
            "default": "sliding_window(2) & ~per_head(default: sink(1))",
        },
    ),
]


@pytest.mark.parametrize(("said", "saved"), SAVED)
def test_layers_and_heads_are_saved_with_the_model(said: Any, saved: Any, tmp_path: Path, ids: Tensor) -> None:
    model = make_model(mask_pattern=said)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask_pattern"] == saved
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.mask_pattern == saved
    with torch.no_grad():
        got = loaded(ids).logits
        assert torch.equal(got, make_model()(ids, mask_pattern=said).logits)
        assert not torch.allclose(got, make_model()(ids).logits, atol=1e-2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, mask_pattern=saved)
    assert again.config.mask_pattern == saved


def config_that_says(said: Any, folder: Path) -> Path:
    make_model(mask_pattern="causal").save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mask_pattern": said}))
    return folder


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"0": "sink(4) & casual", "default": "causal"}, r"mask_pattern\['0'\]"),
        ({"1": {"per_head": {"0": "sink(4) & casual"}}, "0": "native"}, r"mask_pattern\['1'\]: groups\['0'\]"),
        ({"per_head": {"0-1": "sink(4) & casual"}}, r"groups\['0-1'\]"),
    ],
)
def test_a_malformed_text_in_a_mapping_fails_when_the_config_is_loaded(said: Any, key: str, tmp_path: Path) -> None:
    with pytest.raises(
        PatternSyntaxError, match=rf"^{key}: this is not a mask pattern:\n  sink\(4\) & casual\n {{12}}\^"
    ):
        AutoConfig.from_pretrained(config_that_says(said, tmp_path))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"7": "causal", "default": "native"}, "`mask_pattern`: got 7; expected numbers from 0 to 1"),
        ({"0": "causal"}, "`mask_pattern`: got nothing for 1"),
        ({"sliding_attention": "causal", "default": "native"}, "`mask_pattern`: got sliding_attention; expected"),
        ({"per_head": {"5": "causal", "default": "sink(4)"}}, "`groups`: got 5; expected numbers from 0 to 1"),
        ("causal & ~per_head(0: sink(1))", "`groups`: got nothing for 1; expected every number covered"),
        ({"1": {"per_head": {"0-3": "causal"}}, "default": "native"}, "`groups`: got 0-3; expected numbers from 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_fails_when_it_is_built(said: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(mask_pattern=said)
    config = AutoConfig.from_pretrained(config_that_says(said, tmp_path))  # a config alone may be of a larger model
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_model()(torch.ones(1, 3, dtype=torch.long), mask_pattern=said)
