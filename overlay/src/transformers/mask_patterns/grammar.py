"""The text form of patterns, both ways, by a grammar and never by evaluating code.

    pattern := and ("|" and)*        and := not ("&" not)*        not := "~" not | "(" pattern ")" | named
    named   := word [ "(" argument ("," argument)* ")" ]          argument := [word "="] (integer | "true" | "false")

Blanks mean nothing; digits are ASCII. Limits: 10,000 characters, 100 levels, integers below 2**31.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import Any

from torch import Tensor

from .errors import PatternSyntaxError, bad_argument
from .library import (
    MAX_INTEGER,
    Bidirectional,
    Causal,
    Document,
    Function,
    PrefixLM,
    Sink,
    SlidingWindow,
)
from .pattern import And, Not, Or, Pattern


MAX_LENGTH, MAX_DEPTH = 10_000, 100
_TOKEN = re.compile(r"(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<integer>-?[0-9]+)|(?P<sign>[&|~(),=])", re.ASCII)
_BLANK = re.compile(r"[ \t\r\n]*")
_NAMED: dict[str, type[Pattern]] = {
    cls.word: cls for cls in (Causal, Bidirectional, SlidingWindow, Sink, PrefixLM, Document)
}
_FUNCTIONS: dict[str, Function] = {}


def register(name: str, pattern: Function) -> None:
    """Make `name` the word of a user's function.

    Raises:
        ValueError: `name` is no lower-case identifier, or is a word of the grammar.
    """
    taken = name in _NAMED or name in ("true", "false", "native", "default")
    if taken or not isinstance(name, str) or not re.fullmatch(r"[a-z_][a-z0-9_]*", name, re.ASCII):
        expected = "a lower-case identifier that is not a word of the grammar"
        raise bad_argument("name", repr(name), expected, "Choose another, e.g. 'my_mask'.")
    _FUNCTIONS[name] = pattern
    _parse_named.cache_clear()


def parse(text: str) -> Pattern:
    """The pattern that `text` says; see `Pattern.parse`."""
    if not isinstance(text, str):
        raise bad_argument(
            "text", type(text).__name__, "a string such as 'sink(4) | sliding_window(1024)'", "Pass a str."
        )
    if len(text) > MAX_LENGTH:
        raise _error(text, 0, f"at most {MAX_LENGTH:,} characters, got {len(text):,}")
    return _parse_named(text)


@lru_cache(maxsize=256)
def _parse_named(text: str) -> Pattern:
    parser = _Parser(text)
    pattern = parser.union(0)
    if parser.token.kind != "end":
        raise parser.expected("`&`, `|` or the end")
    return pattern


def write(pattern: Pattern) -> str:
    """The canonical text of a pattern. What has no text, tensors and unnamed functions, is shown as `<...>`."""
    if isinstance(pattern, Or):
        return " | ".join(map(write, pattern.parts))
    if isinstance(pattern, And):
        return " & ".join(f"({write(part)})" if isinstance(part, Or) else write(part) for part in pattern.parts)
    if isinstance(pattern, Not):
        return f"~({write(pattern.inner)})" if isinstance(pattern.inner, And | Or) else f"~{write(pattern.inner)}"
    if isinstance(pattern, Function):
        return pattern.name or f"<function {getattr(pattern.function, '__name__', '?')}>"
    arguments = [_write_argument(f, value) for f, value in _arguments(pattern)]
    return pattern.word + (f"({', '.join(arguments)})" if arguments else "")


def python_form(pattern: Pattern) -> str:
    """The expression that builds a named pattern."""
    arguments = [f"{f.name}={value!r}" if f.kw_only else repr(value) for f, value in _arguments(pattern)]
    return f"{type(pattern).__name__}({', '.join(arguments)})"


def is_text(pattern: Pattern) -> bool:
    """Whether the text form says all of the pattern, so that a config can hold it."""
    return "<" not in write(pattern)


def _arguments(pattern: Pattern) -> list[tuple[Field[Any], Any]]:
    values = [(f, getattr(pattern, f.name)) for f in fields(pattern)]  # type: ignore[arg-type]
    return [(f, value) for f, value in values if isinstance(value, Tensor) or value != f.default]


def _write_argument(field: Field[Any], value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{'x'.join(map(str, value.shape))} {field.name}>"
    text = str(value).lower()
    return f"{field.name}={text}" if field.kw_only else text


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Recursive descent over one text, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.advance()

    def advance(self) -> _Token:
        """The current token; the next one becomes current."""
        current = getattr(self, "token", None)
        start = _BLANK.match(self.text, self.place).end()  # type: ignore[union-attr]
        if start == len(self.text):
            self.token = _Token("end", "the end", start)
            return current  # type: ignore[return-value]
        match = _TOKEN.match(self.text, start)
        if match is None:
            raise _error(self.text, start, "a pattern, `&`, `|`, `~` or a bracket")
        self.place = match.end()
        self.token = _Token(str(match.lastgroup), match.group(), start)
        return current  # type: ignore[return-value]

    def expected(self, what: str) -> PatternSyntaxError:
        return _error(self.text, self.token.start, what)

    def take(self, sign: str) -> bool:
        """Whether the current token is `sign`; if so it is passed."""
        if self.token.kind != "sign" or self.token.text != sign:
            return False
        self.advance()
        return True

    def union(self, depth: int) -> Pattern:
        parts = [self.intersection(depth)]
        while self.take("|"):
            parts.append(self.intersection(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def intersection(self, depth: int) -> Pattern:
        parts = [self.negation(depth)]
        while self.take("&"):
            parts.append(self.negation(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def negation(self, depth: int) -> Pattern:
        if depth > MAX_DEPTH:
            raise self.expected(f"at most {MAX_DEPTH} levels of brackets and `~`")
        if self.take("~"):
            return Not(self.negation(depth + 1))
        if not self.take("("):
            return self.named()
        inner = self.union(depth + 1)
        if not self.take(")"):
            raise self.expected("`)`, `&` or `|`")
        return inner

    def named(self) -> Pattern:
        if self.token.kind != "word":
            raise self.expected("a pattern, such as `causal` or `sliding_window(1024)`")
        word = self.token
        if word.text not in _NAMED and word.text not in _FUNCTIONS:
            known = ", ".join(sorted(_NAMED) + sorted(_FUNCTIONS))
            raise self.expected(f"one of: {known}. A function of yours: from_function(f, name={word.text!r}) first")
        self.advance()
        if word.text in _FUNCTIONS:
            return _FUNCTIONS[word.text]
        return self.build(_NAMED[word.text], word, self.arguments(_NAMED[word.text]))

    def arguments(self, cls: type[Pattern]) -> dict[str, int | bool]:
        """What stands in brackets behind a word, by name."""
        given: dict[str, int | bool] = {}
        if not self.take("("):
            return given
        by_name = {f.name: f for f in fields(cls) if f.metadata.get("text", True)}  # type: ignore[arg-type]
        positional = [f.name for f in by_name.values() if not f.kw_only]
        while True:
            name = self.argument_name(cls, given, by_name, positional)
            given[name] = self.value()
            if self.take(")"):
                return given
            if not self.take(","):
                raise self.expected("`,` or `)`")

    def argument_name(self, cls: Any, given: dict[str, Any], by_name: dict[str, Any], positional: list[str]) -> str:
        free = [name for name in positional if name not in given]
        if self.token.kind != "word" or self.token.text in ("true", "false"):
            if not free:
                raise self.expected(_what_fits(cls, by_name, given))
            return free[0]
        if self.token.text not in by_name or self.token.text in given:
            raise self.expected(_what_fits(cls, by_name, given))
        name = self.advance().text
        if not self.take("="):
            raise self.expected("`=`")
        return name

    def value(self) -> int | bool:
        if self.token.kind == "word" and self.token.text in ("true", "false"):
            return self.advance().text == "true"
        if self.token.kind != "integer":
            raise self.expected("an integer, `true` or `false`")
        if len(self.token.text) > 11 or abs(int(self.token.text)) > MAX_INTEGER:
            raise self.expected(f"an integer of at most {MAX_INTEGER}")
        return int(self.advance().text)

    def build(self, cls: type[Pattern], word: _Token, arguments: dict[str, int | bool]) -> Pattern:
        try:
            return cls(**arguments)
        except (ValueError, TypeError) as error:
            missing = [f.name for f in fields(cls) if f.default is f.default_factory and f.name not in arguments]  # type: ignore[arg-type]
            what = (
                f"{word.text} with its {missing[0]}, as in `{word.text}(4)`"
                if missing
                else f"other arguments: {error}"
            )
            raise _error(self.text, word.start, what) from None


def _what_fits(cls: type[Pattern], by_name: dict[str, Any], given: dict[str, Any]) -> str:
    rest = [name for name in by_name if name not in given]
    if rest:
        return f"an argument of {cls.word}: {', '.join(rest)}"
    return f"nothing more: {cls.word} takes no further argument" if by_name else f"`{cls.word}` without brackets"


def _error(text: str, place: int, expected: str) -> PatternSyntaxError:
    """The text, shortened around the place, a caret under the place, and what was expected."""
    left, right = max(0, place - 40), place + 40
    head, tail = "..." if left else "", "..." if right < len(text) else ""
    shown = re.sub(r"[^\x20-\x7e]", "?", text[left:right])
    caret = " " * (len(head) + place - left) + "^"
    return PatternSyntaxError(f"this is not a mask pattern:\n  {head}{shown}{tail}\n  {caret}\nexpected {expected}")
