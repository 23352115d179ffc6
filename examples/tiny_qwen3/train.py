"""Train the small Qwen3 checkpoint in `model/`, from nothing, in about eight minutes on two idle CPU cores.

    python examples/tiny_qwen3/train.py

The text is the prose of transformers' own docstrings (Apache-2.0; see `corpus.py`). Everything follows from
it and from a fixed seed: one machine repeats its losses exactly, another comes close, as float sums differ.
The model sees windows of contiguous text under plain causal attention, documents parted by `<|endoftext|>`,
so it learns to use all of its context, and hiding a part of it shows in the perplexity.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import set_seed  # type: ignore[import-untyped]
from corpus import Corpus, read_corpus
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm  # type: ignore[import-untyped]

from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)


HERE = Path(__file__).resolve().parent
REPORT_EVERY = 200


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, the text aside."""

    vocabulary: int = 1536
    context: int = 512
    batch: int = 4
    steps: int = 2600
    warmup: int = 100
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 0
    threads: int = 2  # their number decides the order of float sums, and so the last bits of the losses


RECIPE = Recipe()


def main(argv: Sequence[str] | None = None, recipe: Recipe = RECIPE) -> None:
    """Read the text, train tokenizer and model on it, and replace the checkpoint when all is done."""
    arguments = _arguments(argv)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    set_seed(recipe.seed)
    corpus = read_corpus(arguments.checkout)
    (arguments.out / "model").mkdir(parents=True, exist_ok=True)  # rather fail now than after the training
    tokenizer = train_tokenizer(corpus, recipe)
    stream, held_out = token_stream(tokenizer, corpus.documents), token_stream(tokenizer, [corpus.held_out])
    print(f"text: sha256 {corpus.digest[:16]}, {len(stream):,} tokens, held out {len(held_out):,}")

    model = Qwen3ForCausalLM(model_config(tokenizer, recipe))
    train(model, stream, held_out, recipe)
    loss = evaluate(model.bfloat16().float(), held_out, recipe.context)  # the weights as they are saved
    print(f"saved weights: held-out loss {loss:.4f}, perplexity {math.exp(loss):.2f}")
    save(model.bfloat16(), tokenizer, corpus, arguments.out)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the small Qwen3 checkpoint.")
    checkout = HERE.parent.parent / "transformers"
    parser.add_argument("--checkout", type=Path, default=checkout, help="transformers' source (%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of model/ and heldout.txt (%(default)s)")
    return parser.parse_args(argv)


def train_tokenizer(corpus: Corpus, recipe: Recipe) -> PreTrainedTokenizerBase:
    """A byte-level BPE with Qwen's own text splitting and special tokens, and its own merges."""
    return Qwen2Tokenizer().train_new_from_iterator(corpus.documents, recipe.vocabulary)


def token_stream(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> torch.Tensor:
    """All documents in a row, an end-of-text token after each."""
    ids = tokenizer(list(documents))["input_ids"]
    return torch.tensor([token for document in ids for token in (*document, tokenizer.eos_token_id)])


def model_config(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Qwen3Config:
    """Qwen3's architecture, made small: about 0.98 million parameters."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(model: Qwen3ForCausalLM, stream: torch.Tensor, held_out: torch.Tensor, recipe: Recipe) -> None:
    """Next-token prediction on windows that start anywhere in the stream."""
    accelerator = Accelerator(cpu=True)
    windows = stream.unfold(0, recipe.context, 1)
    sampler = RandomSampler(windows, num_samples=recipe.steps * recipe.batch, replacement=True)
    # A tensor serves as a dataset: its rows are the examples.
    batches: DataLoader[torch.Tensor] = DataLoader(windows, recipe.batch, sampler=sampler)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)
    model.train()
    losses: list[float] = []
    progress = tqdm(batches, desc="train")
    for step, batch in enumerate(progress, start=1):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % REPORT_EVERY == 0:
            trained, held = math.fsum(losses) / len(losses), evaluate(model, held_out, recipe.context)
            progress.write(f"step {step}: training loss {trained:.4f}, held-out loss {held:.4f}")
            losses.clear()


@torch.inference_mode()
def evaluate(model: Qwen3ForCausalLM, ids: torch.Tensor, context: int) -> float:
    """Mean loss per token over consecutive windows, each of which starts with no context."""
    windows = ids[: len(ids) // context * context].view(-1, context)
    return float(model(input_ids=windows, labels=windows, use_cache=False).loss)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, out: Path) -> None:
    """Write beside the old checkpoint, then move file by file: Ctrl-C or a full disk leaves no torn file."""
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    with tempfile.TemporaryDirectory(dir=out, prefix=".train-") as temporary:
        model.save_pretrained(Path(temporary, "model"))
        tokenizer.save_pretrained(Path(temporary, "model"))
        Path(temporary, "heldout.txt").write_text(corpus.held_out, encoding="utf-8")
        for file in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
            target = out / file.relative_to(temporary)
            os.replace(file, target)
            print(f"wrote {target} ({target.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
