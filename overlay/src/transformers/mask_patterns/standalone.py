"""For exported models on stock transformers: by subclassing, what the fork's patches do in its own tree.

An exported folder holds this module and all that it imports, see `bundle`. Where the fork itself loads such a folder,
its models ask for their masks already, and nothing here is used.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

from transformers import AttentionInterface, DynamicCache
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.utils.generic import merge_with_config_defaults

from .attention import AttentionOutput, attend
from .config import ConfigPattern, for_file
from .errors import UnsupportedMaskError, bad_argument
from .flash_kernels import FLASH_NAMES
from .forward import Backend
from .generation import (
    PROMPT_ROWS,
    check_continuous_batching,
    check_generation_config,
    is_whole,
    put_prompt,
    tell_guessed,
)
from .hooks import masks


_FUNCTIONS = AttentionInterface()
_PREFIX = f"mask_patterns|{__name__}|"  # of every exported folder its own: they know only masks that they made


def on_stock(mixin: type) -> type:
    """The mixin on stock transformers; in the fork an empty class."""
    return mixin if find_spec("transformers.mask_patterns") is None else type(mixin.__name__, (), {})


class MaskedConfig:
    """Mixin for a configuration class: it holds a mask pattern."""

    mask_pattern = ConfigPattern()

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Save this configuration, so that nothing loads it that would ignore the pattern."""
        super(MaskedConfig, for_file(self)).to_json_file(json_file_path, use_diff)  # type: ignore[misc]


class MaskedModel:
    """Mixin for a base model, such as `Qwen3Model`: it asks for its masks."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        obey_masks(self)

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As upstream's, and takes `mask_pattern` and `mask_inputs`."""
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise bad_argument("input_ids", got, "either input_ids or inputs_embeds", "Pass one of them.")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(embeds.shape[1], device=embeds.device) + past)[None]
        return super().forward(  # type: ignore[misc]
            attention_mask=masks(self, attention_mask, input_ids, embeds, position_ids, past_key_values, kwargs),
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=embeds,
            use_cache=use_cache,
            **kwargs,
        )


class MaskedHead:
    """Mixin for a model around a base model, such as `Qwen3ForCausalLM`: `base_class` is its base model's."""

    base_class: ClassVar[type]

    def __init__(self: Any, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        if not isinstance(self.base_model, self.base_class):
            self.base_model.__class__ = self.base_class  # a second one would cost its weights twice
            obey_masks(self.base_model)
            setattr(self, self.base_model_prefix, self.base_model)  # again: `owners` links what takes masks

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """All settings of a call and its other arguments; those that cannot go with masks are refused."""
        prepared: tuple[Any, dict[str, Any]] = super()._prepare_generation_config(*args, **kwargs)  # type: ignore[misc]
        check_generation_config(*prepared)
        return prepared

    def init_continuous_batching(self, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Refuse it: nobody tells its forwards of masks."""
        check_continuous_batching(self, {}, generation_config)
        return super().init_continuous_batching(generation_config, *args, **kwargs)  # type: ignore[misc]

    def _validate_model_kwargs(self, model_kwargs: Mapping[str, Any]) -> None:
        """Refuse misspelled arguments of `generate`, which knows those of upstream's forward, and whole masks."""
        if is_whole(model_kwargs.get("attention_mask")):
            raise UnsupportedMaskError(
                "`attention_mask`: on stock transformers, generate() of an exported model takes no 3D or 4D mask. "
                "Pass a 2D mask of real tokens and padding with a mask_pattern, or load it in the mask patterns fork."
            )
        ours = ("mask_pattern", "mask_inputs", PROMPT_ROWS)
        known = {name: value for name, value in model_kwargs.items() if name not in ours}
        super()._validate_model_kwargs(known)  # type: ignore[misc]

    def _prepare_attention_mask_for_generation(self, inputs: Tensor, settings: Any, model_kwargs: Any) -> Tensor:
        """Upstream's guess of what is padding, and a note that it is one."""
        tell_guessed(model_kwargs)
        guess: Tensor = super()._prepare_attention_mask_for_generation(inputs, settings, model_kwargs)  # type: ignore[misc]
        return guess

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat the rows of the caller's batch, and let the forwards know."""
        expanded: tuple[Tensor, dict[str, Any]] = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        put_prompt(expanded[1], expanded[0], len(expanded[0]) // expand_size)
        return expanded

    @staticmethod
    def create_masks_for_generate(attention_mask: Any = None, **_: Any) -> Any:
        """For static caches `generate` makes masks ahead of the forward, which do not know a pattern: not here."""
        return attention_mask


def obey_masks(model: Any) -> None:
    """Have the attention layers of a base model look up attention functions that obey our masks."""
    for layer in model.layers:
        layer.self_attn.config = _LayerConfig(model.config)


@dataclass(frozen=True, eq=False)
class _LayerConfig:
    """The model's configuration as its attention layers see it: they read from it which function to call."""

    model: Any

    @property
    def _attn_implementation(self) -> str | None:
        name = self.model._attn_implementation
        return f"{_PREFIX}{name}" if f"{_PREFIX}{name}" in _FUNCTIONS else name

    def __getattr__(self, name: str) -> Any:
        if name == "model" or name.startswith("__"):  # asked for by copy and pickle, before there is one
            raise AttributeError(name)
        return getattr(self.model, name)


def _eager(module: Any, *args: Any, **kwargs: Any) -> AttentionOutput:
    """Eager attention, which every modeling file defines for itself."""
    output: AttentionOutput = sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)
    return output


@dataclass(frozen=True, eq=False)
class _FlashLayer:
    """An attention layer as upstream's FlashAttention sees it: the kernel to call is named in its configuration."""

    layer: Any

    @property
    def config(self) -> Any:
        return self.layer.config.model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


def _flash(module: Any, *args: Any, **kwargs: Any) -> AttentionOutput:
    output: AttentionOutput = flash_attention_forward(_FlashLayer(module), *args, **kwargs)
    return output


for _name in FLASH_NAMES:
    AttentionInterface.register(f"{_PREFIX}{_name}", partial(attend, _flash))
for _backend in Backend:
    AttentionInterface.register(f"{_PREFIX}{_backend.value}", partial(attend, _FUNCTIONS.get(_backend.value, _eager)))
