"""Run as a script: what an exported model computes. It runs on the fork and on stock transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification


REAL = {"none": None, "left": [[1] * 9, [0] * 3 + [1] * 6], "right": [[1] * 9, [1] * 6 + [0] * 3]}
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [1] * 7])


def load(auto: Any, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_pretrained(folder, trust_remote_code=True, **settings).eval()


def backends(pattern: Any) -> list[str]:
    """Where to run it: upstream compiles flex_attention for a native layer, for many seconds."""
    return ["sdpa", "eager"] if "native" in str(pattern) else ["sdpa", "eager", "flex_attention"]


def forwards(model: Any, ids: Tensor, real: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Logits of one forward, of a forward in two parts, without the pattern, and greedy tokens."""
    before = None if real is None else real[:, :7]
    with torch.no_grad():
        yield "one", model(ids, attention_mask=real).logits
        first = model(ids[:, :7], attention_mask=before, use_cache=True)
        then = model(ids[:, 7:], attention_mask=real, past_key_values=first.past_key_values)
        yield "two parts", torch.cat([first.logits, then.logits], dim=1)
        if model.config._attn_implementation != "flex_attention":  # upstream compiles it, for many seconds
            yield "native", model(ids, attention_mask=real, mask_pattern="native").logits
        embeds = model.get_input_embeddings()(ids)
        yield "embeds", model(inputs_embeds=embeds, attention_mask=real, mask_pattern="causal & ~sink(1)").logits


def generated(model: Any, ids: Tensor, real: Tensor) -> Iterator[tuple[str, Tensor]]:
    call = {"attention_mask": real, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    documents = {"mask_pattern": "causal & document", "mask_inputs": {"document_ids": DOCUMENTS}}
    for cache in ("dynamic", "static"):
        yield f"greedy {cache}", model.generate(ids, cache_implementation=cache, **call)
    yield "documents", model.generate(ids, **documents, **call)
    beams = {"num_beams": 3, "num_return_sequences": 2, "sequence_bias": {(7,): 3.0}}
    yield "documents of beams", model.generate(ids, **documents, **beams, **call)
    yield "new documents of beams", model.generate(ids, mask_pattern="causal & document(separator=7)", **beams, **call)


def trained(model: Any, ids: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Loss and gradients, with and without gradient checkpointing."""
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        yield f"loss {checkpointing}", loss
        for name, parameter in model.named_parameters():
            yield f"{name} {checkpointing}", parameter.grad


def outputs(folder: Path) -> Iterator[tuple[str, Tensor]]:
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    model = load(AutoModelForCausalLM, folder)
    for backend in backends(model.config.mask_pattern):
        model.set_attn_implementation(backend)
        for kind, rows in REAL.items():
            real = None if rows is None else torch.tensor(rows)
            yield from ((f"{backend} {kind} {name}", tensor) for name, tensor in forwards(model, ids, real))
        if backend != "flex_attention":  # has no backward on a CPU
            yield from (
                (f"{backend} {name}", tensor) for name, tensor in generated(model, ids, torch.tensor(REAL["left"]))
            )
            yield from ((f"{backend} {name}", tensor) for name, tensor in trained(model, ids))
            model.eval()
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = load(auto, folder, pad_token_id=0)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            out = model(ids, output_attentions=True)
        yield auto.__name__, out[0]
        yield f"{auto.__name__} weights", out.attentions[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    tree, *folders = map(Path, sys.argv[1:])
    assert Path(transformers.__file__).resolve().is_relative_to(tree.resolve()), transformers.__file__
    stock = find_spec("transformers.mask_patterns") is None
    for folder in folders:
        found = {name: tensor.detach().clone() for name, tensor in outputs(folder)}
        torch.save(found, folder / ("stock.pt" if stock else "fork.pt"))
        if stock:
            load(AutoModelForCausalLM, folder).save_pretrained(folder.with_name(f"{folder.name}_again"))
