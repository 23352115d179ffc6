"""Modules of upstream's tests that an sdist lacks, as small as those that it holds can bear.

An sdist carries `tests/test_*.py` and nothing below; these import names from three modules that lie below.
Where the tree has such a module, it is left alone.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType


class NoTests:
    """A mixin without tests."""


# A value for each setting that any configuration takes, and that is not its default.
EVERY_CONFIG = {
    "architectures": ["Qwen3Model"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "only"},
    "label2id": {"only": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}

STAND_INS: dict[str, dict[str, object]] = {
    "tests.exporters.test_export": {"ExportTesterMixin": NoTests},
    "tests.generation.test_utils": {"GenerationTesterMixin": NoTests},
    "tests.utils.test_configuration_utils": {"config_common_kwargs": EVERY_CONFIG},
}


def stand_in() -> None:
    """Make the modules that are missing importable."""
    for name, content in STAND_INS.items():
        if not exists(name):
            module = ModuleType(name, "A stand-in: this source holds no such module.")
            vars(module).update(content)
            sys.modules[name] = module


def exists(name: str) -> bool:
    """Whether a module can be found; its package may be missing too."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
