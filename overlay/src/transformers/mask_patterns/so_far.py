"""What forwards have said of every slot so far, one number a slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SoFar:
    """Tokens, or `position_ids`, of the slots of a cache, which grow by those of a forward at a time.

    Most steps of decoding do not look at them, so the forwards' parts are put together when somebody does.

    Args:
        parts: integers `(batch or 1, slots)` each, in order.
        rows: the most that a part has.
        slots: of all parts.
        joints: where forwards begin, as far as `goes_on` has not looked at them.
    """

    parts: list[Tensor]
    rows: int
    slots: int
    joints: list[int] = field(default_factory=list)

    @classmethod
    def joined(cls, before: SoFar | None, now: Tensor | None, past: int) -> SoFar | None:
        """With what a forward says behind `past` slots; None where some is unknown.

        Args:
            before: what earlier forwards said; what it has behind `past` slots was never cached.
        """
        if now is None or (past and (before is None or before.slots < past)):
            return None
        now = now.clone()  # what the caller later writes into it was not seen
        rows, slots = now.shape
        if before is None or past == 0:
            return cls([now], rows, slots)
        before = before if before.slots == past else before.cut(past)
        if rows != before.rows and 1 not in (rows, before.rows):
            return None
        before.parts.append(now)
        before.joints.append(past)
        before.rows, before.slots = max(rows, before.rows), past + slots
        return before

    def all(self) -> Tensor:
        """Those of all slots, `(batch or 1, slots)`."""
        if len(self.parts) > 1:
            self.parts = [torch.cat([part.expand(self.rows, -1) for part in self.parts], dim=1)]
        return self.parts[0]

    def goes_on(self) -> bool:
        """Whether every forward's first is one more than the last before it, or 0."""
        if self.joints:
            at, numbers = torch.tensor(self.joints, device=self.parts[0].device), self.all()
            first, last = numbers[:, at], numbers[:, at - 1]
            if bool(((first != last + 1) & (first != 0)).any()):
                return False
            self.joints = []
        return True

    def cut(self, slots: int) -> SoFar:
        """Those of the first slots."""
        first = self.all()[:, :slots]
        return SoFar([first], len(first), first.shape[1], [joint for joint in self.joints if joint < slots])

    def changed(self, change: Callable[[Tensor], Tensor]) -> SoFar:
        """With other rows."""
        rows = change(self.all())
        return SoFar([rows], len(rows), rows.shape[1], self.joints)
