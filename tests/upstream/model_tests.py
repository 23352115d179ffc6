"""Upstream's own tests of any model, on tiny models with and without experts: what an sdist lets one run.

Run by `make test-upstream`, with the root of a source tree on the path: `tests` is upstream's package. The
name keeps `make test` from collecting this file.
"""

from __future__ import annotations

import unittest
from typing import Any

import torch
from stand_ins import stand_in

import transformers


stand_in()

from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_fsdp_mixin import FSDPTesterMixin  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin  # noqa: E402
from tests.test_training_mixin import TrainingTesterMixin  # noqa: E402


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

    def __init__(self, family: str, **sizes: int) -> None:
        self.classes = tuple(getattr(transformers, f"{family}{head}") for head in HEADS)
        self.base_model_class, self.causal_lm_class, self.sequence_classification_class = self.classes[:3]
        self.config_class = getattr(transformers, f"{family}Config")
        self.sizes = {**DENSE, **sizes}

    def get_config(self) -> Any:
        """A configuration of its own for each test."""
        return self.config_class(**self.sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A configuration and a batch; no token is padding."""
        shape = (self.batch_size, self.seq_length)
        input_ids = torch.randint(3, self.sizes["vocab_size"], shape)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class UpstreamTests(ModelTesterMixin, TrainingTesterMixin, TensorParallelTesterMixin, FSDPTesterMixin):
    """All of upstream's mixins that an sdist holds; the subclasses name the family."""

    family: str
    sizes: dict[str, int] = {}

    def setUp(self) -> None:
        self.model_tester = TinyModel(self.family, **self.sizes)
        self.all_model_classes = self.model_tester.classes

    def test_config(self) -> None:
        """Upstream's own checks of a configuration class."""
        ConfigTester(self, config_class=self.model_tester.config_class).run_common_tests()


class Qwen2Test(UpstreamTests, unittest.TestCase):
    family = "Qwen2"


class Qwen3Test(UpstreamTests, unittest.TestCase):
    family = "Qwen3"
