"""A warning where training rewards a model for reading its labels.

A next-token loss under a mask that shows the next token falls fast and teaches copying. The base model's forward says
which mask it ran, `LeakWatch.saw`; the loss says which targets count, `LeakWatch.look`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .checks import label_leaks, network
from .inputs import Rows
from .pattern import Pattern
from .report import IGNORED


logger = logging.getLogger(__name__)  # below upstream's own, so that its verbosity rules this one too


@dataclass(frozen=True, eq=False)
class Seen:
    """One forward: what was said, the patterns of its layers, and the data to bind them to."""

    said: str
    patterns: Sequence[Pattern]
    rows: Rows

    def leaks(self) -> Tensor:
        """Bool `(batch or 1, slots)`, as `checks.label_leaks`."""
        return label_leaks(network(self.patterns, self.rows), self.rows.layout)


@dataclass
class LeakWatch:
    """Looks for label leaks while one model trains: at the losses 1, 2, 4, 8, ... of each pattern until one leaks.

    Data may differ from batch to batch, so one look is not enough; to look each time would cost more than it tells.
    """

    seen: Seen | None = None
    losses: Counter[str] = field(default_factory=Counter)
    warned: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: torch.nn.Module) -> LeakWatch | None:
        """That of a base model while it trains."""
        if not model.training:
            return None
        if not hasattr(model, "_leak_watch"):
            object.__setattr__(model, "_leak_watch", cls())
        return model._leak_watch  # type: ignore[return-value]

    @staticmethod
    def forget(model: torch.nn.Module) -> None:
        """A forward ran upstream's own mask: what was seen before is not what the next loss is of."""
        watch: LeakWatch | None = getattr(model, "_leak_watch", None)
        if watch is not None:
            watch.seen = None

    def __reduce__(self) -> tuple[type[LeakWatch], tuple[()]]:
        return LeakWatch, ()  # a copied or saved model keeps no batch

    def saw(self, said: object, patterns: Sequence[Pattern], rows: Rows) -> None:
        """Remember a forward, for the loss that follows it."""
        leaky = rows.layout.q_offset == 0 and not all(pattern.causal for pattern in patterns)
        self.seen = Seen(str(said), patterns, rows) if leaky else None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def look(self, labels: Tensor | None, shift_labels: Tensor | None = None) -> None:
        """Warn, once per pattern, if targets of this loss leak.

        Args:
            labels: integers `(batch, slots)`, not shifted; -100 where the loss does not look.
            shift_labels: the same by the slot that predicts them; if given, the loss takes these.
        """
        seen, self.seen = self.seen, None
        if seen is None or seen.said in self.warned or (labels is None and shift_labels is None):
            return
        self.losses[seen.said] += 1
        if self.losses[seen.said].bit_count() > 1:
            return
        targets = labels[..., 1:] if shift_labels is None else shift_labels[..., :-1]  # type: ignore[index]
        scored = targets != IGNORED
        leaks = seen.leaks()[:, 1:].to(scored.device)
        if scored.ndim != 2 or scored.shape[1] != leaks.shape[1]:
            return  # no loss on every output of that forward
        leaking = int((scored & leaks).sum())
        if leaking:
            self.warned.add(seen.said)
            logger.warning(_message(seen, leaking, int(scored.sum())))


def loss_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """What a model's `loss_function` is in place of `function`: the same, and a next-token loss looks for label leaks.

    Only in training, after a forward under a pattern that may see the future.
    """
    watch = getattr(model.base_model, "_leak_watch", None) if model.training else None
    if watch is None or watch.seen is None or function.__name__ != "ForCausalLMLoss":
        return function
    return partial(watched, watch, function)


def watched(watch: LeakWatch, function: Callable[..., Any], logits: Tensor, labels: Any, *args: Any, **kw: Any) -> Any:
    """A causal-LM loss that looks for leaks first."""
    watch.look(labels, kw.get("shift_labels"))
    return function(logits, labels, *args, **kw)


def _message(seen: Seen, leaking: int, scored: int) -> str:
    return (
        f"mask_pattern={seen.said!r}: {leaking:,} of {scored:,} targets can be read from the input through "
        f"{len(seen.patterns)} layers, so the loss rewards copying them. Set their labels to -100, as "
        "Pattern.check(length, labels=labels, ...).labels does, or train with `& Causal()`."
    )
