"""The one error a user is meant to see."""

from __future__ import annotations


class ForkError(Exception):
    """What came, what was expected, and the command to run next."""

    def __init__(self, message: str, next: str) -> None:
        super().__init__(message)
        self.message = message
        self.next = next

    def __str__(self) -> str:
        return f"error: {self.message}\nnext:  {self.next}"
