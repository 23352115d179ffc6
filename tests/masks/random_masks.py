"""Random patterns, each with its meaning in plain Python, and whole masks by loops: the tests' oracles.

Every pattern of the library is among them, with data from every source: bound to it, passed, derived from tokens or
from positions that start again. Data is given by slot, and says nonsense at padding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import meanings
import torch
from hypothesis import strategies as st
from meanings import Means
from torch import Tensor

from transformers.mask_patterns import (
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    Chunked,
    Dilated,
    Document,
    Gist,
    GlobalTokens,
    ParallelContext,
    Pattern,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    Tree,
    from_function,
)


Real: TypeAlias = list[list[bool]]  # per row and slot: is there a token?
Grid: TypeAlias = list[list[int]]  # per row and slot
HEADS, GROUPS = 4, 2  # of every layout that a pattern per head is tested on


@dataclass(frozen=True)
class Said:
    """A pattern, the same said in Python, and the names of the data that must be passed with it."""

    pattern: Pattern
    means: Means
    reads: frozenset[str] = frozenset()

    def __and__(self, other: Said) -> Said:
        def means(r: int, g: int, q: int, k: int) -> bool:
            return self.means(r, g, q, k) and other.means(r, g, q, k)

        return Said(self.pattern & other.pattern, means, self.reads | other.reads)

    def __or__(self, other: Said) -> Said:
        def means(r: int, g: int, q: int, k: int) -> bool:
            return self.means(r, g, q, k) or other.means(r, g, q, k)

        return Said(self.pattern | other.pattern, means, self.reads | other.reads)

    def __invert__(self) -> Said:
        return replace(self, pattern=~self.pattern, means=lambda r, g, q, k: not self.means(r, g, q, k))


@dataclass(frozen=True)
class Text:
    """Where tokens lie: `rows` says the row of the batch, and the slots of the tokens, of each row or document."""

    real: Real
    rows: tuple[tuple[int, tuple[int, ...]], ...]
    is_inside: bool = False

    @classmethod
    def of(cls, real: Real) -> Text:
        return cls(real, tuple((b, tuple(i for i, token in enumerate(row) if token)) for b, row in enumerate(real)))

    @property
    def counts(self) -> list[int]:
        return [len(slots) for _, slots in self.rows]

    def by_position(self, data: Grid) -> list[list[int]]:
        return [[data[b][slot] for slot in slots] for b, slots in self.rows]

    def grids(self, most: int) -> st.SearchStrategy[Grid]:
        """Integers from 0 to `most` at every slot, padding too."""
        line = st.lists(st.integers(0, most), min_size=len(self.real[0]), max_size=len(self.real[0]))
        return st.lists(line, min_size=len(self.real), max_size=len(self.real))

    def pieces(self, lengths: Sequence[Sequence[int]]) -> Text:
        """The documents of these lengths in each row, as rows of their own."""
        found = []
        for (b, slots), sizes in zip(self.rows, lengths, strict=True):
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            found += [(b, slots[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        return Text(self.real, tuple(found), is_inside=True)


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


def passed(real: Real) -> dict[str, Grid]:
    """Data per token that goes with a batch, the same for every pattern over it."""
    draw, slots = random.Random(repr(real)), range(len(real[0]))
    most = {"input_ids": 3, "segment_ids": 2, "gist_mask": 1, "global_attention_mask": 1}
    most[draw.choice(["document_ids", "position_ids"])] = 2
    return {name: [[draw.randint(0, n) for _ in slots] for _ in real] for name, n in most.items()}


def inputs(real: Real, names: frozenset[str] | None = None) -> dict[str, Any]:
    """`passed` as tensors, all of it or what is named; the masks are bool."""
    data = {name: torch.tensor(grid) for name, grid in passed(real).items() if names is None or name in names}
    return {name: grid.bool() if name.endswith("mask") else grid for name, grid in data.items()}


def said_patterns(real: Real, depth: int = 4, functions: bool = True) -> st.SearchStrategy[Said]:
    """Patterns of at most `depth` levels over the rows of `real`, of which some need `inputs(real)`.

    Args:
        functions: whether users' functions are among them, which have no ranges.
    """
    return _composed(Text.of(real), depth, functions)


@st.composite
def _composed(draw: st.DrawFn, text: Text, depth: int, functions: bool) -> Said:
    operator = draw(st.sampled_from(["leaf", "~", "&", "|", "heads", "inside"])) if depth > 1 else "leaf"
    if operator == "leaf":
        return draw(st.sampled_from(_leaves(text, functions)).flatmap(lambda make: make(text)))
    if operator == "inside":
        return draw(_inside(text, depth, functions))
    inner = _composed(text, depth - 1, functions)
    if operator == "~":
        return ~draw(inner)
    a, b = draw(inner), draw(inner)
    if operator == "heads":
        return draw(_per_head(a, b))
    return a & b if operator == "&" else a | b


@st.composite
def _per_head(draw: st.DrawFn, a: Said, b: Said) -> Said:
    x, y = a.pattern, b.pattern
    forms: list[tuple[PerHead, Said, Said]] = [
        (PerHead({0: x, 1: y}), a, b),
        (PerHead({"0": y, "default": x}), b, a),
        (PerHead({1: y, "default": x}), a, b),
        (PerHead({"0-1": x}), a, a),
        (PerHead({"default": y}), b, b),
    ]
    pattern, first, second = draw(st.sampled_from(forms))

    def means(r: int, g: int, q: int, k: int) -> bool:
        return (first, second)[g].means(r, g, q, k)

    return Said(pattern, means, first.reads | second.reads)


@st.composite
def _inside(draw: st.DrawFn, text: Text, depth: int, functions: bool) -> Said:
    """`Document(inner)` over documents in one piece, whose ids are bound, or follow from tokens or positions."""
    data = passed(text.real)
    options: list[tuple[str, list[list[int]]]] = [("separator", meanings.numbered_by_separator(_tokens(text), 3))]
    if "position_ids" in data:
        restarts = meanings.numbered_by_restarts(text.by_position(data["position_ids"]))
        options.append(("position_ids", restarts))
    source, ids = draw(st.sampled_from([*options, ("bound", [])]))
    if source == "bound":
        ids = [sorted(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))) for n in text.counts]
    lengths = [meanings.runs(row) for row in ids]
    inner = draw(_composed(text.pieces(lengths), depth - 1, functions))
    means = meanings.inside(lengths, inner.means)
    if source == "separator":
        return Said(Document(inner.pattern, separator=3), means, inner.reads | {"input_ids"})
    if source == "position_ids":
        return Said(Document(inner.pattern), means, inner.reads | {"position_ids"})
    return Said(Document(inner.pattern, _by_slot(text, ids)), means, inner.reads)


def _by_slot(text: Text, data: list[list[int]]) -> Tensor:
    """By position in each row, to slots of the batch; 7 where none of them has a token."""
    grid = torch.full((len(text.real), len(text.real[0])), 7)
    for (b, slots), values in zip(text.rows, data, strict=True):
        grid[b, list(slots)] = torch.tensor(values, dtype=torch.long)
    return grid


def _tokens(text: Text) -> list[list[int]]:
    return text.by_position(passed(text.real)["input_ids"])


Leaf: TypeAlias = Callable[[Text], st.SearchStrategy[Said]]


def _leaves(text: Text, functions: bool) -> list[Leaf]:
    """Those that fit the rows: block diffusion needs an even number of tokens, and data per row no documents."""
    leaves: list[Leaf] = [
        _plain,
        _windows,
        _dilated,
        _firsts,
        _blocks,
        _documents,
        _segments,
        _gists,
        _globals,
        _until,
    ]
    leaves += [_function] * functions + [_diffusion] * all(n % 2 == 0 for n in text.counts)
    leaves += [_prefixes] * (not text.is_inside)
    return leaves + [_tree] * (not text.is_inside or len(set(text.counts)) == 1)


def _plain(text: Text) -> st.SearchStrategy[Said]:
    return st.sampled_from([Said(Causal(), meanings.causal), Said(Bidirectional(), meanings.everything)])


def _function(text: Text) -> st.SearchStrategy[Said]:
    rows = [b for b, _ in text.rows]
    own = from_function(lambda b, h, q, k: (b + 2 * q + k) % 3 > 0)
    return st.just(Said(own, lambda r, g, q, k: (rows[r] + 2 * q + k) % 3 > 0))


def _sizes(text: Text, least: int = 1) -> st.SearchStrategy[int]:
    return st.integers(least, len(text.real[0]) + 1)


def _windows(text: Text) -> st.SearchStrategy[Said]:
    return st.builds(
        lambda w, both: Said(SlidingWindow(w, symmetric=both), meanings.window(w, both)), _sizes(text), st.booleans()
    )


def _dilated(text: Text) -> st.SearchStrategy[Said]:
    return st.builds(
        lambda n, step: Said(Dilated(n, step), meanings.dilated(n, step)), _sizes(text), st.integers(1, 4)
    )


def _firsts(text: Text) -> st.SearchStrategy[Said]:
    rows, sizes = len(text.rows), _sizes(text, 0)
    return st.one_of(
        sizes.map(lambda n: Said(Sink(n), meanings.sink(n))),
        sizes.map(lambda n: Said(PrefixLM(n), meanings.prefix([n] * rows))),
        sizes.map(lambda n: Said(GlobalTokens(n), meanings.first_tokens_global(n))),
    )


def _prefixes(text: Text) -> st.SearchStrategy[Said]:
    lengths = st.lists(_sizes(text, 0), min_size=len(text.rows), max_size=len(text.rows))
    return lengths.map(lambda n: Said(PrefixLM(torch.tensor(n)), meanings.prefix(n)))


def _until(text: Text) -> st.SearchStrategy[Said]:
    reads = frozenset({"input_ids"})
    return st.integers(0, 4).map(lambda t: Said(PrefixLM(until=t), meanings.prefix_until(_tokens(text), t), reads))


def _blocks(text: Text) -> st.SearchStrategy[Said]:
    return _sizes(text).flatmap(
        lambda n: st.sampled_from(
            [Said(Chunked(n), meanings.chunked(n)), Said(BlockCausal(n), meanings.block_causal(n))]
        )
    )


def _diffusion(text: Text) -> st.SearchStrategy[Said]:
    return _sizes(text).map(lambda n: Said(BlockDiffusion(n), meanings.block_diffusion(n, text.counts)))


def _documents(text: Text) -> st.SearchStrategy[Said]:
    """Ids that come back, from every source."""
    data = passed(text.real)
    separated = meanings.numbered_by_separator(_tokens(text), 3)
    if "document_ids" in data:
        given = "document_ids", text.by_position(data["document_ids"])
    else:
        given = "position_ids", meanings.numbered_by_restarts(text.by_position(data["position_ids"]))
    return st.one_of(
        text.grids(2).map(lambda d: Said(Document(torch.tensor(d)), meanings.documents(text.by_position(d)))),
        st.just(Said(Document(), meanings.documents(given[1]), frozenset({given[0]}))),
        st.just(Said(Document(separator=3), meanings.documents(separated), frozenset({"input_ids"}))),
    )


def _segments(text: Text) -> st.SearchStrategy[Said]:
    given = text.by_position(passed(text.real)["segment_ids"])
    separated = meanings.numbered_by_separator(_tokens(text), 3)

    def sources(kind: type[SharedPrefix | ParallelContext]) -> st.SearchStrategy[Said]:
        means = meanings.shared_prefix if kind is SharedPrefix else meanings.parallel_context
        return st.one_of(
            text.grids(2).map(lambda d: Said(kind(torch.tensor(d)), means(text.by_position(d)))),
            st.just(Said(kind(), means(given), frozenset({"segment_ids"}))),
            st.just(Said(kind(separator=3), means(separated), frozenset({"input_ids"}))),
        )

    return sources(SharedPrefix) | sources(ParallelContext)


def _gists(text: Text) -> st.SearchStrategy[Said]:
    given = text.by_position(passed(text.real)["gist_mask"])
    own = [[int(token == 3) for token in row] for row in _tokens(text)]
    return st.one_of(
        text.grids(1).map(lambda d: Said(Gist(torch.tensor(d)), meanings.gist(text.by_position(d)))),
        st.just(Said(Gist(), meanings.gist(given), frozenset({"gist_mask"}))),
        st.just(Said(Gist(token=3), meanings.gist(own), frozenset({"input_ids"}))),
    )


def _globals(text: Text) -> st.SearchStrategy[Said]:
    name = "global_attention_mask"
    given = text.by_position(passed(text.real)[name])
    own = [[int(token == 3) for token in row] for row in _tokens(text)]
    return st.one_of(
        text.grids(1).map(
            lambda d: Said(GlobalTokens(torch.tensor(d).bool()), meanings.marked_global(text.by_position(d)))
        ),
        st.just(Said(GlobalTokens(), meanings.marked_global(given), frozenset({name}))),
        st.just(Said(GlobalTokens(token=3), meanings.marked_global(own), frozenset({"input_ids"}))),
    )


@st.composite
def _tree(draw: st.DrawFn, text: Text) -> Said:
    """A tree per row; the same for every document, as those have no data of their own."""
    counts = text.counts[:1] if text.is_inside else text.counts
    prefixes = [draw(st.integers(0, n)) for n in counts]
    parents = [[draw(st.integers(-1, i - 1)) for i in range(n - p)] for n, p in zip(counts, prefixes, strict=True)]
    if text.is_inside:
        rows = len(text.rows)
        means = meanings.tree(prefixes * rows, parents * rows)
        return Said(Tree(prefixes[0], parents[0]) if prefixes else Causal(), means if prefixes else meanings.causal)
    nodes = max(map(len, parents))
    table = torch.tensor([row + [-1] * (nodes - len(row)) for row in parents], dtype=torch.long)
    return Said(Tree(torch.tensor(prefixes), table.view(len(counts), nodes)), meanings.tree(prefixes, parents))


def ranks(row: Sequence[bool]) -> list[int | None]:
    """Per slot how many tokens stand before its token; None at padding."""
    return [sum(row[:slot]) if token else None for slot, token in enumerate(row)]


def brute_force(said: Said, real: Real, queries: range, keys: range, heads: int = HEADS) -> Tensor:
    """Bool `(batch, heads, queries, keys)`, slot by slot; slots past the row are not filled yet."""
    rows = [ranks(row) + [None] * max(0, keys.stop - len(row)) for row in real]
    grid = [
        [[[_seen(said, b, g, row[q], row[k]) for k in keys] for q in queries] for g in range(GROUPS)]
        for b, row in enumerate(rows)
    ]
    shaped = torch.tensor(grid, dtype=torch.bool).reshape(len(real), GROUPS, len(queries), len(keys))
    return shaped.repeat_interleave(heads // GROUPS, 1)


def _seen(said: Said, row: int, group: int, q: int | None, k: int | None) -> bool:
    return q is not None and k is not None and said.means(row, group, q, k)
