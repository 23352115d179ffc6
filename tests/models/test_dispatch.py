"""Models that accelerate spreads over devices, here the processor and the disk, obey as plain ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import make_model
from torch import Tensor

from transformers import AutoModelForCausalLM
from transformers.mask_patterns import Causal, Document, PerHead, Sink, SlidingWindow, use_mask_pattern


STREAMING = Sink(1) | SlidingWindow(3)
PER_LAYER = {0: STREAMING, 1: PerHead({0: Causal(), 1: Causal() & ~Sink(1)})}
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [1] * 7])
CALLS: dict[str, dict[str, Any]] = {
    "one pattern": {"mask_pattern": STREAMING},
    "per layer": {"mask_pattern": PER_LAYER},
    "data": {"mask_pattern": Causal() & Document(), "mask_inputs": {"document_ids": DOCUMENTS}},
    "a whole mask": {"attention_mask": (torch.ones(2, 1, 9, 9).tril() * torch.ones(9, 9).triu(-2)).bool()},
}
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["qwen2", "qwen3_moe"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model, and the same with half of its weights on the disk."""
    folder = tmp_path_factory.mktemp("dispatched")
    plain = make_model(request.param)
    plain.save_pretrained(folder)
    return plain, dispatched(folder)


def dispatched(folder: Path, **settings: Any) -> Any:
    on_disk = {"model.layers.1": "disk", "lm_head": "disk"}
    rest = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map={**rest, **on_disk}, offload_folder=folder / "offload", **settings
    )
    assert next(model.model.layers[1].parameters()).device.type == "meta"
    return model.eval()


@pytest.mark.parametrize("name", CALLS)
def test_a_dispatched_model_computes_what_a_plain_one_does(name: str, pair: tuple[Any, Any], ids: Tensor) -> None:
    plain, spread = pair
    with torch.no_grad():
        native, want, got = plain(ids).logits, plain(ids, **CALLS[name]).logits, spread(ids, **CALLS[name]).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)  # weights from a disk lie elsewhere, and so add up
    assert not torch.allclose(got, native, atol=1e-2)


@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_and_generates_what_a_plain_one_does(
    name: str, way: dict[str, Any], pair: tuple[Any, Any], ids: Tensor
) -> None:
    plain, spread = pair
    call = {**CALLS[name], **GREEDY, **way}
    assert torch.equal(spread.generate(ids, **call), plain.generate(ids, **call))


def test_patterns_of_the_model_and_of_a_block(ids: Tensor, tmp_path: Path) -> None:
    plain = make_model()
    plain.save_pretrained(tmp_path)
    spread = dispatched(tmp_path, mask_pattern=PER_LAYER)

    def want(pattern: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = plain(ids, mask_pattern=pattern).logits
        return logits

    with torch.no_grad():
        assert torch.equal(spread(ids).logits, want(PER_LAYER))
        spread.get_mask_pattern = lambda *_, **__: STREAMING
        assert torch.equal(spread(ids).logits, want(STREAMING))
        with use_mask_pattern(spread, "causal & ~sink(1)"):
            assert torch.equal(spread(ids).logits, want("causal & ~sink(1)"))
    assert torch.equal(spread.generate(ids, **GREEDY), plain.generate(ids, mask_pattern=STREAMING, **GREEDY))
