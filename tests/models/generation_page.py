"""What runs and what raises when a pattern meets `generate()`: `docs/generation.md`, made by running it.

PYTHONPATH=transformers/src .venv/bin/python tests/models/generation_page.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from decoding import Batch, Keys, Way
from generation_cells import LIMITS, REPRESENTATIVE, Cell, Data, Outcome, limit, run
from small_models import BACKENDS


PAGE = Path(__file__).resolve().parents[2] / "docs" / "generation.md"
RUNS = "✓"


@dataclass(frozen=True)
class NewTokens:
    """What a pattern says of tokens that are generated.

    Args:
        text: an example.
        rule: for the reader.
        raises: what the example raises when a separator, 5, is generated; empty: it runs.
    """

    text: str
    rule: str
    raises: str = ""


STALE = "is not cache-safe here"
NEW_TOKENS = {
    "Causal": NewTokens("causal", "By position alone, as do `SlidingWindow`, `Sink`, `Dilated` and `Chunked`."),
    "SlidingWindow": NewTokens("sliding_window(2)", "By position alone."),
    "Sink": NewTokens("sink(1) | sliding_window(2)", "By position alone: the first tokens are the row's."),
    "Dilated": NewTokens("dilated(2, 2)", "By position alone."),
    "Chunked": NewTokens("chunked(3)", "By position alone: every n-th token begins a chunk, whoever wrote it."),
    "Bidirectional": NewTokens("bidirectional", "A new token changes all earlier ones: refused with a cache.", STALE),
    "BlockCausal": NewTokens(
        "block_causal(3)", "A new token changes the earlier ones of its block: with a cache it is refused.", STALE
    ),
    "BlockDiffusion": NewTokens(
        "block_diffusion(2)",
        "For training: what grows has other halves, so it is refused.",
        "an even number|" + STALE,
    ),
    "PrefixLM": NewTokens(
        "prefix_lm(until=5)",
        "A prefix does not grow: `prefix_lengths` stay, and `until=T` is looked for in the prompt alone. The prefix "
        "must come in one forward.",
    ),
    "Gist": NewTokens(
        "gist(token=5)",
        "`gist_mask` ends with the prompt. A generated `token` is a gist token, and so changes what those before it "
        "may see: with a cache that is refused when it comes.",
        STALE,
    ),
    "GlobalTokens": NewTokens(
        "causal & (global_tokens(token=5) | sliding_window(2))",
        "`global_tokens(n)` are the first n; `global_attention_mask` ends with the prompt; a generated `token` is "
        "global.",
    ),
    "Document": NewTokens(
        "causal & document(separator=5)",
        "The last token's document goes on, with `document_ids` and with `position_ids`; a generated `separator` ends "
        "it, and the token after that begins another. `document(inner)` likewise.",
    ),
    "SharedPrefix": NewTokens(
        "shared_prefix(separator=5)", "The last token's answer goes on; a generated `separator` begins another."
    ),
    "ParallelContext": NewTokens(
        "parallel_context(separator=5)",
        "The last segment goes on, and sees all. A generated `separator` would make another segment the last: with a "
        "cache that is refused when it comes.",
        STALE,
    ),
    "Tree": NewTokens("tree(4, [-1, 0, 0, 1, 1])", "For one forward: refused when the row grows.", "for one forward"),
    "PerHead": NewTokens("per_head(0: causal, 1: sliding_window(2))", "Each head as its pattern; so do layers."),
}

HEAD = f"""# Generation

For every pattern that is safe for the prompt's cache, the logits at each generated position are those of one forward
without a cache over the whole sequence. The tables say where that was found so, {RUNS}, and where a call raises, by a
letter that says why; nothing else happened. A cell stands for `eager`, `sdpa` and `flex_attention`, which agree where
none is named. Each was run with a small Qwen3 model, on two rows of which one is padded (one padded row where a way
takes only one), and each row's logits were compared with those of one forward over that row alone, on `eager`.

This page is made by [tests/models/generation_page.py](../tests/models/generation_page.py), by running all of it;
[tests/models/test_generation_product.py](../tests/models/test_generation_product.py) holds it to what runs, and runs
more: every pair of backend, model family (with experts too), padding, cache, way and data, and cells drawn at random.
"""
NOTES = """- *sliding*: the model's own cache where layers have a window, here of four tokens in every other layer.
- *offloaded*: a cache that moves keys to the CPU needs an accelerator. Here it ran on a CPU, its streams stubbed.
- *quantized*: upstream's `QuantizedLayer`, with rounding to 16 bits in place of a library's, so that a wrong mask
  shows.
- *contrastive search* and *DoLa* have moved out of transformers 5 into repositories of their own, to be loaded with
  `custom_generate`. The rows for that are loops written here: one that decodes greedily, and one that copies each row,
  tries two tokens in the copies, and keeps the better one, as contrastive search does.
