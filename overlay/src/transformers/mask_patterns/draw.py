"""Pictures of masks."""

from __future__ import annotations

import torch
from torch import Tensor


_MOST_CELLS = 64
_SHADES = "⬚░▒▓■"


def text(visible: Tensor) -> str:
    """A mask as lines of text: a row per query, a column per key.

    `■` is visible, `⬚` hidden. A mask of more than 64 tokens is drawn in 64 tiles each way, shaded by the part that is
    visible. Several rows of the batch or heads stand one below the other.

    Args:
        visible: bool `(batch, heads, queries, keys)`.
    """
    batch, heads = visible.shape[:2]
    pictures = [
        (f"row {b}, head {h}:\n" if batch * heads > 1 else "") + _one(visible[b, h])
        for b in range(batch)
        for h in range(heads)
    ]
    return "\n".join(pictures)


def _one(visible: Tensor) -> str:
    tiles = visible.float()
    if max(visible.shape) > _MOST_CELLS:
        size = min(_MOST_CELLS, len(visible)), min(_MOST_CELLS, visible.shape[1])
        tiles = torch.nn.functional.adaptive_avg_pool2d(tiles[None], size)[0]
    # any visible key shows, and only a tile that is visible throughout is drawn full
    shade = (tiles * (len(_SHADES) - 1)).floor().long().where(tiles >= 1, (tiles * 3).ceil().long().clamp(max=3))
    return "\n".join(" ".join(_SHADES[s] for s in row) for row in shade.tolist())
