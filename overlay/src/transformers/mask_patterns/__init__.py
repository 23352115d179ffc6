"""Mask patterns: say in one line which tokens may see which.

    from transformers import AutoModelForCausalLM
    from transformers.mask_patterns import Sink, SlidingWindow

    model = AutoModelForCausalLM.from_pretrained(path, mask_pattern=Sink(4) | SlidingWindow(1024))

Names are loaded on first use, so that configurations can be read where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .context import use_mask_pattern
    from .errors import PatternSyntaxError, UnsupportedMaskError
    from .layers import PerLayer
    from .library import (
        Bidirectional,
        BlockCausal,
        BlockDiffusion,
        Causal,
        Chunked,
        Dilated,
        Document,
        Gist,
        GlobalTokens,
        ParallelContext,
        PerHead,
        PrefixLM,
        SharedPrefix,
        Sink,
        SlidingWindow,
        Tree,
        from_function,
    )
    from .masked_cache import MaskedCache
    from .pattern import Pattern

_HOMES = {
    "Bidirectional": "library",
    "BlockCausal": "library",
    "BlockDiffusion": "library",
    "Causal": "library",
    "Chunked": "library",
    "Dilated": "library",
    "Document": "library",
    "Gist": "library",
    "GlobalTokens": "library",
    "MaskedCache": "masked_cache",
    "ParallelContext": "library",
    "Pattern": "pattern",
    "PatternSyntaxError": "errors",
    "PerHead": "library",
    "PerLayer": "layers",
    "PrefixLM": "library",
    "SharedPrefix": "library",
    "Sink": "library",
    "SlidingWindow": "library",
    "Tree": "library",
    "UnsupportedMaskError": "errors",
    "from_function": "library",
    "use_mask_pattern": "context",
}

__all__ = [
    "Bidirectional",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Chunked",
    "Dilated",
    "Document",
    "Gist",
    "GlobalTokens",
    "MaskedCache",
    "ParallelContext",
    "Pattern",
    "PatternSyntaxError",
    "PerHead",
    "PerLayer",
    "PrefixLM",
    "SharedPrefix",
    "Sink",
    "SlidingWindow",
    "Tree",
    "UnsupportedMaskError",
    "from_function",
    "use_mask_pattern",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
