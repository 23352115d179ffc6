"""What `generate()` asks of us: which arguments it lets through, and which masks it makes ahead of a forward."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .context import innermost
from .errors import UnsupportedMaskError, bad_argument, shown
from .inputs import PromptRows
from .layers import NATIVE
from .owners import spokesman
from .prompt_mask import PromptMask
from .takers import TAKERS, takes_masks


# The arguments in which `generate()` hands each forward a `PromptRows` and a `PromptMask`.
PROMPT_ROWS = "prompt_rows"
PROMPT_MASK = "prompt_mask"
_GUESSED = "guessed_mask"  # stays in the arguments between two hooks of ours
_OURS = ("mask_pattern", "mask_inputs")


def check_arguments(model: Any, arguments: MutableMapping[str, Any]) -> None:
    """Take what is ours out of the arguments of which `generate()` is about to ask who uses them.

    Raises:
        UnsupportedMaskError: the model does not, and some models would drop them, or the config's, without a word.
    """
    given = [name for name in _OURS if arguments.pop(name, None) is not None]
    if isinstance(arguments.get(PROMPT_ROWS), PromptRows):  # from the model that this one assists, as is the next
        del arguments[PROMPT_ROWS]
    if isinstance(arguments.get(PROMPT_MASK), PromptMask):
        del arguments[PROMPT_MASK]
        given.append("attention_mask")
    if model.config.__dict__.get("mask_pattern") is not None:
        given.append("config.mask_pattern")
    if given and not any(takes_masks(type(part)) for part in model.modules()):
        raise UnsupportedMaskError(f"`{given[0]}`: {type(model).__name__} does not take one. {TAKERS}")


def is_whole(mask: Any) -> bool:
    """Whether an `attention_mask` says more than which tokens are real."""
    return isinstance(mask, Mapping) or (isinstance(mask, Tensor) and mask.ndim > 2)


def check_generation_config(settings: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a `GenerationConfig` that says masks, and one that masks cannot go with.

    Nobody reads them there, and the argument of the same name would end there too: `generate()` takes each argument
    of which its settings know the name for a setting.

    Args:
        settings: of one call, or of all.
        arguments: of the forwards to come.

    Raises:
        ValueError: names the setting.
    """
    for name in _OURS:
        if (said := getattr(settings, name, None)) is not None:
            got, expected = shown(said), f"{name}=... as an argument of generate()"
            remedy = f"Nothing reads it here: `del generation_config.{name}`, and pass it there."
            remedy += " A pattern for all calls goes into model.config.mask_pattern." * (name == "mask_pattern")
            raise bad_argument(f"generation_config.{name}", got, expected, remedy)
    if (given := _given(arguments)) is None:
        return
    remedy = "Set the pattern in model.config or with use_mask_pattern"
    if settings.token_healing:
        remedy += ", or heal the prompt before the call: model.heal_tokens(input_ids, tokenizer)."
        expected = f"a call without {given}, which would not hold where the prompt's last tokens are generated again"
        raise bad_argument("token_healing", "True", expected, remedy)
    if settings.guidance_scale not in (None, 1):
        expected = f"a call without {given}, which would not hold in the forwards without the prompt"
        raise bad_argument("guidance_scale", settings.guidance_scale, expected, f"{remedy}: they obey it.")


def _given(arguments: Mapping[str, Any]) -> str | None:
    """The first of the arguments that say masks."""
    if is_whole(arguments.get("attention_mask")):
        return "a whole attention_mask"
    return next((name for name in _OURS if arguments.get(name) is not None), None)


def tell_prompt(
    model: Any, arguments: MutableMapping[str, Any], input_ids: Tensor, batch: int, copies_to_come: int = 1
) -> None:
    """Let every forward of `generate()` know what it started from: each row's prompt, and which rows are copies.

    Args:
        arguments: of the forwards to come, in which the prompt is put where there may be a pattern.
        input_ids: of the prompt, `(batch * copies, slots)`.
        batch: rows that the caller passed.
        copies_to_come: of each row; before transformers 4.56 no one place is behind all that copy them.
    """
    if takes_masks(type(model.base_model)) and has_pattern(model, arguments.get("mask_pattern")):
        put_prompt(arguments, input_ids, batch, copies_to_come)
    else:
        arguments.pop(PROMPT_ROWS, None)
        arguments.pop(_GUESSED, None)


