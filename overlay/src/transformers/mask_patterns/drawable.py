"""What can be drawn can be shown in a terminal, in a notebook and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import Tensor

    from .draw.picture import Picture


class Drawable:
    """A pattern, or patterns by layer: adds `picture`, `show`, `save`, and what a notebook shows."""

    def picture(
        self: Any, length: int, *, heads: int = 1, tokens: Sequence[str] | None = None, **inputs: Tensor
    ) -> Picture:
        """The mask for `length` tokens as a picture: a row per query, a column per key.

        Masks of more than 64 tokens are drawn in tiles, shaded by the part that is visible.

        Args:
            length: tokens per row, none of them padding.
            heads: query heads, as for `Pattern.dense`.
            tokens: one per position, to stand on the axes.
            inputs: as for `Pattern.dense`.

        Raises:
            ValueError: data is missing or wrong, `tokens` are not `length` strings, or the mask is too long for one
                that has no form as key ranges.
        """
        from .draw.picture import picture

        return picture(self, length, heads=heads, tokens=tokens, **inputs)

    def show(self, length: int, *, heads: int = 1, tokens: Sequence[str] | None = None, **inputs: Tensor) -> None:
        """Print the mask for `length` tokens. Arguments as for `picture`."""
        print(self.picture(length, heads=heads, tokens=tokens, **inputs).text())

    def save(
        self,
        path: str | PathLike[str],
        length: int,
        *,
        heads: int = 1,
        tokens: Sequence[str] | None = None,
        **inputs: Tensor,
    ) -> None:
        """Draw the mask for `length` tokens into a file, `.svg` or `.png` (which needs matplotlib).

        Arguments as for `picture`.

        Raises:
            ValueError: another suffix, or the folder does not exist.
            ImportError: `.png` without matplotlib.
        """
        self.picture(length, heads=heads, tokens=tokens, **inputs).save(path)

    def _repr_svg_(self: Any) -> str | None:
        """What a notebook shows; None, for the text form, where data is missing."""
        try:
            from .draw.picture import telling_length

            picture: Picture = self.picture(telling_length(self))
            return picture.svg()
        except Exception:  # a notebook falls back to the text form, whatever a user's function raises
            return None
