"""The pictures of `attention_speed.py`, from the rows that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from attention_worker import MASKS
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D


Row = dict[str, Any]
ALONE = {"dense": "#b35806", "flex": "#7b3294", "tiles": "#2166ac", "ideal": "#999999"}
NAMES = {
    "tiles": "tile by tile, as the fork does",
    "dense": "SDPA with a whole mask",
    "flex": "FlexAttention, compiled",
    "ideal": "ideal: SDPA without a mask × visible part",
}
SHOWN = "sink + window"
MODEL = {"pattern": "#2166ac", "4D": "#b35806", "causal": "#999999"}
MODEL_NAMES = {"pattern": f"the fork, {MASKS[SHOWN]}", "4D": "upstream, 4D mask", "causal": "upstream, plain causal"}


def _styled() -> None:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "attention_speed", "font.size": 9})


def _tokens(axis: Any, lengths: Sequence[int]) -> None:
    axis.set_xticks(lengths, [f"{length // 1024}k" for length in lengths])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)


def _style(way: str) -> Any:
    return {"linestyle": ":"} if way == "ideal" else {"marker": "."}


def draw_attention(rows: Sequence[Row], path: Path) -> None:
    """Attention alone: time over length, one plot a mask."""
    alone = [known for known in rows if known["work"] == "attention"]
    if not alone:
        return
    _styled()
    masks = [mask for mask in MASKS if any(known["mask"] == mask for known in alone)]
    lengths = sorted({known["length"] for known in alone})
    figure, axes = plt.subplots(
        -(-len(masks) // 3), 3, figsize=(9, 7), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(masks) :]:
        axis.set_axis_off()
    for axis, mask in zip(axes.flat, masks, strict=False):
        for way, colour in ALONE.items():
            name, time = ("unmasked", "ideal_milliseconds") if way == "ideal" else (way, "milliseconds")
            own = [(k["length"], k[time]) for k in alone if (k["mask"], k["way"]) == (mask, name)]
            axis.plot(*zip(*own, strict=True), color=colour, **_style(way)) if own else None
        axis.set(xscale="log", yscale="log")
        axis.set_title(mask, loc="left", fontsize=9)
        _tokens(axis, lengths)
    handles = [Line2D([], [], color=colour, label=NAMES[way], **_style(way)) for way, colour in ALONE.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
    figure.supxlabel("tokens")
    figure.supylabel("milliseconds, 8 heads of 64, 2 cores")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_model(rows: Sequence[Row], path: Path) -> None:
    """A whole forward under one mask: time, and memory with its fit, over length."""
    own = [known for known in rows if (known["work"], known["mask"]) == ("forward", SHOWN)]
    if not own:
        return
    _styled()
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for way, colour in MODEL.items():
        seen = [known for known in own if known["way"] == way]
        lengths = [known["length"] for known in seen]
        time.plot(lengths, [known["milliseconds"] / 1e3 for known in seen], color=colour, marker=".")
        grown = [known["grown_mib"] for known in seen]
        memory.plot(lengths, grown, color=colour, marker=".", linestyle="none" if way == "pattern" else "-")
        if way == "pattern" and len(lengths) > 2:
            _draw_fit(memory, lengths, grown, colour)
    time.set(xscale="log", yscale="log", ylabel="seconds", xlabel="tokens")
    memory.set(xlabel="tokens", ylabel="MiB that a forward takes", xlim=(0, None), ylim=(0, None))
    every = sorted({known["length"] for known in own})
    _tokens(time, every)
    _tokens(memory, [length for length in every if length >= max(every) // 8])
    handles = [Line2D([], [], color=colour, label=MODEL_NAMES[way], marker=".") for way, colour in MODEL.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_fit(axis: Any, lengths: Sequence[int], grown: Sequence[float], colour: str) -> None:
    """The straight line nearest to what was measured, and how well it fits."""
    import numpy as np

    slope, base = np.polyfit(lengths, grown, 1)
    fitted = np.polyval((slope, base), lengths)
    fit = np.corrcoef(lengths, grown)[0, 1] ** 2
    axis.plot(lengths, fitted, color=colour, linewidth=1)
    text = f"{base:.0f} MiB + {1024 * slope:.1f} MiB per 1,024 tokens\nR² = {fit:.5f}"
    axis.text(0.98, 0.04, text, transform=axis.transAxes, ha="right", va="bottom", color=colour)
