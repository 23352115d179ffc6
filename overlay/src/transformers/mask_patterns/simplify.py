"""Patterns that mean the same, said with less. Every rule is a law of sets, or follows from what two patterns are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .library import Bidirectional, Causal, Document, GlobalTokens, PerHead, PrefixLM, Sink, SlidingWindow
from .pattern import And, Not, Or, Pattern


EVERYTHING = Bidirectional()
NOTHING = Sink(0)


def simplify(pattern: Pattern) -> Pattern:
    """See `Pattern.simplified`."""
    if isinstance(pattern, Not):
        inner = simplify(pattern.inner)
        return inner.inner if isinstance(inner, Not) else _OPPOSITE.get(inner, Not(inner))
    if isinstance(pattern, And | Or):
        return _combined(type(pattern), pattern.parts)
    if type(pattern) is Document and isinstance(pattern.inner, Pattern):
        inner = simplify(pattern.inner)
        return replace(pattern, inner=None if inner == EVERYTHING else inner)
    if type(pattern) is PerHead:
        return _per_head(pattern)
    return _SAME.get(str(pattern), pattern) if isinstance(pattern, tuple(_KINDS)) else pattern


_KINDS = (PrefixLM, GlobalTokens)
_SAME: dict[str, Pattern] = {"prefix_lm(0)": Causal(), "global_tokens(0)": NOTHING}
_OPPOSITE: dict[Pattern, Pattern] = {EVERYTHING: NOTHING, NOTHING: EVERYTHING}


def _per_head(pattern: PerHead) -> Pattern:
    """One pattern in place of the same for every head; a default is needed to know that it is for every head."""
    choices = pattern.choices
    said = [(key, simplify(part)) for key, part in choices]
    first = said[0][1]
    if choices.default is not None and all(part == first for _, part in said):
        return first
    return PerHead(dict(said))


def _combined(kind: type[And] | type[Or], parts: tuple[Pattern, ...]) -> Pattern:
    neutral, final = (EVERYTHING, NOTHING) if kind is And else (NOTHING, EVERYTHING)
    flat = _flat(kind, [simplify(part) for part in parts])
    kept = _merged(kind, [part for part in flat if part != neutral])
    if final in kept or any(isinstance(part, Not) and part.inner in kept for part in kept):
        return final
    told = _without_implied(kind, [part for part in kept if not _is_absorbed(kind, part, kept)])
    if not told:
        return neutral
    return told[0] if len(told) == 1 else kind(tuple(told))


def _flat(kind: type[And] | type[Or], parts: list[Pattern]) -> list[Pattern]:
    return [inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,))]


def _is_absorbed(kind: type[And] | type[Or], part: Pattern, others: Collection[Pattern]) -> bool:
    """`a & (a | b)` is `a`, and `a | (a & b)` is `a`."""
    dual = Or if kind is And else And
    return isinstance(part, dual) and any(inner in others for inner in part.parts)


def _without_implied(kind: type[And] | type[Or], parts: list[Pattern]) -> list[Pattern]:
    """What is causal by itself needs no `causal &` and adds nothing to `causal |`."""
    if Causal() not in parts:
        return parts
    others = [part for part in parts if part != Causal()]
    if kind is And:
        return others if any(part.causal for part in others) else parts
    return [Causal(), *(part for part in others if not part.causal)]


def _merged(kind: type[And] | type[Or], parts: list[Pattern]) -> Collection[Pattern]:
    """Every part once; and one window, sink or prefix for several: the smallest under `&`, the largest under `|`.

    A view of a dictionary, so that a long pattern is looked up and not searched.
    """
    choose = min if kind is And else max
    kept: dict[object, Pattern] = {}
    for part in parts:
        family = _family(part)
        if family is None:
            kept.setdefault(part, part)
        else:
            kept[family] = choose(kept.get(family, part), part, key=_size)
    return dict.fromkeys(kept.values()).keys()


def _family(pattern: Pattern) -> tuple[str, bool] | None:
    """Patterns of one family are nested in each other by their size."""
    if type(pattern) is SlidingWindow:
        return "sliding_window", pattern.symmetric
    if type(pattern) is Sink:
        return "sink", False
    if type(pattern) is PrefixLM and isinstance(pattern.length, int):
        return "prefix_lm", False
    if type(pattern) is GlobalTokens and isinstance(pattern.count, int):
        return "global_tokens", False
    return None


def _size(pattern: Pattern) -> int:
    values = (getattr(pattern, name, None) for name in ("width", "count", "length"))
    return next(value for value in values if isinstance(value, int))
