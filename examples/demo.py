"""The main job, end to end: a Qwen model under four masks.

Shows each mask, what it does to held-out perplexity and to a generated continuation, whether decoding with a cache
agrees with decoding without, and whether the mask is autoregressive.

    make demo [MODEL=<hub id or path>]
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.mask_patterns import Causal, Pattern, PrefixLM, Sink, SlidingWindow
from transformers.mask_patterns.checks import first_future_key
from transformers.mask_patterns.draw.picture import picture
from transformers.mask_patterns.draw.terminal import cells


TINY = Path(__file__).parent / "tiny_qwen3"
CONTEXT, SCORED_FROM, PROMPT, NEW_TOKENS = 384, 128, 48, 48
TOLERANCE = 1e-3  # cached and uncached float32 logits sum in another order

# Each mask beside a smaller one of its kind, whose shape shows in 8 tokens.
MASKS: tuple[tuple[Pattern, Pattern], ...] = (
    (Causal(), Causal()),
    (Sink(4) | SlidingWindow(8), Sink(1) | SlidingWindow(3)),
    (SlidingWindow(8), SlidingWindow(3)),
    (PrefixLM(PROMPT), PrefixLM(3)),
)


@dataclass(frozen=True)
class Result:
    """What one mask did."""

    pattern: Pattern
    small: Pattern
    perplexity: float
    continuation: str
    cache_error: float
    future: tuple[int, int] | None


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 1 if decoding with and without a cache differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(TINY / "model"), help="hub id or path of a Qwen2 or Qwen3 model")
    parser.add_argument("--svg", help="write the output as a picture too, as in the README")
    arguments = parser.parse_args(argv)
    path, console = arguments.model, Console(record=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids
    shown = os.path.relpath(path) if os.path.exists(path) else path
    console.print(f"[bold]{shown}[/]: {sum(p.numel() for p in model.parameters()):,} parameters")
    results = [look(model, tokenizer, ids, *mask) for mask in track(MASKS, "masks", console=console)]
    report(console, results, tokenizer.decode(ids[0, :PROMPT]))
    if arguments.svg:
        no_web_fonts = re.sub(r"@font-face {{.*?}}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        console.save_svg(arguments.svg, title="make demo", code_format=no_web_fonts)
    return 0 if all(result.cache_error < TOLERANCE for result in results) else 1


def look(model: Any, tokenizer: Any, ids: Tensor, pattern: Pattern, small: Pattern) -> Result:
    """Measure one mask."""
    prompt = ids[:, :PROMPT]
    tokens, error = generate(model, prompt, pattern)
    return Result(
        pattern,
        small,
        perplexity(model, ids, pattern),
        tokenizer.decode(tokens[PROMPT:]),
        error,
        first_future_key(pattern, CONTEXT),
    )


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, pattern: Pattern) -> float:
    """Perplexity of held-out windows, from their 128th token on: no mask here shows a scored token its own label."""
    windows = ids[0, : len(ids[0]) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:16]
    losses = [
        torch.nn.functional.cross_entropy(
            model(window[None], mask_pattern=pattern).logits[0, SCORED_FROM - 1 : -1], window[SCORED_FROM:]
        )
        for window in windows
    ]
    return math.exp(torch.stack(losses).mean())


@torch.no_grad()
def generate(model: Any, prompt: Tensor, pattern: Pattern) -> tuple[Tensor, float]:
    """Greedy tokens, and by how much their logits differ from those of one forward without a cache."""
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        mask_pattern=pattern,
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    whole = model(out.sequences[:, :-1], mask_pattern=pattern, use_cache=False).logits[:, PROMPT - 1 :]
    return out.sequences[0], float((torch.stack(out.logits, dim=1) - whole).abs().max())


def report(console: Console, results: list[Result], prompt: str) -> None:
    """Print a column per mask, then the continuations."""
    table = Table(*(str(result.pattern) for result in results))
    table.add_row(*map(shape, results), end_section=True)
    table.add_row(*(f"perplexity {result.perplexity:.2f}" for result in results), end_section=True)
    table.add_row(*map(cache_verdict, results), end_section=True)
    table.add_row(*map(future_verdict, results))
    console.print(table)
    console.print(f"[bold]A held-out text begins[/] {prompt!r}, and goes on greedily under", highlight=False)
    for result in results:
        console.print(f"[bold]{result.pattern}[/]: {result.continuation!r}", highlight=False)


def shape(result: Result) -> str:
    """The mask's shape on 8 tokens."""
    drawn = "\n".join(cells(picture(result.small, 8).panels[0].tiles))
    return drawn if result.small == result.pattern else f"{drawn}\nlike\n{result.small}"


def cache_verdict(result: Result) -> str:
    """Whether decoding with a cache gives the logits of one whole forward."""
    agree = "[green]cached decoding agrees[/]" if result.cache_error < TOLERANCE else "[red]cached decoding DIFFERS[/]"
    return f"{agree} to {result.cache_error:.0e}"


def future_verdict(result: Result) -> str:
    """Whether the mask is autoregressive, or else the first query and key that show it is not."""
    return "autoregressive" if result.future is None else "not autoregressive: {} sees {}".format(*result.future)


if __name__ == "__main__":
    sys.exit(main())
