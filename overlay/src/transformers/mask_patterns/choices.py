"""One thing for each of several numbered ones: patterns for layers, or for heads, named by number, range or kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import bad_argument, shown


V = TypeVar("V")
MOST = 10_000  # numbers that a key may name; no model has as many layers or heads


@dataclass(frozen=True, order=True)
class Span:
    """The numbers from `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Choices(Generic[V]):
    """What each number gets.

    Args:
        spans: for numbers, ascending and disjoint.
        kinds: for numbers of a kind, such as the layer type `sliding_attention`.
        default: for the numbers that nothing else names; None if all must be named.
    """

    spans: tuple[tuple[Span, V], ...] = ()
    kinds: tuple[tuple[str, V], ...] = ()
    default: V | None = None

    @classmethod
    def of(cls, what: str, given: Mapping[Any, V], kinds: bool) -> Choices[V]:
        """Read the keys of a mapping: `3`, `"3"`, `"4-27"`, `"default"`, and a kind's name where `kinds`.

        Raises:
            ValueError: a key is none of these, or a number is named twice; `what` is the argument that it names.
        """
        spans: list[tuple[Span, V]] = []
        named: dict[str, V] = {}
        for key, value in given.items():
            span = _span(key)
            if span is None and not (key == "default" or (kinds and _is_kind(key))):
                expected = "a number, a range such as '4-27', 'default'" + ", or a layer type" * kinds
                raise bad_argument(what, f"the key {shown(key)}", expected, "Name what each pattern is for.")
            name = str(key if span is None else span)
            if name in named or any(span and _meet(span, other) for other, _ in spans):
                raise bad_argument(what, f"{name} named twice", "every number named once", "Remove one of them.")
            named[name] = value
            if span is not None:
                spans.append((span, value))
        if not named:
            raise bad_argument(what, "an empty mapping", "at least one key", "Say {'default': ...} for all.")
        by_kind = ((name, value) for name, value in named.items() if _span(name) is None and name != "default")
        return cls(tuple(_joined(sorted(spans, key=lambda s: s[0]))), tuple(sorted(by_kind)), named.get("default"))

    def __iter__(self) -> Iterator[tuple[str, V]]:
        yield from ((str(span), value) for span, value in self.spans)
        yield from self.kinds
        if self.default is not None:
            yield "default", self.default

    @property
    def named(self) -> int:
        """One more than the highest number named."""
        return self.spans[-1][0].last + 1 if self.spans else 0

    @property
    def has_gap(self) -> bool:
        """Whether a number below one that is named is not named itself."""
        return sum(span.last - span.first + 1 for span, _ in self.spans) < self.named

    def at(self, what: str, count: int, kinds: tuple[str, ...] = ()) -> tuple[V, ...]:
        """What each of `count` numbers gets; `kinds` says of which kind each is.

        Raises:
            ValueError: a number beyond them or a kind that does not occur is named, a number is named by itself and
                by its kind, or one is not covered.
        """
        if self.named > count:
            remedy = "Change the keys."
            raise bad_argument(what, f"{self.spans[-1][0]}", f"numbers from 0 to {count - 1}", remedy)
        if absent := [kind for kind, _ in self.kinds if kind not in kinds]:
            remedy = "Name types that the model has."
            raise bad_argument(what, absent[0], f"one of {', '.join(sorted(set(kinds)))}", remedy)
        return tuple(self._one(what, number, kinds[number] if kinds else "") for number in range(count))

    def _one(self, what: str, number: int, kind: str) -> V:
        found = [value for span, value in self.spans if span.first <= number <= span.last]
        found += [value for name, value in self.kinds if name == kind]
        if len(found) > 1:
            got = f"{number} named twice, by its number and as {kind}"
            raise bad_argument(what, got, "every number named once", "Remove one of them.")
        if found:
            return found[0]
        if self.default is None:
            raise bad_argument(what, f"nothing for {number}", "every number covered", "Add a 'default'.")
        return self.default


def _span(key: object) -> Span | None:
    """The numbers that a key names, if it names any; keys of any length and kind are looked at in no time."""
    if isinstance(key, int) and not isinstance(key, bool):
        return Span(key, key) if 0 <= key < MOST else None
    if not isinstance(key, str) or len(key) > 40:
        return None
    match = re.fullmatch(r"([0-9]{1,5})(?:[ \t]*-[ \t]*([0-9]{1,5}))?", key.strip(" \t"), re.ASCII)
    if match is None:
        return None
    span = Span(int(match[1]), int(match[2] or match[1]))
    return span if span.first <= span.last < MOST else None


def _is_kind(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", key, re.ASCII) is not None


def _meet(a: Span, b: Span) -> bool:
    return a.first <= b.last and b.first <= a.last


def _joined(spans: list[tuple[Span, V]]) -> Iterator[tuple[Span, V]]:
    """Neighbours that get the same as one span, so that a meaning has one form."""
    current: tuple[Span, V] | None = None
    for span, value in spans:
        if current is not None and current[0].last + 1 == span.first and current[1] == value:
            current = Span(current[0].first, span.last), value
            continue
        if current is not None:
            yield current
        current = span, value
    if current is not None:
        yield current
