"""A Qwen2/Qwen3 decoder written down plainly, in float64 with loops over queries: the oracle for every backend.

It knows nothing of upstream's attention, masks, caches or dtypes: it reads the weights, and takes a whole mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def logits(model: Any, input_ids: Tensor, visible: Tensor, position_ids: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits, float64 `(batch, length, vocabulary)`.

    Args:
        model: a `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.
        input_ids: `(batch, length)`.
        visible: bool `(batch, query heads, length, length)`.
        position_ids: rotary positions, `(batch, length)`.
        bias: added to the scores, shaped like `visible`.
    """
    config, weights = model.config, {name: w.double() for name, w in model.state_dict().items()}
    hidden = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        own = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"model.layers.{layer}.")}
        normed = _rms(hidden, own["input_layernorm.weight"], config)
        hidden = hidden + _attention(config, own, normed, visible, position_ids, bias)
        normed = _rms(hidden, own["post_attention_layernorm.weight"], config)
        gate = torch.nn.functional.silu(normed @ own["mlp.gate_proj.weight"].T)
        hidden = hidden + (gate * (normed @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    final: Tensor = _rms(hidden, weights["model.norm.weight"], config) @ weights["lm_head.weight"].T
    return final


def _rms(x: Tensor, weight: Tensor, config: Any) -> Tensor:
    scale: Tensor = (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()
    return x * scale * weight


def _attention(
    config: Any, own: dict[str, Tensor], x: Tensor, visible: Tensor, positions: Tensor, bias: Any
) -> Tensor:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    q, k, v = (_project(own, name, x, n) for name, n in (("q", heads), ("k", groups), ("v", groups)))
    if "self_attn.q_norm.weight" in own:  # Qwen3
        q, k = (_rms(t, own[f"self_attn.{n}_norm.weight"], config) for t, n in ((q, "q"), (k, "k")))
    theta = config.rope_parameters["rope_theta"]
    q, k = _rotate(q, positions, theta), _rotate(k, positions, theta)
    out = torch.zeros_like(q)
    for b in range(len(x)):
        for h in range(heads):
            for i in range(x.shape[1]):
                seen = visible[b, h, i]
                if not seen.any():
                    continue  # a query that sees nothing: 0
                kv = h // (heads // groups)
                scores = q[b, i, h] @ k[b, seen, kv].T / math.sqrt(q.shape[-1])
                if bias is not None:
                    scores = scores + bias[b, h, i, seen].double()
                out[b, i, h] = scores.softmax(-1) @ v[b, seen, kv]
    return out.flatten(2) @ own["self_attn.o_proj.weight"].T


def _project(own: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    projected = x @ own[f"self_attn.{name}_proj.weight"].T
    if (offset := own.get(f"self_attn.{name}_proj.bias")) is not None:
        projected = projected + offset
    return projected.view(*projected.shape[:-1], heads, -1)


def _rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    angle = positions[..., None].double() * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
