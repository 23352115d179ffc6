"""Save a model with a mask pattern so that stock transformers runs it, with the pattern.

The folder holds the weights, and this library as the model's own code: stock loads it with `trust_remote_code=True`,
and refuses it without, as the model has a type of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import transformers

from ..utils import generic
from .bundle import bundle
from .errors import UnsupportedMaskError, bad_argument
from .layers import parse_masks
from .library import Function
from .owners import spokesman


_MODEL_TYPES = ("qwen2", "qwen3")  # their forward takes masks per layer, and their weights are saved as they are named
_HEADER = '''"""{base} and its heads with a mask pattern, for stock transformers: load with trust_remote_code=True.

Written by transformers.mask_patterns.export (Apache-2.0). The pattern is in config.json; the files beside this one are
the library that obeys it.
"""

from transformers import (
{names})

from .mask_patterns_standalone import MaskedConfig, MaskedHead, MaskedModel, on_stock


class Masked{config}(on_stock(MaskedConfig), {config}):
    model_type = "{model_type}_masked"


class Masked{base}(on_stock(MaskedModel), {base}):
    config_class = Masked{config}
'''
_HEAD = """

class Masked{head}(on_stock(MaskedHead), {head}):
    config_class = Masked{config}
    base_class = Masked{base}
"""
_FOOTER = """

AutoModel.register(Masked{config}, Masked{base})  # the heads for classification ask for it
"""


def export_for_stock(model: Any, folder: str | Path, tokenizer: Any = None) -> None:
    """Save `model` with its pattern and its code, to be loaded by stock transformers with `trust_remote_code=True`.

        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

    gives the same logits there, padded or not, cached or not, on eager, sdpa and flex_attention. The fork loads the
    folder too. It cannot be loaded without the code.

    Args:
        model: a Qwen2 or Qwen3 model with a pattern in `model.config.mask_pattern`.
        folder: is made if it does not exist.
        tokenizer: or processor, saved beside the model.

    Raises:
        ValueError: the model has no pattern, or code that is not in the folder: a class of the user's, a
            `get_mask_pattern`, or a function in the pattern.
        UnsupportedMaskError: this release is not one that the exported code runs on.
    """
    _check_release()
    family = _Family.of(model)
    _check_method(model)
    _check_pattern(model.config)
    folder = Path(folder)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for name, text in {f"{family.module}.py": family.code(), **bundle("standalone")}.items():
        (folder / name).write_text(text, encoding="utf-8")
    file = folder / "config.json"
    settings = {**json.loads(file.read_text(encoding="utf-8")), **family.settings(type(model))}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Family:
    """The classes of one of upstream's models.

    Args:
        config: the configuration class.
        classes: the base model and its heads, by the name of the auto class that finds them.
    """

    config: type
    classes: Mapping[str, type]

    @classmethod
    def of(cls, model: Any) -> _Family:
        config = type(getattr(model, "config", None))
        family = cls(
            config, dict(_auto_classes(config) if getattr(config, "model_type", None) in _MODEL_TYPES else ())
        )
        if type(model) not in family.classes.values():
            expected = f"one of {', '.join(c.__name__ for c in family.classes.values()) or 'Qwen2 and Qwen3'}"
            remedy = "Export what is inside a wrapper (PEFT: merge_and_unload()); code of your own is not exported."
            raise bad_argument("model", type(model).__name__, expected, remedy)
        return family

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)  # type: ignore[attr-defined]

    @property
    def module(self) -> str:
        return f"modeling_{self.model_type}_masked"

    def settings(self, architecture: type) -> dict[str, Any]:
        """What config.json says in place of upstream's own classes."""
        auto_map = {auto: f"{self.module}.Masked{found.__name__}" for auto, found in self.classes.items()}
        return {
            "architectures": [f"Masked{architecture.__name__}"],
            "auto_map": {"AutoConfig": f"{self.module}.Masked{self.config.__name__}", **auto_map},
            "model_type": f"{self.model_type}_masked",
        }

    def code(self) -> str:
        """The text of the modeling file: a subclass of every class."""
        base = self.classes["AutoModel"].__name__
        heads = sorted({found.__name__ for found in self.classes.values()} - {base})
        names = {"base": base, "config": self.config.__name__, "model_type": self.model_type}
        imported = "".join(f"    {name},\n" for name in sorted(["AutoModel", self.config.__name__, base, *heads]))
        return (
            _HEADER.format(**names, names=imported)
            + "".join(_HEAD.format(**names, head=head) for head in heads)
            + _FOOTER.format(**names)
        )


def _auto_classes(config: type) -> Iterator[tuple[str, type]]:
    """The auto classes that know a configuration class, and the model that each finds."""
    for name in sorted(transformers.__all__):
        if name.startswith("AutoModel"):
            mapping = getattr(transformers, name)._model_mapping
            if config in mapping and isinstance(mapping[config], type):
                yield name, mapping[config]


def _check_release() -> None:
    if not hasattr(generic, "merge_with_config_defaults"):
        raise UnsupportedMaskError(
            f"export_for_stock: the exported code runs on transformers 5, not {transformers.__version__}. Save "
            "the model with save_pretrained(), and export it in the fork of transformers 5."
        )


def _check_method(model: Any) -> None:
    if spokesman(model.base_model) is not None:
        remedy = "Its code is not exported: remove the method, and say the pattern in model.config.mask_pattern."
        raise bad_argument("model", f"a {type(model).__name__} with a get_mask_pattern", "one without", remedy)


def _check_pattern(config: Any) -> None:
    said = getattr(config, "mask_pattern", None)
    if said is None:
        raise bad_argument(
            "model", "no pattern in its config", "one", "Set model.config.mask_pattern, or use save_pretrained()."
        )
    functions = [str(part) for part in _parts(parse_masks(said)) if isinstance(part, Function)]
    if functions:
        expected = "a pattern made of the library's own"
        raise bad_argument("mask_pattern", f"the function {functions[0]!r}", expected, "Its code is not exported.")


def _parts(value: Any) -> Iterator[Any]:
    """A pattern and all that it is made of."""
    yield value
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)
