"""What every pattern means, in plain Python from its definition, on positions: it never asks the library.

`means(row, group, q, k)` says whether query `q` sees key `k`. A row is one of the batch, or a document in it; data per
token is a list per row, by position; a group is a key/value head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias


Means: TypeAlias = Callable[[int, int, int, int], bool]
PerRow: TypeAlias = Sequence[Sequence[int]]  # integers per row and position


def causal(r: int, g: int, q: int, k: int) -> bool:
    return k <= q


def everything(r: int, g: int, q: int, k: int) -> bool:
    return True


def window(width: int, symmetric: bool = False) -> Means:
    if symmetric:
        return lambda r, g, q, k: abs(q - k) < width
    return lambda r, g, q, k: 0 <= q - k < width


def dilated(count: int, step: int) -> Means:
    return lambda r, g, q, k: any(k == q - step * i for i in range(count))


def sink(count: int) -> Means:
    return lambda r, g, q, k: k <= q and k < count


def prefix(lengths: Sequence[int]) -> Means:
    return lambda r, g, q, k: k <= q or k < lengths[r]


def prefix_until(tokens: PerRow, token: int) -> Means:
    return prefix([row.index(token) + 1 if token in row else 0 for row in map(list, tokens)])


def chunked(size: int) -> Means:
    return lambda r, g, q, k: k <= q and k // size == q // size


def block_causal(size: int) -> Means:
    return lambda r, g, q, k: k // size <= q // size


def block_diffusion(size: int, counts: Sequence[int]) -> Means:
    """The three sub-masks of the paper: block diagonal, offset block causal, block causal."""

    def means(r: int, g: int, q: int, k: int) -> bool:
        half = counts[r] // 2
        noisy_q, noisy_k = q < half, k < half
        block_q, block_k = q % half // size, k % half // size
        diagonal = noisy_q and noisy_k and block_q == block_k
        offset = noisy_q and not noisy_k and block_q > block_k
        clean = not noisy_q and not noisy_k and block_q >= block_k
        return diagonal or offset or clean

    return means


def shared_prefix(segments: PerRow) -> Means:
    return lambda r, g, q, k: k <= q and segments[r][k] in (0, segments[r][q])


def parallel_context(segments: PerRow) -> Means:
    return lambda r, g, q, k: k <= q and segments[r][q] in (segments[r][k], segments[r][-1])


def gist(marked: PerRow) -> Means:
    def means(r: int, g: int, q: int, k: int) -> bool:
        places = [i for i, mark in enumerate(marked[r]) if mark]
        return k <= q and (not places or q <= max(places) or k >= min(places))

    return means


def first_tokens_global(count: int) -> Means:
    return lambda r, g, q, k: k < count or q < count


def marked_global(marked: PerRow) -> Means:
    return lambda r, g, q, k: bool(marked[r][q] or marked[r][k])


def tree(prefixes: Sequence[int], parents: PerRow) -> Means:
    def means(r: int, g: int, q: int, k: int) -> bool:
        first = prefixes[r]
        if q < first or k < first:
            return k <= q
        node = q - first
        while node >= 0:
            if node == k - first:
                return True
            node = parents[r][node]
        return False

    return means


def documents(ids: PerRow) -> Means:
    return lambda r, g, q, k: ids[r][q] == ids[r][k]


def inside(lengths: PerRow, inner: Means) -> Means:
    """`inner` in each of the documents of these lengths, which `inner` numbers through all rows."""
    first_of_row = [sum(map(len, lengths[:r])) for r in range(len(lengths))]

    def means(r: int, g: int, q: int, k: int) -> bool:
        for number, length in enumerate(lengths[r]):
            if q < length or k < length:
                return q < length and k < length and inner(first_of_row[r] + number, g, q, k)
            q, k = q - length, k - length
        raise AssertionError("a position beyond the row")

    return means


def numbered_by_separator(tokens: PerRow, separator: int) -> list[list[int]]:
    """Per token how many separators came before it: a separator belongs to what it ends."""
    return [[list(row[:i]).count(separator) for i in range(len(row))] for row in tokens]


def numbered_by_restarts(position_ids: PerRow) -> list[list[int]]:
    """Per token how often its row's positions had not gone on by one."""
    return [[sum(row[j] != row[j - 1] + 1 for j in range(1, i + 1)) for i in range(len(row))] for row in position_ids]


def runs(ids: Sequence[int]) -> list[int]:
    """The lengths of runs of equal ids."""
    lengths: list[int] = []
    for i, one in enumerate(ids):
        if i and one == ids[i - 1]:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths
