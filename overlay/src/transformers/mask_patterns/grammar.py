"""The text form of patterns, both ways, by a grammar and never by evaluating code.

    pattern  := and ("|" and)*       and := not ("&" not)*       not := "~" not | "(" pattern ")" | named
    named    := word [ "(" argument ("," argument)* ")" ]        argument := [word "="] (value | pattern)
    value    := integer | "true" | "false" | "[" integer ("," integer)* "]"
    per_head := "per_head" "(" group ":" pattern ("," group ":" pattern)* ")"
    group    := integer [ "-" integer ] | "default"

Blanks mean nothing; digits are ASCII. Limits: 10,000 characters, 32 levels, integers below 2**31.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import Any

from torch import Tensor

from . import library
from .choices import Choices
from .errors import PatternSyntaxError, bad_argument, pointed_at
from .library import MAX_INTEGER, Function
from .pattern import And, Not, Or, Pattern


MAX_LENGTH, MAX_DEPTH = 10_000, 32  # a level takes up to ten of the thousand frames that Python has
_TOKEN = re.compile(r"(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<integer>[0-9]+)|(?P<sign>[&|~(),=:\[\]-])", re.ASCII)
_BLANK = re.compile(r"[ \t\r\n]*")
_EQUALS = re.compile(r"[ \t\r\n]*=")
_NAMED: dict[str, type[Pattern]] = {
    cls.word: cls
    for cls in vars(library).values()
    if isinstance(cls, type) and issubclass(cls, Pattern) and cls is not Function
}
_FUNCTIONS: dict[str, Function] = {}
_EXAMPLES = {"per_head": "per_head(0: causal, default: sink(4))", "dilated": "dilated(4, 2)"}


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
    if not isinstance(pattern, tuple(_NAMED.values())):
        return f"<{pattern.word} with its data>"
    return pattern.word + (f"({', '.join(arguments)})" if arguments else "")


def python_form(pattern: Pattern) -> str:
    """The expression that builds a named pattern; arguments behind one that is left out are named."""
    given, order = _arguments(pattern), fields(pattern)  # type: ignore[arg-type]
    arguments = [
        _python_value(value) if f is order[place] and not f.kw_only else f"{f.name}={_python_value(value)}"
        for place, (f, value) in enumerate(given)
    ]
    return f"{type(pattern).__name__}({', '.join(arguments)})"


def _python_value(value: Any) -> str:
    if isinstance(value, Choices):
        return f"{{{', '.join(f'{key!r}: {pattern!r}' for key, pattern in value)}}}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def is_text(pattern: Pattern) -> bool:
    """Whether the text form says all of the pattern, so that a config can hold it."""
    return "<" not in write(pattern)


def _arguments(pattern: Pattern) -> list[tuple[Field[Any], Any]]:
    values = [(f, getattr(pattern, f.name)) for f in fields(pattern)]  # type: ignore[arg-type]
    return [(f, value) for f, value in values if isinstance(value, Tensor) or value != f.default]


def _write_argument(field: Field[Any], value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{'x'.join(map(str, value.shape))} {field.name}>"
    if isinstance(value, Choices):
        return ", ".join(f"{key}: {write(pattern)}" for key, pattern in value)
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value).lower()
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
            return self.named(depth)
        inner = self.union(depth + 1)
        if not self.take(")"):
            raise self.expected("`)`, `&` or `|`")
        return inner

    def named(self, depth: int) -> Pattern:
        if self.token.kind != "word":
            raise self.expected("a pattern, such as `causal` or `sliding_window(1024)`")
        word = self.token
        if word.text not in _NAMED and word.text not in _FUNCTIONS:
            known = ", ".join(sorted(_NAMED) + sorted(_FUNCTIONS))
            raise self.expected(f"one of: {known}. A function of yours: from_function(f, name={word.text!r}) first")
        self.advance()
        if word.text in _FUNCTIONS:
            return _FUNCTIONS[word.text]
        return self.build(_NAMED[word.text], word, self.arguments(_NAMED[word.text], depth))

    def arguments(self, cls: type[Pattern], depth: int) -> dict[str, Any]:
        """What stands in brackets behind a word, by name."""
        given: dict[str, Any] = {}
        if not self.take("("):
            return given
        by_name = {f.name: f for f in fields(cls) if f.metadata.get("text", True)}  # type: ignore[arg-type]
        while True:
            name = self.argument_name(cls, given, by_name)
            given[name] = self.value(str(by_name[name].metadata.get("text", "scalar")), depth)
            if self.take(")"):
                return given
            if not self.take(","):
                raise self.expected("`,` or `)`")

    def argument_name(self, cls: Any, given: dict[str, Any], by_name: dict[str, Field[Any]]) -> str:
        free = [name for name, field in by_name.items() if name not in given]
        is_named = self.token.text in by_name or (self.token.kind == "word" and _EQUALS.match(self.text, self.place))
        if not is_named:
            free = [name for name in free if not by_name[name].kw_only and self.may_start(by_name[name])]
        if not free or (is_named and self.token.text not in free):
            raise self.expected(_what_fits(cls, by_name, given))
        if not is_named:
            return free[0]
        name = self.advance().text
        if not self.take("="):
            raise self.expected("`=`")
        return name

    def may_start(self, field: Field[Any]) -> bool:
        """Whether the current token may begin a value of this argument."""
        is_scalar = self.token.kind == "integer" or self.token.text in ("true", "false", "-")
        starts = {"pattern": not is_scalar and self.token.text != "[", "integers": self.token.text == "["}
        return starts.get(str(field.metadata.get("text")), is_scalar) or field.metadata.get("text") == "choices"

    def value(self, kind: str, depth: int) -> Any:
        if kind == "pattern":
            return self.union(depth + 1)
        if kind == "integers":
            return self.integers()
        if kind == "choices":
            return self.choices(depth)
        if self.token.kind == "word" and self.token.text in ("true", "false"):
            return self.advance().text == "true"
        return self.integer("an integer, `true` or `false`")

    def integer(self, what: str = "an integer") -> int:
        start, sign = self.token, -1 if self.take("-") else 1
        if self.token.kind != "integer":
            raise self.expected(what)
        if len(self.token.text) > 10 or int(self.token.text) > MAX_INTEGER:
            raise _error(self.text, start.start, f"an integer of at most {MAX_INTEGER}")
        return sign * int(self.advance().text)

    def integers(self) -> tuple[int, ...]:
        if not self.take("["):
            raise self.expected("a list such as [-1, 0, 0]")
        found: list[int] = []
        while not self.take("]"):
            if found and not self.take(","):
                raise self.expected("`,` or `]`")
            found.append(self.integer())
        return tuple(found)

    def choices(self, depth: int) -> Choices[Pattern]:
        """Groups of heads and their patterns, up to the closing bracket."""
        start, given = self.token.start, dict[str, Pattern]()
        while True:
            place, key = self.token.start, self.group()
            if key in given:
                raise _error(self.text, place, f"every group named once; {key} is named twice")
            if not self.take(":"):
                raise self.expected("`:` and a pattern")
            given[key] = self.union(depth + 1)
            if not self.take(","):
                break
        try:
            return Choices.of("per_head", given, kinds=False)
        except ValueError as error:
            raise _error(self.text, start, f"other groups: {error}") from None

    def group(self) -> str:
        if self.token.kind == "word" and self.token.text == "default":
            return self.advance().text
        if self.token.kind != "integer":
            raise self.expected("a head group such as `0`, `1-3` or `default`")
        first = self.advance().text
        if not self.take("-"):
            return first
        if self.token.kind != "integer":
            raise self.expected("the last group of the range")
        return f"{first}-{self.advance().text}"

    def build(self, cls: type[Pattern], word: _Token, arguments: dict[str, Any]) -> Pattern:
        try:
            return cls(**arguments)
        except (ValueError, TypeError) as error:
            missing = [f.name for f in fields(cls) if f.default is f.default_factory and f.name not in arguments]  # type: ignore[arg-type]
            what = (
                f"{word.text} with its {missing[0]}, as in `{_EXAMPLES.get(word.text, word.text + '(4)')}`"
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
    return PatternSyntaxError(f"this is not a mask pattern:\n{pointed_at(text, place)}\nexpected {expected}")
