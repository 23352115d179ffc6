"""What can be drawn can be shown in a terminal, in a notebook and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import Tensor


class Drawable:
    """A pattern, or patterns by layer: adds `show`, `save`, and what a notebook shows."""

    def show(self: Any, length: int, *, heads: int = 1, tokens: Sequence[str] | None = None, **inputs: Tensor) -> None:
        """Print the mask for `length` tokens: a row per query, a column per key.

        Arguments as for `Pattern.dense`, and `tokens`, one per position, to stand on the axes.
        """
        from .picture import picture

        print(picture(self, length, heads=heads, tokens=tokens, **inputs).text())

    def save(
        self: Any,
        path: str | PathLike[str],
        length: int,
        *,
        heads: int = 1,
        tokens: Sequence[str] | None = None,
        **inputs: Tensor,
    ) -> None:
        """Draw the mask for `length` tokens into a file, `.svg` or `.png` (which needs matplotlib).

        Arguments as for `show`. Masks of more than 64 tokens are drawn in tiles, shaded by the part that is visible.

        Raises:
            ValueError: another suffix, or the folder does not exist.
            ImportError: `.png` without matplotlib.
        """
        from .picture import picture

        picture(self, length, heads=heads, tokens=tokens, **inputs).save(path)

    def _repr_svg_(self: Any) -> str | None:
        """What a notebook shows; None, for the text form, where data is missing."""
        from .picture import picture, telling_length

        try:
            return picture(self, telling_length(self)).svg()
        except Exception:  # a notebook falls back to the text form, whatever a user's function raises
            return None
