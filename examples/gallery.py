"""The gallery of patterns, `docs/gallery.md` and its pictures, made from the library itself.

.venv/bin/python examples/gallery.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeAlias

import torch

from transformers import mask_patterns
from transformers.mask_patterns import Pattern
from transformers.mask_patterns.draw.picture import Picture, picture
from transformers.mask_patterns.layers import Own, parse_masks


DOCS = Path(__file__).resolve().parents[1] / "docs"
Data: TypeAlias = "Sequence[int] | Sequence[Sequence[int]]"
DOCUMENTS = [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]]
PACKED = {"document_ids": DOCUMENTS}


@dataclass(frozen=True)
class Shown:
    """A pattern to draw, what it is called where it is not a class, and why it is here."""

    text: str
    length: int = 12
    inputs: Mapping[str, Data] = field(default_factory=dict)
    title: str = ""
    why: str = ""
    tokens: tuple[str, ...] | None = None

    @property
    def picture(self) -> Picture:
        masks = parse_masks(self.text)
        assert not isinstance(masks, Own)
        inputs: dict[str, Any] = {name: torch.tensor(data) for name, data in self.inputs.items()}
        return picture(masks, self.length, tokens=self.tokens, **inputs)


# One for each named pattern: the library says which there are.
NAMED = {
    "Causal": Shown("causal"),
    "Bidirectional": Shown("bidirectional"),
    "SlidingWindow": Shown("sliding_window(4)"),
    "Dilated": Shown("dilated(3, 2)"),
    "Sink": Shown("sink(2)"),
    "GlobalTokens": Shown("global_tokens(2)"),
    "PrefixLM": Shown("prefix_lm(5)"),
    "Chunked": Shown("chunked(4)"),
    "BlockCausal": Shown("block_causal(4)"),
    "BlockDiffusion": Shown("block_diffusion(2)"),
    "Document": Shown("document", inputs=PACKED),
    "SharedPrefix": Shown("shared_prefix", inputs={"segment_ids": DOCUMENTS}),
    "ParallelContext": Shown("parallel_context", inputs={"segment_ids": DOCUMENTS}),
    "Gist": Shown("gist(token=9)", inputs={"input_ids": [[1, 2, 3, 4, 9, 9, 5, 6, 7, 8, 1, 2]]}),
    "Tree": Shown("tree(4, [-1, 0, 0, 1, 1, 2, 3, 5])"),
    "PerHead": Shown("per_head(0: causal, 1: sink(1) | sliding_window(3))"),
}
COMPOSED = [
    Shown(
        "sink(1) | sliding_window(3)",
        length=9,
        tokens=("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"),
        title="A window that keeps the first token",
        why="StreamingLLM's mask, with real tokens on the axes.",
    ),
    Shown("causal & document", inputs=PACKED, title="Packed texts", why="Each text sees itself and what came before."),
    Shown(
        "document(prefix_lm(2))",
        inputs=PACKED,
        title="Packed texts, each with a prefix",
        why="A pattern inside each document, with positions that start there.",
    ),
    Shown(
        "causal & (global_tokens(1) | sliding_window(3, symmetric=true))",
        title="Longformer in a decoder",
        why="Global tokens and a window, as far as they came before.",
    ),
    Shown(
        "document(block_diffusion(2))",
        inputs={"document_ids": [[0] * 8 + [1] * 8]},
        length=16,
        title="Block diffusion in each document",
        why="Noisy and clean halves of each document in turn, as SDAR trains.",
    ),
    Shown("~sliding_window(3, symmetric=true)", title="The opposite of a pattern", why="All that is not near."),
    Shown(
        "prefix_lm",
        inputs={"prefix_lengths": [2, 5, 0]},
        length=8,
        title="A prefix for each row",
        why="Rows of a batch stand side by side.",
    ),
    Shown(
        '{"0-3": "causal", "sliding_attention": "sliding_window(3)", "default": "sink(1) | sliding_window(5)"}',
        title="Another pattern for each layer",
        why="By number, by the model's layer type, or for the rest.",
    ),
    Shown(
        "per_head(0-1: causal, default: sink(4) | sliding_window(64))",
        length=512,
        title="Retrieval heads and streaming heads",
        why="DuoAttention: some heads see everything, the others the first tokens and a window.",
    ),
    Shown(
        "sink(4) | causal & document & sliding_window(32768)",
        inputs={"document_ids": [[0] * 15_000 + [1] * 5_000 + [2] * 60_000 + [3] * 20_000]},
        length=100_000,
        title="100,000 positions",
        why="Four documents, a window, and four first tokens that all see. Drawn from key ranges, as the whole mask "
        "would have ten thousand million pairs. What is visible in part is pale, and however little it is, it shows.",
    ),
]
HEAD = """# Gallery

Every pattern of the library, and some compositions. A row is a query, a column a key; blue is visible, orange is
visible although the key is later than the query. Definitions are those of the classes' documentation; `python -m
transformers.mask_patterns "<pattern>"` draws any other pattern.

This page and its pictures are made by [examples/gallery.py](../examples/gallery.py), from the library itself.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its pictures into a folder, `docs` if none is named."""
    arguments = sys.argv[1:] if argv is None else argv
    folder = Path(arguments[0]) if arguments else DOCS
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content, encoding="utf-8")
        print(folder / name)
    return 0


def pages() -> dict[str, str]:
    """The files of the gallery, by their paths below `docs`."""
    files, page = {}, [HEAD, "## Named patterns\n"]
    for name in named_patterns():
        shown = NAMED[name]
        files[f"gallery/{name}.svg"] = shown.picture.svg()
        page += section(f"`{name}`", shown, name, definition(getattr(mask_patterns, name)))
    page.append("## Compositions\n")
    for shown in COMPOSED:
        name = re.sub(r"[^a-z0-9]+", "-", shown.title.lower()).strip("-")
        files[f"gallery/{name}.svg"] = shown.picture.svg()
        page += section(shown.title, shown, name, [shown.why])
    return {"gallery.md": "\n".join(page), **files}


def named_patterns() -> list[str]:
    """The names of the library's patterns, in the order of the table above.

    Raises:
        LookupError: the table and the library differ.
    """
    public = {name: getattr(mask_patterns, name) for name in mask_patterns.__all__}
    known = {name for name, of in public.items() if isinstance(of, type) and issubclass(of, Pattern)} - {"Pattern"}
    if known != set(NAMED):
        raise LookupError(f"NAMED differs from the library in {sorted(known ^ set(NAMED))}: give each an example")
    return list(NAMED)


def section(heading: str, shown: Shown, name: str, said: list[str]) -> Iterator[str]:
    """A heading, the text form, what is said, and the picture."""
    yield f"### {heading}\n\n    {shown.text}\n"
    yield from (f"{paragraph}\n" for paragraph in said)
    yield f"![{heading.strip('`')}](gallery/{name}.svg)\n"


def definition(pattern: type[Pattern]) -> list[str]:
    """The first paragraph of a class's documentation, and the sentence with its source if that stands further on."""
    first, *others = cleandoc(pattern.__doc__ or "").split("\n\n")
    sentences = re.findall(r"\S.*?(?<!e\.g)\.(?=\s|$)", "\n".join(others), re.DOTALL)
    said = [first, *[sentence for sentence in sentences if re.match("Sources?:", sentence) or "arXiv" in sentence][:1]]
    return [re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", part) for part in said]


if __name__ == "__main__":
    sys.exit(main())