def put_prompt(arguments: MutableMapping[str, Any], input_ids: Tensor, batch: int, copies_to_come: int = 1) -> None:
    """`tell_prompt` of a model that takes masks; where the prompt is known already, as to an assistant, it stays."""
    is_guessed, mask = arguments.pop(_GUESSED, False), arguments.get("attention_mask")
    mask = input_ids.new_ones(input_ids.shape) if mask is None else mask
    if PROMPT_ROWS in arguments or mask.ndim != 2:
        return
    real, tokens = mask.bool(), input_ids if input_ids.shape == mask.shape else None
    guessed = int(tokens[~real][0]) if is_guessed and tokens is not None and not bool(real.all()) else None
    counts = real.sum(-1).repeat_interleave(copies_to_come)
    tokens = None if tokens is None else tokens.repeat_interleave(copies_to_come, dim=0)
    arguments[PROMPT_ROWS] = PromptRows(counts, mask.shape[1], len(counts) // batch, tokens, guessed)


def tell_guessed(arguments: MutableMapping[str, Any]) -> None:
    """Note that the caller says no `attention_mask`, so that upstream takes every `pad_token_id` for padding."""
    arguments[_GUESSED] = True


def take_prompt_mask(model: Any, inputs: Tensor, arguments: MutableMapping[str, Any]) -> None:
    """Turn a 3D or 4D `attention_mask` of `generate()` into a `PromptMask` and the 2D mask that upstream can extend.

    Where there is none, note that.

    Args:
        inputs: the prompt, `(batch, length)`, or its embeddings.
        arguments: of the forwards to come.

    Raises:
        ValueError: as `whole_mask`.
    """
    mask, is_ours = arguments.get("attention_mask"), takes_masks(type(model.base_model))
    if mask is None and is_ours:
        tell_guessed(arguments)
    if not isinstance(mask, Tensor) or mask.ndim not in (3, 4) or not is_ours:
        return
    cache = arguments.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    heads = int(model.base_model.config.num_attention_heads)
    batch, length = inputs.shape[:2]
    arguments[PROMPT_MASK] = prompt = PromptMask.read(mask, batch, length, past, heads, model.dtype)
    arguments["attention_mask"] = mask.new_ones(batch, prompt.slots, dtype=torch.long)


def check_continuous_batching(model: Any, arguments: Mapping[str, Any], settings: Any = None) -> None:
    """Refuse masks where the forwards would not see them: another thread makes batches of its own, without arguments.

    Args:
        arguments: of `generate_batch`, which drops what it does not know.
        settings: a `GenerationConfig`; the model's own where there is none.

    Raises:
        UnsupportedMaskError: there may be a pattern, or there is data for one or a whole mask.
        ValueError: the settings say masks.
    """
    check_generation_config(model.generation_config if settings is None else settings, arguments)
    given = arguments.get("mask_pattern")
    if has_pattern(model, given) or _keeps_pattern(model):
        what = "mask_pattern" if given is None else f"mask_pattern={str(given)!r}"
    elif arguments.get("mask_inputs"):
        what = "mask_inputs"
    elif is_whole(arguments.get("attention_mask")):
        what = "a whole attention_mask"
    else:
        return
    raise UnsupportedMaskError(
        f"{what}: continuous batching (cache_implementation='paged', generate_batch) cannot obey it. Use generate() "
        "with another cache, or leave the pattern out of the call, use_mask_pattern, get_mask_pattern and the config."
    )


def has_pattern(model: Any, given: Any) -> bool:
    """Whether the call, a `use_mask_pattern`, a `get_mask_pattern` or the config may say a pattern."""
    if given is None and (scope := innermost(model.base_model)) is not None:
        given = scope.masks
    return _keeps_pattern(model) if given is None else _is_pattern(given)


def _keeps_pattern(model: Any) -> bool:
    """Whether a `get_mask_pattern` or the config may say a pattern."""
    said = getattr(model.config.get_text_config(), "mask_pattern", None)
    return (said is not None and _is_pattern(said)) or spokesman(model.base_model) is not None


def _is_pattern(given: Any) -> bool:
    return given is not NATIVE and not (isinstance(given, str) and given == "native")
