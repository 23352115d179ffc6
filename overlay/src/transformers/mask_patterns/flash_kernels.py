"""FlashAttention as upstream loads it: which of its names take patterns, and whether their kernels have windows."""

from __future__ import annotations

from inspect import signature


# Versions 2 and 3, as packages and as the kernels that upstream loads where the packages are missing.
FLASH_NAMES = frozenset(
    {"flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3"}
)


def takes_patterns(name: str) -> bool:
    """Whether this is FlashAttention that upstream lets us tell of masks, as it does from transformers 4.56 on."""
    from .. import modeling_flash_attention_utils as upstream

    return name in FLASH_NAMES and hasattr(upstream, "lazy_import_flash_attention")


def has_windows(name: str) -> bool:
    """Whether the kernel of this name takes a window here: what it does not take upstream leaves out, silently."""
    from ..modeling_flash_attention_utils import lazy_import_flash_attention

    (_, attend_packed, *_), _ = lazy_import_flash_attention(name)
    return "window_size" in signature(attend_packed).parameters
