"""The text the small checkpoint is trained on: the prose in transformers' own docstrings.

Source: every `src/transformers/**/*.py` of the pinned upstream release, copyright The HuggingFace Team and
contributors, licensed Apache-2.0. Whoever installs the fork has it, and it is the same from git and from the
sdist, patched or not: left out are the `convert_*.py` scripts, which the sdist lacks, the fork's own
`mask_patterns`, and the paragraphs on mask patterns that its patches add.

Upstream repeats itself across its generated models, so a paragraph counts once: it goes when most of its
word 5-grams were met before. The held-out text comes from whole families (one model, or one module outside
`models/`) that give nothing to the training text, and none of its paragraphs shares a word 8-gram with that.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath


HELD_OUT_CHARS = 25_000
MIN_HELD_OUT_FAMILY_CHARS = 2_500  # long enough to fill a context with one subject

_CODE = re.compile(r"```.*?(```|\Z)|^\s*(>>>|\.\.\. ).*$", re.DOTALL | re.MULTILINE)
_MARKUP = (
    (re.compile(r"<[^<>]{1,80}>"), " "),
    (re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)"), r"\1"),  # [text](link) -> text
    (re.compile(r"\[`+~?(?:[\w.]*\.)?(\w+)`+\]"), r"\1"),  # [`~module.Name`] -> Name
    (re.compile(r"[`*]+"), ""),
)
# "hidden_size (`int`, *optional*, defaults to 768): text" and "Returns: text" start a paragraph of their own.
_ENTRY = re.compile(r"^\s*(?:- )?`?([A-Za-z_]\w*)`?\s*\(.*?\)\s*:\s*", re.MULTILINE)
_HEADING = re.compile(
    r"^\s*(Args|Arguments|Parameters|Attributes|Returns?|Raises|Yields|Notes?|Examples?)\s*:", re.MULTILINE
)
_OF_THE_FORK = re.compile(r"\bmask_patterns?\b|the mask pattern reads")
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Corpus:
    """Training documents, one per source file in path order, and the held-out text."""

    documents: tuple[str, ...]
    held_out: str

    @property
    def digest(self) -> str:
        """Tells whether two machines trained on the same text."""
        return hashlib.sha256("\0".join((*self.documents, self.held_out)).encode()).hexdigest()


@dataclass(frozen=True)
class _Paragraph:
    family: str
    file: str
    text: str

    def ngrams(self, size: int) -> set[tuple[str, ...]]:
        words = _WORD.findall(self.text.lower())
        return set(zip(*(words[start:] for start in range(size)), strict=False))


def read_corpus(checkout: Path) -> Corpus:
    """Extract, deduplicate and split the docstrings of a transformers checkout."""
    paragraphs = _without_near_duplicates(_paragraphs(checkout))
    families = _held_out_families(paragraphs)
    training = [paragraph for paragraph in paragraphs if paragraph.family not in families]
    seen = {ngram for paragraph in training for ngram in paragraph.ngrams(8)}
    held_out = [p for p in paragraphs if p.family in families and not p.ngrams(8) & seen]
    return Corpus(tuple(_documents(training)), "\n\n".join(_documents(held_out)) + "\n")


def _paragraphs(checkout: Path) -> Iterator[_Paragraph]:
    root = checkout / "src" / "transformers"
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    if not files:
        raise SystemExit(
            f"error: no Python file below {root}: expected a transformers checkout at {checkout}.\n"
            "Run `make install`, which makes one, or name another with --checkout."
        )
    for file in map(PurePosixPath, files):
        if file.name.startswith("convert_") or file.parts[0] == "mask_patterns":
            continue
        family = "/".join(file.parts[:2]) if file.parts[0] == "models" else str(file)
        for text in _prose((root / file).read_text(encoding="utf-8")):
            if not _OF_THE_FORK.search(text):
                yield _Paragraph(family, str(file), text)


def _prose(source: str) -> Iterator[str]:
    """The paragraphs of running text in a module's docstrings, from top to bottom."""
    for docstring in _docstrings(ast.parse(source)):
        for paragraph in _split(docstring):
            text = " ".join(paragraph.split())
            if _is_prose(text):
                yield text


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(node) or ""
    for child in getattr(node, "body", ()):
        yield from _docstrings(child)


def _split(docstring: str) -> list[str]:
    text = _HEADING.sub("\n\n", _ENTRY.sub(r"\n\n\1: ", _CODE.sub("\n\n", docstring)))
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return re.split(r"\n\s*\n|^\s*[-*] ", text, flags=re.MULTILINE)


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return (
        len(text) >= 40
        and text.isascii()
        and text.endswith((".", "!", "?"))
        and letters >= 0.85 * len(text)
        and not re.search(r"https?:|[|{}\\<>]", text)
    )


def _without_near_duplicates(paragraphs: Iterable[_Paragraph]) -> list[_Paragraph]:
    seen: set[tuple[str, ...]] = set()
    kept = []
    for paragraph in paragraphs:
        ngrams = paragraph.ngrams(5)
        if 4 * len(ngrams & seen) < 3 * len(ngrams):
            kept.append(paragraph)
        seen |= ngrams
    return kept


def _held_out_families(paragraphs: Iterable[_Paragraph]) -> set[str]:
    """Families in the order of their names' hashes, which favours no subject, until there is enough text."""
    sizes: dict[str, int] = {}
    for paragraph in paragraphs:
        sizes[paragraph.family] = sizes.get(paragraph.family, 0) + len(paragraph.text)
    long = [family for family, size in sizes.items() if size >= MIN_HELD_OUT_FAMILY_CHARS]
    chosen: set[str] = set()
    for family in sorted(long, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sum(sizes[name] for name in chosen) >= HELD_OUT_CHARS:
            break
        chosen.add(family)
    return chosen


def _documents(paragraphs: Iterable[_Paragraph]) -> Iterator[str]:
    for _, group in groupby(paragraphs, key=lambda paragraph: paragraph.file):
        yield "\n\n".join(paragraph.text for paragraph in group)
