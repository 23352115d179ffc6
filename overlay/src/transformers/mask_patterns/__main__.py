"""`python -m transformers.mask_patterns "sink(1) | sliding_window(2)" --length 8`: see a mask."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .draw.picture import Picture, picture, telling_length
from .errors import bad_argument
from .inputs import PER_ROW, PER_TOKEN
from .layers import Own, parse_masks


_TELL_LENGTH = {*PER_TOKEN, "input_ids", "position_ids"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the picture of a pattern, and write it to files; 2 where something in the arguments is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        shown = _picture(arguments)
        for path in filter(None, (arguments.svg, arguments.png)):
            shown.save(path)
    except (ValueError, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(shown.text())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m transformers.mask_patterns",
        description="Show which token sees which: queries down, keys to the right.",
        epilog="example: %(prog)s 'causal & document' --input document_ids=0,0,0,1,1",
    )
    parser.add_argument("pattern", help="such as 'sink(1) | sliding_window(2)', or by layers as JSON")
    parser.add_argument("--length", type=int, help="tokens (default: those of the data or of --tokens, or 16)")
    parser.add_argument("--heads", type=int, default=1, help="query heads (default: 1)")
    parser.add_argument(
        "--input",
        type=_input,
        action="append",
        default=[],
        metavar="NAME=1,2,3",
        help="data of the sample, rows of a batch separated by `/`; may be repeated",
    )
    parser.add_argument("--tokens", type=str.split, help="for the axes, separated by blanks")
    parser.add_argument("--svg", metavar="FILE", help="draw it into a file, too")
    parser.add_argument("--png", metavar="FILE", help="the same, by matplotlib")
    return parser


def _input(text: str) -> tuple[str, Tensor]:
    """Data as the patterns take it: `(batch,)` for numbers per row, `(batch, any)` for the others."""
    name, _, numbers = text.partition("=")
    try:
        rows = [[int(number) for number in row.split(",")] for row in numbers.split("/")]
        data = torch.tensor(rows)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME=1,2,3 or, for two rows, NAME=1,2,3/4,5,6"
        ) from error
    return name, data[:, 0] if name in PER_ROW and data.shape[1] == 1 else data


def _inputs(given: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    inputs = dict(given)
    if len(inputs) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        remedy = f"Rows of a batch go into one: {twice}=0,0,1/0,1,1."
        raise bad_argument("--input", f"{twice} more than once", "each name once", remedy)
    return inputs


def _picture(arguments: argparse.Namespace) -> Picture:
    masks, inputs, tokens = parse_masks(arguments.pattern), _inputs(arguments.input), arguments.tokens
    if isinstance(masks, Own):
        raise bad_argument("pattern", masks, "a pattern", "Upstream's own mask depends on the model.")
    of_data = [data.shape[1] for name, data in inputs.items() if name in _TELL_LENGTH]
    of_data += [len(tokens)] if tokens else []
    length = arguments.length
    if length is None:
        length = max(of_data) if of_data else telling_length(masks)
    return picture(masks, length, heads=arguments.heads, tokens=tokens, **inputs)


if __name__ == "__main__":
    sys.exit(main())