- `guidance_scale` and `token_healing` run forwards of their own, which do not have what a call says: they go with a
  pattern of the config or of a block, and are refused beside one of the call.
- With an assistant, ask for a cache by `past_key_values=` or not at all: `cache_implementation=` is handed to the
  assistant beside its own cache, and upstream refuses the two.
- Right padding is for forwards; `generate()` goes on behind it, and upstream warns.
- A compiled forward over a static cache has tests of its own, as compiling takes seconds a cell:
  [tests/models/test_compiled.py](../tests/models/test_compiled.py).
"""
TAIL = """
A mask that changes what is in the cache already is refused in the call in which it does, with the pair of positions.
So is data that says of tokens in a cache, generated ones too, something else than when they came.
`use_cache=False` computes every step from the start, and runs with all but `tree` and `block_diffusion`.

### Another rule

`get_mask_pattern` of a subclass, or of a model, is asked before every forward, with all that is known by then, and so
may say anything of the new tokens. Here each of them is a document of its own:

```python
import torch
from transformers import AutoModelForCausalLM
from transformers.mask_patterns import Causal, Document

model = AutoModelForCausalLM.from_pretrained("examples/tiny_qwen3/model")


prompt, documents = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1]])


def each_token_alone(input_ids, attention_mask, mask_inputs):
    new = 1000 + torch.arange(input_ids.shape[1] - documents.shape[1])
    return Causal() & Document(torch.cat([documents, new[None]], dim=1))


model.get_mask_pattern = each_token_alone
model.generate(prompt, use_cache=False, max_new_tokens=5, do_sample=False)
```

With a cache, `input_ids` are those of the forward alone. How many came before says the `attention_mask`, where there
is one: from transformers 5.23 on `generate()` drops a mask of ones.
"""


def cell_of(way: Way, keys: Keys = Keys.DYNAMIC, data: Data = REPRESENTATIVE, backend: str = "sdpa") -> Cell:
    """The cell that a place in a table stands for."""
    return Cell(backend, "qwen3", Batch.LEFT if way.one_row else Batch.UNEVEN, keys, way, data)


def shown(cell: Cell) -> str:
    """What became of it, in a table."""
    result = run(cell)
    return RUNS if result.outcome is Outcome.EQUAL else limit(cell, result)


def row(*texts: str) -> str:
    escaped = (text.replace("|", r"\|") for text in texts)
    return f"| {' | '.join(escaped)} |"


def on_backends(way: Way, keys: Keys) -> str:
    """One text where all backends agree; else the first's, and the others that differ by name."""
    found = {backend: shown(cell_of(way, keys, backend=backend)) for backend in BACKENDS}
    first = found[BACKENDS[0]]
    return ", ".join([first, *(f"`{name}`: {text}" for name, text in found.items() if text != first)])


def row_of_caches(way: Way) -> str:
    return row(way.value, *(on_backends(way, keys) for keys in Keys))


def row_of_data(way: Way) -> str:
    return row(way.value, *(shown(cell_of(way, data=data)) for data in Data))


def row_of_data_in_caches(data: Data) -> str:
    return row(data.value, *(shown(cell_of(Way.GREEDY, keys, data)) for keys in Keys))


def table(corner: str, columns: Iterable[str], rows: Iterable[str]) -> list[str]:
    names = [corner, *columns]
    return [row(*names), row("---", *[":-:"] * (len(names) - 1)), *rows, ""]


def page(by_cache: Iterable[str], by_data: Iterable[str], in_caches: Iterable[str]) -> str:
    """The page around the rows of its three tables."""
    letters = [f"- **{letter}** {one.why}." for letter, one in LIMITS.items()]
    rules = (row(f"`{name}`", new.rule) for name, new in NEW_TOKENS.items())
    parts: list[Iterable[str]] = [
        [
            HEAD,
            "## Ways and caches\n",
            "With `sliding_window(4) & document(separator=5)`, and separators made likely.\n",
        ],
        table("", [keys.value for keys in Keys], by_cache),
        ["## Ways and masks\n", "With the cache that `generate()` makes by itself, on `sdpa`.\n"],
        table("", [f"({i})" for i, _ in enumerate(Data, 1)], by_data),
        [f"{i}. {data.value}" for i, data in enumerate(Data, 1)],
        ["\n## Masks and caches\n", "Greedy, on `sdpa`.\n"],
        table("", [keys.value for keys in Keys], in_caches),
        ["## Why not\n", *letters, "\n## Notes\n", NOTES],
        ["## Data for new tokens\n", "Data for the prompt is enough; each pattern says how it goes on.\n"],
        [row("pattern", "new tokens"), row("---", "---"), *rules, TAIL.rstrip()],
    ]
    return "\n".join(chain.from_iterable(parts)) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(map(row_of_caches, Way), map(row_of_data, Way), map(row_of_data_in_caches, Data)), "utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
