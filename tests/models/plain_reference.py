"""A Qwen2/Qwen3 decoder, with experts too, written down plainly, in float64 with loops: the oracle for every backend.

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
        model: a `Qwen2ForCausalLM`, a `Qwen3ForCausalLM`, or the same with experts.
        input_ids: `(batch, length)`.
        visible: bool `(batch, query heads, length, length)`, or the same for each layer, `(layers, batch, ...)`.
        position_ids: rotary positions, `(batch, length)`.
        bias: added to the scores, shaped like `visible`.
    """
    config, weights = model.config, {name: w.double() for name, w in model.state_dict().items()}
    hidden = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        own = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"model.layers.{layer}.")}
        normed = _rms(hidden, own["input_layernorm.weight"], config)
        seen = visible if visible.ndim == 4 else visible[layer]
        hidden = hidden + _attention(config, own, normed, seen, position_ids, bias)
        normed = _rms(hidden, own["post_attention_layernorm.weight"], config)
        hidden = hidden + (_experts(config, own, normed) if "mlp.gate.weight" in own else _mlp(own, "mlp", normed))
    final: Tensor = _rms(hidden, weights["model.norm.weight"], config) @ weights["lm_head.weight"].T
    return final


def _mlp(own: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate, up, down = (own[f"{name}.{part}_proj.weight"].T for part in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down


def _experts(config: Any, own: dict[str, Tensor], x: Tensor) -> Tensor:
    """Each token's most probable experts, weighted, and in Qwen2-MoE one for all, through a gate of its own."""
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for i, token in enumerate(x[b]):
            odds = (own["mlp.gate.weight"] @ token).softmax(0)
            chosen = odds.argsort(descending=True)[: config.num_experts_per_tok].tolist()
            total = odds[chosen].sum() if config.norm_topk_prob else 1
            for e in chosen:
                gate, up = (own["mlp.experts.gate_up_proj"][e] @ token).chunk(2)
                said = own["mlp.experts.down_proj"][e] @ (torch.nn.functional.silu(gate) * up)
                out[b, i] += odds[e] / total * said
    if "mlp.shared_expert_gate.weight" in own:  # Qwen2-MoE
        out += (x @ own["mlp.shared_expert_gate.weight"].T).sigmoid() * _mlp(own, "mlp.shared_expert", x)
    return out


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
    theta = config.rope_parameters["rope_theta"] if hasattr(config, "rope_parameters") else config.rope_theta
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
