"""Random patterns, each with its meaning in plain Python, and whole masks by loops: the tests' oracles.

What a pattern means is written here from its definition, on positions, and never asks the library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
    from_function,
)


Real = list[list[bool]]  # per row and slot: is there a token?


@dataclass(frozen=True)
class Said:
    """A pattern, and the same said in Python: `means(row, q, k)`, on positions."""

    pattern: Pattern
    means: Callable[[int, int, int], bool]

    def __and__(self, other: Said) -> Said:
        return Said(self.pattern & other.pattern, lambda b, q, k: self.means(b, q, k) and other.means(b, q, k))

    def __or__(self, other: Said) -> Said:
        return Said(self.pattern | other.pattern, lambda b, q, k: self.means(b, q, k) or other.means(b, q, k))

    def __invert__(self) -> Said:
        return Said(~self.pattern, lambda b, q, k: not self.means(b, q, k))


def unpadded(batch: int, length: int) -> Real:
    return [[True] * length for _ in range(batch)]


def padded(most_rows: int = 3, most_slots: int = 9) -> st.SearchStrategy[Real]:
    """Rows with padding anywhere: left, right, in between, and rows of nothing else."""

    def rows(size: tuple[int, int]) -> st.SearchStrategy[Real]:
        batch, slots = size
        anywhere = st.lists(st.booleans(), min_size=slots, max_size=slots)
        left = st.integers(0, slots).map(lambda n: [slot >= n for slot in range(slots)])
        return st.lists(anywhere | left | left.map(lambda row: row[::-1]), min_size=batch, max_size=batch)

    return st.tuples(st.integers(1, most_rows), st.integers(1, most_slots)).flatmap(rows)


@st.composite
def said_patterns(draw: st.DrawFn, real: Real, depth: int = 4, functions: bool = True) -> Said:
    """Patterns of at most `depth` levels, whose data is bound to them, by slot, for the rows of `real`.

    Args:
        functions: whether users' functions are among them, which have no ranges.
    """
    operator = draw(st.sampled_from(["leaf", "~", "&", "|"])) if depth > 1 else "leaf"
    if operator == "leaf":
        return draw(_leaves(real, functions))
    inner = said_patterns(real, depth - 1, functions)
    if operator == "~":
        return ~draw(inner)
    return draw(inner) & draw(inner) if operator == "&" else draw(inner) | draw(inner)


def _leaves(real: Real, functions: bool) -> st.SearchStrategy[Said]:
    batch, slots = len(real), len(real[0])
    sizes, widths = st.integers(0, slots + 1), st.integers(1, slots + 1)
    ids = st.lists(st.lists(st.integers(0, 2), min_size=slots, max_size=slots), min_size=batch, max_size=batch)
    fixed = [Said(Causal(), lambda b, q, k: k <= q), Said(Bidirectional(), lambda b, q, k: True)]
    own = [Said(from_function(lambda b, h, q, k: (b + 2 * q + k) % 3 > 0), lambda b, q, k: (b + 2 * q + k) % 3 > 0)]
    return st.one_of(
        st.sampled_from(fixed + own * functions),
        widths.map(lambda w: Said(SlidingWindow(w), lambda b, q, k: 0 <= q - k < w)),
        widths.map(lambda w: Said(SlidingWindow(w, symmetric=True), lambda b, q, k: abs(q - k) < w)),
        sizes.map(lambda n: Said(Sink(n), lambda b, q, k: k <= q and k < n)),
        sizes.map(lambda n: Said(PrefixLM(n), lambda b, q, k: k <= q or k < n)),
        st.lists(sizes, min_size=batch, max_size=batch).map(_prefixes),
        ids.map(lambda lines: _documents(lines, real)),
    )


def _prefixes(lengths: list[int]) -> Said:
    return Said(PrefixLM(torch.tensor(lengths)), lambda b, q, k: k <= q or k < lengths[b])


def _documents(lines: list[list[int]], real: Real) -> Said:
    """`lines` are by slot; their meaning is by position."""
    by_position = [
        [i for i, token in zip(line, row, strict=True) if token] for line, row in zip(lines, real, strict=True)
    ]
    return Said(Document(torch.tensor(lines)), lambda b, q, k: by_position[b][q] == by_position[b][k])


def ranks(row: Sequence[bool]) -> list[int | None]:
    """Per slot how many tokens stand before its token; None at padding."""
    return [sum(row[:slot]) if token else None for slot, token in enumerate(row)]


def brute_force(said: Said, real: Real, queries: range, keys: range) -> Tensor:
    """Bool `(batch, 1, queries, keys)`, slot by slot; slots past the row are not filled yet."""
    rows = [ranks(row) + [None] * max(0, keys.stop - len(row)) for row in real]
    grid = [[[_seen(said, b, row[q], row[k]) for k in keys] for q in queries] for b, row in enumerate(rows)]
    return torch.tensor(grid, dtype=torch.bool).reshape(len(real), 1, len(queries), len(keys))


def _seen(said: Said, row: int, q: int | None, k: int | None) -> bool:
    return q is not None and k is not None and said.means(row, q, k)
