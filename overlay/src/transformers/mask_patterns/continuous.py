"""Continuous batching makes batches of its own in a thread of its own: its entries refuse what they would drop.

They are wrapped where a model has them, not hooked in the source, where hardly two releases have them in one place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from .generation import check_continuous_batching


Entry = Callable[..., Any]


def guard_entries(kind: type) -> None:
    """Let the entries that models of a class have ask first; those of one class are wrapped once."""
    for home in kind.__mro__:
        if "generate_batch" in vars(home):
            _guard(home, "generate_batch", _asks_with_arguments)
            _guard(home, "init_continuous_batching", _asks_with_settings)
            _guard(vars(sys.modules[home.__module__])["ContinuousBatchingManager"], "add_request", _asks_for_its_model)


def _guard(home: type, name: str, guard: Callable[[Entry], Entry]) -> None:
    entry = vars(home)[name]
    if not hasattr(entry, "asks"):
        guarded = guard(entry)
        guarded.asks = True  # type: ignore[attr-defined]
        setattr(home, name, guarded)


def _asks_with_arguments(entry: Entry) -> Entry:
    @wraps(entry)
    def guarded(model: Any, *args: Any, **kwargs: Any) -> Any:
        check_continuous_batching(model, kwargs)
        return entry(model, *args, **kwargs)

    return guarded


def _asks_with_settings(entry: Entry) -> Entry:
    @wraps(entry)
    def guarded(model: Any, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        check_continuous_batching(model, {}, generation_config)
        return entry(model, generation_config, *args, **kwargs)

    return guarded


def _asks_for_its_model(entry: Entry) -> Entry:
    @wraps(entry)
    def guarded(manager: Any, *args: Any, **kwargs: Any) -> Any:
        check_continuous_batching(manager.model, kwargs)
        return entry(manager, *args, **kwargs)

    return guarded
