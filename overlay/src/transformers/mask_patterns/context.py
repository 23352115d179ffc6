"""A pattern for a block of code: `with use_mask_pattern(model, pattern): ...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import UnsupportedMaskError, bad_argument
from .layers import Masks, Own, parse_masks
from .takers import TAKERS, plan, takes_masks


F = TypeVar("F", bound=Callable[..., Any])


class Scope(ContextDecorator):
    """What `use_mask_pattern` returns: some base models, and what their masks are while it is entered."""

    def __init__(self, models: frozenset[torch.nn.Module], masks: Masks | Own, inputs: Mapping[str, Tensor]) -> None:
        self.models = models
        self.masks = masks
        self.inputs = inputs

    def __enter__(self) -> None:
        _SCOPES.set((*_SCOPES.get(), self))
        _count(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        scopes = list(_SCOPES.get())
        if self not in scopes:
            raise RuntimeError("use_mask_pattern: left in another thread or task than the one that entered it")
        del scopes[len(scopes) - 1 - scopes[::-1].index(self)]
        _SCOPES.set(tuple(scopes))
        _count(-1)

    def __call__(self, function: F) -> F:
        """The function, run inside this scope. A generator or coroutine, which runs after its call, is refused."""
        if isgeneratorfunction(function) or iscoroutinefunction(function) or isasyncgenfunction(function):
            got = f"{function.__qualname__}, which runs after its call has returned"
            remedy = "Write `with use_mask_pattern(...):` inside it."
            raise bad_argument("use_mask_pattern", got, "a plain function to decorate", remedy)
        return super().__call__(function)


def use_mask_pattern(model: torch.nn.Module, pattern: Any, mask_inputs: Mapping[str, Tensor] | None = None) -> Scope:
    """Masks for all forwards of a model inside a `with` block, or inside a function that it decorates.

        with use_mask_pattern(model, Sink(4) | SlidingWindow(1024)):
            model.generate(...)

    They go before what a `get_mask_pattern` and the config say; a call's own `mask_pattern=` goes before them, and of
    nested blocks the innermost. The model and its config stay as they are. Other threads do not see it, nor do
    asyncio tasks that were started before it: a thread that is to have it, to stream what it generates, runs
    `contextvars.copy_context().run`. A generator that yields inside a block leaves it open for its caller meanwhile.
    A manager of continuous batching refuses requests inside a block. A forward that torch.utils.checkpoint recomputes
    as a whole in backward needs the pattern in its call.

    Args:
        model: one that takes patterns, or anything around such ones: an adapter's model, a compiled one, a trainer's.
        pattern: as `mask_pattern` of a forward: a pattern, its text, a mapping of layers, or "native".
        mask_inputs: data for the pattern, as of a forward; a call's own `mask_inputs` go before them, name by name.

    Raises:
        UnsupportedMaskError: nothing in the model takes a pattern.
        ValueError: a malformed pattern, or one for layers or heads that the model does not have.
    """
    masks = parse_masks(pattern)
    takers = frozenset(part for part in model.modules() if takes_masks(type(part)))
    if not takers:
        raise UnsupportedMaskError(f"use_mask_pattern: {type(model).__name__} does not take a pattern. {TAKERS}")
    for taker in takers:
        plan(masks, taker.config)
    return Scope(takers, masks, dict(mask_inputs or {}))


def innermost(model: torch.nn.Module) -> Scope | None:
    """The scope that speaks for a base model here and now."""
    return _look_up(model) if _in_use else None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _look_up(model: torch.nn.Module) -> Scope | None:
    return next((scope for scope in reversed(_SCOPES.get()) if model in scope.models), None)


def _count(change: int) -> None:
    global _entered, _in_use
    with _LOCK:
        _entered += change
        _in_use = _entered > 0


_SCOPES: ContextVar[tuple[Scope, ...]] = ContextVar("use_mask_pattern", default=())
# Compiled code cannot look into a ContextVar. It asks this first, and torch compiles it again when it changes.
_in_use = False
_entered = 0
_LOCK = Lock()
