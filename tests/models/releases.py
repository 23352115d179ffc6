"""What the release of transformers under test does, by its features, and the tests of what it does not do.

This is the one place that says so: a test listed here is left out with its reason, where the release lacks what it is
about. What the library refuses there instead, `test_older_releases` tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from inspect import getsource, signature

import torch

import transformers
from transformers import Qwen3Config, cache_utils, modeling_flash_attention_utils
from transformers.generation.utils import GenerationMixin
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.models.qwen2_moe import modeling_qwen2_moe
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.utils import generic


QWEN2_MOE_TAKES_MASKS = not hasattr(modeling_qwen2_moe, "QWEN2MOE_ATTENTION_CLASSES")
EXPORTS = hasattr(generic, "merge_with_config_defaults")
FLEX_TAKES_A_BIAS = "position_bias" in signature(flex_attention_forward).parameters
GOES_ON_FROM_NEW_TOKENS = not hasattr(GenerationMixin, "_get_initial_cache_position")  # else from all tokens only
COPIES_KEYS_PER_HEAD = not EXPORTS  # SDPA with a mask: other sums than ours
MAKES_MASKS_IN_ONE_PLACE = find_spec("transformers.masking_utils") is not None
CACHES_HAVE_LAYERS = hasattr(cache_utils, "DynamicLayer")
TELLS_FLASH = hasattr(modeling_flash_attention_utils, "lazy_import_flash_attention")
EXPERTS_ARE_ONE_GRAPH = "in expert_hit" not in getsource(Qwen3MoeSparseMoeBlock)
CHUNKS_KNOW_POSITIONS = EXPORTS
FLOAT32 = {"dtype" if hasattr(Qwen3Config(), "dtype") else "torch_dtype": torch.float32}  # to load a model
PAGED = EXPORTS
REORDERS_QUANTIZED = hasattr(getattr(cache_utils, "QuantizedLayer", None), "_apply_pending_reorder")
CONTINUOUS_BATCHING = find_spec("transformers.generation.continuous_batching") is not None


@dataclass(frozen=True)
class Lack:
    """Tests, whole files or node ids with `*` in them, of what a release may not have."""

    is_there: bool
    reason: str
    tests: tuple[str, ...]


LACKS = (
    Lack(
        EXPORTS,
        "exported code, the README's examples and the page of decoding are for transformers 5",
        (
            "test_export.py::test_stock*",
            "test_export.py::test_models_of_two_folders*",
            "test_export.py::test_what_cannot_be_exported*",
            "test_generation_product.py",
            "test_readme.py",
        ),
    ),
    Lack(
        not REORDERS_QUANTIZED,
        "the page of decoding is of a release whose quantized caches cannot take another order of rows",
        (
            "test_generation_product.py::*Way.BEAMS*",
            "test_generation_product.py::*Way.SAMPLED_BEAMS*",
        ),
    ),
    Lack(
        transformers.__version__ == "5.17.0",
        "the small model was trained on the text of 5.17.0",
        ("test_tiny_checkpoint.py::test_the_text_is*",),
    ),
    Lack(
        MAKES_MASKS_IN_ONE_PLACE,
        "before transformers 4.53 upstream's own mask is one for all layers, with windows in all or none",
        (
            "test_layers_and_heads.py::test_a_native_layer*by number*",
            "test_layers_and_heads.py::test_a_native_layer*by default*",
        ),
    ),
    Lack(
        FLEX_TAKES_A_BIAS,
        "before transformers 5 flex_attention takes no floating mask: test_prompt_masks sees it refused",
        ("test_mask_inputs.py::test_a_bias*flex*",),
    ),
    Lack(
        CHUNKS_KNOW_POSITIONS,
        "before transformers 5 generate() numbers padded rows by slots where it reads in chunks; before 4.53 it "
        "compiles each as one graph, which cannot ask a pattern",
        (
            "test_generation.py::*in chunks*",
            "test_methods_in_generation.py::*in chunks*",
            "test_no_leaks.py::*in chunks*",
            "test_prompt_masks.py::*chunks*",
        ),
    ),
    Lack(
        MAKES_MASKS_IN_ONE_PLACE,
        "before transformers 4.53 heads for classification take no arguments that they do not name",
        (
            "test_calls.py::test_other_heads*",
            "test_pipelines.py::test_a_class_of_a_text*",
        ),
    ),
    Lack(
        MAKES_MASKS_IN_ONE_PLACE,
        "before transformers 4.53 Qwen3-MoE has no static cache, and 'native' is refused beside a config's pattern",
        (
            "test_compiled.py::test_it_does_with_experts*",
            "*static*qwen3_moe*",
            "*qwen3_moe*static*",
            "test_calls.py::test_generate_obeys_the_config*qwen3_moe*",
            "test_calls.py::test_a_call_with_upstreams_mask*qwen3_moe*",
        ),
    ),
    Lack(
        MAKES_MASKS_IN_ONE_PLACE,
        "before transformers 4.53 flex_attention runs on a CPU only where we make its mask, and not in one graph",
        (
            "test_compiled.py::test_it_does_with_flex*",
            "test_experts.py::test_a_native_layer*flex*",
            "test_layers_and_heads.py::test_a_native_layer*flex*",
            "test_mask_inputs.py::test_no_mask*flex*",
            "test_mask_inputs.py::test_a_2d_mask*flex*",
        ),
    ),
    Lack(
        EXPERTS_ARE_ONE_GRAPH,
        "in this release experts loop over those that were chosen, which is not one graph, with the fork or without",
        (
            "test_compiled.py::test_it_does_with_experts*",
            "test_experts.py::test_a_model_of_one_mask*one_graph",
        ),
    ),
    Lack(
        find_spec("transformers.models.doge") is not None,
        "this release has no Doge",
        ("test_experts.py::test_doge*",),
    ),
    Lack(
        find_spec("transformers.models.smollm3") is not None,
        "this release has no model generated from Qwen2",
        ("test_calls.py::test_models_generated_from_qwen2*",),
    ),
    Lack(
        MAKES_MASKS_IN_ONE_PLACE,
        "before transformers 4.53 each model makes its masks, by no functions that could be compared",
        ("test_upstream_masks.py",),
    ),
    Lack(
        EXPORTS,
        "before transformers 5 a model has one static cache for all its calls of generate(), in every thread",
        ("test_no_leaks.py::test_threads_generate*static*",),
    ),
    Lack(
        EXPORTS,
        "before transformers 5 prepare_inputs_for_generation needs a cache_position",
        ("test_compiled.py::*made_ahead*",),
    ),
    Lack(
        EXPORTS,
        "before transformers 5 settings are written as JSON before they are checked, and no tensor can be",
        ("test_generation_settings.py::test_generate_refuses_settings_with_data*",),
    ),
    Lack(
        TELLS_FLASH,
        "before transformers 4.56 patterns are refused on FlashAttention, as on any backend that is not known",
        (
            "test_flash_attention.py",
            "test_upstream_failures.py::test_4_flash_attention_takes*",
        ),
    ),
    Lack(
        CONTINUOUS_BATCHING,
        "this release has no continuous batching",
        (
            "test_continuous_batching.py",
            "test_generation_settings.py::test_continuous_batching*",
        ),
    ),
    Lack(
        PAGED,
        "before transformers 5 continuous batching has no entry in generate()",
        (
            "test_continuous_batching.py::*paged*",
            "test_continuous_batching.py::test_native_in_the_call*",
            "test_continuous_batching.py::test_models_that_take_no_pattern*",
            "test_generation_settings.py::test_continuous_batching*paged*",
        ),
    ),
    Lack(
        CACHES_HAVE_LAYERS,
        "before transformers 4.54 caches have no layers: a DynamicCache keeps every key, a MaskedCache is refused",
        (
            "test_caches_elsewhere.py",
            "test_masked_cache.py",
            "test_cache_memory.py",
            "test_*.py::*masked*",
            "test_prompt_masks.py::test_keys_that_a_sliding_cache*",
            "test_experts.py::test_a_cache_of_windows_lacks*",
            "test_patterns.py::test_a_cache_that_dropped_visible_keys_is_refused",
            "test_patterns.py::test_a_cache_that_holds_other_keys_than_it_announced_is_refused*",
        ),
    ),
)


def left_out(everything: bool = False) -> dict[str, str]:
    """Which tests this release is not up to, and why.

    Args:
        everything: what some release is not up to.
    """
    lacks = [lack for lack in LACKS if everything or not lack.is_there]
    return {test: lack.reason for lack in lacks for test in lack.tests}
