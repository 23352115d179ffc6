"""Upstream's own tests of any model, on tiny Qwen2 and Qwen3: what an sdist lets one run.

Run by `make test-upstream`, with the root of a source tree on the path: `tests` is upstream's package. The
name keeps `make test` from collecting this file.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from stand_ins import exists, stand_in

import transformers


stand_in()

# Each release has some of them.
MIXINS = {
    "tests.test_modeling_common": "ModelTesterMixin",
    "tests.test_training_mixin": "TrainingTesterMixin",
    "tests.test_tensor_parallel_mixin": "TensorParallelTesterMixin",
    "tests.test_fsdp_mixin": "FSDPTesterMixin",
}
HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")

# Even sizes: two processes share each of them.
DENSE: dict[str, int] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class TinyModel:
    """What upstream's tests ask of a model: its classes, a configuration and a batch."""

    batch_size = 5
    seq_length = 9
    is_training = True
    num_hidden_layers = DENSE["num_hidden_layers"]
    num_attention_heads = DENSE["num_attention_heads"]
    hidden_size = DENSE["hidden_size"]

    def __init__(self, family: str) -> None:
        self.classes = tuple(getattr(transformers, f"{family}{head}") for head in HEADS)
        self.base_model_class, self.causal_lm_class, self.sequence_classification_class = self.classes[:3]
        self.config_class = getattr(transformers, f"{family}Config")

    def get_config(self) -> Any:
        """A configuration of its own for each test."""
        return self.config_class(**DENSE)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A configuration and a batch; no token is padding."""
        shape = (self.batch_size, self.seq_length)
        input_ids = torch.randint(3, DENSE["vocab_size"], shape)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def mixins() -> Iterator[Any]:
    """Upstream's mixins that the source holds."""
    for module, name in MIXINS.items():
        if exists(module):
            yield getattr(import_module(module), name)


class UpstreamTests(*mixins()):  # type: ignore[misc]  # which they are is known when it runs
    """All of them together; the subclasses name the family."""

    family: str

    def setUp(self) -> None:
        transformers.set_seed(0)  # the same weights and batches on both trees
        self.model_tester = TinyModel(self.family)
        self.all_model_classes = self.model_tester.classes

    def test_config(self) -> None:
        """Upstream's own checks of a configuration class."""
        tester = import_module("tests.test_configuration_common").ConfigTester
        tester(self, config_class=self.model_tester.config_class).run_common_tests()


class Qwen2Test(UpstreamTests, unittest.TestCase):
    family = "Qwen2"


class Qwen3Test(UpstreamTests, unittest.TestCase):
    family = "Qwen3"
