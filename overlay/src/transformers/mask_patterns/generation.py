"""What `generate()` asks of us: which arguments it lets through, and which masks it makes ahead of a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .errors import UnsupportedMaskError
from .inputs import Prompt
from .owners import spokesman
from .takers import TAKERS, takes_masks


PROMPT = "mask_prompt"  # the argument of each forward that holds a `Prompt`


def check_arguments(model: Any, arguments: MutableMapping[str, Any]) -> None:
    """Take `mask_pattern` and `mask_inputs` out of the arguments of which `generate()` is about to ask who uses them.

    Raises:
        UnsupportedMaskError: the model does not, and some models would drop them, or the config's, without a word.
    """
    arguments.pop(PROMPT, None)  # an assistant has its model's
    given = [name for name in ("mask_pattern", "mask_inputs") if arguments.pop(name, None) is not None]
    if model.config.__dict__.get("mask_pattern") is not None:
        given.append("config.mask_pattern")
    if given and not any(takes_masks(type(part)) for part in model.modules()):
        raise UnsupportedMaskError(f"`{given[0]}`: {type(model).__name__} does not take one. {TAKERS}")


def tell_prompt(model: Any, arguments: MutableMapping[str, Any], input_ids: Tensor, batch: int) -> None:
    """Let every forward of `generate()` know what it started from: each row's prompt, and which rows are copies.

    Args:
        arguments: of the forwards to come, in which the prompt is put where there may be a pattern.
        input_ids: of the prompt, `(batch * copies, slots)`.
        batch: rows that the caller passed.
    """
    if takes_masks(type(model.base_model)) and _has_pattern(model, arguments.get("mask_pattern")):
        put_prompt(arguments, input_ids, batch)
    else:
        arguments.pop(PROMPT, None)


def put_prompt(arguments: MutableMapping[str, Any], input_ids: Tensor, batch: int) -> None:
    """`tell_prompt` of a model that takes masks; where the prompt is known already, as to an assistant, it stays."""
    mask = arguments.get("attention_mask")
    mask = input_ids.new_ones(input_ids.shape) if mask is None else mask
    if PROMPT not in arguments and mask.ndim == 2:
        arguments[PROMPT] = Prompt(mask.bool().sum(-1), mask.shape[1], len(input_ids) // batch)


def mask_preparation(model: Any, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """What makes the masks ahead of a forward, as `generate()` does for caches that can be compiled.

    Where the forward has a pattern to obey it is left to the forward. Where it makes one mask for all layers, what
    upstream's `function` made comes in a mapping, so that the forward can tell it from a caller's 4D mask.
    """
    if _has_pattern(model, arguments.get("mask_pattern")):
        return lambda attention_mask, **_: attention_mask
    if not takes_masks(type(model.base_model)):
        return function

    def prepared(**given: Any) -> Any:
        made = function(**given)
        return made if isinstance(made, Mapping) or made is given["attention_mask"] else {"full_attention": made}

    return prepared


def _has_pattern(model: Any, given: Any) -> bool:
    """Whether the call, a `get_mask_pattern` or the config may say a pattern."""
    if given is not None:
        return not (isinstance(given, str) and given == "native")
    said = getattr(model.config.get_text_config(), "mask_pattern", None)
    return said is not None or spokesman(model.base_model) is not None
