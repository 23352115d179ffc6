"""Which model a base model stands in, and so whose `get_mask_pattern` speaks for it.

The mask is asked for in the base model, past whatever the model around it does, as trainers call it directly. torch
tells of every module that is put into another one, so a base model learns of its owner wherever that happens: in a
constructor, or in `model.model = other`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch.nn.modules.module import register_module_module_registration_hook

from .errors import UnsupportedMaskError
from .takers import takes_masks


_METHOD = "get_mask_pattern"
_LINK = "_mask_owner"


class _Link:
    """From a base model to its owner: weak, as the owner holds the base model, and copied and pickled with the two."""

    def __init__(self, owner: Any) -> None:
        self._owner = ref(owner)
        self._gone = f"the {type(owner).__name__} around this model" if hasattr(type(owner), _METHOD) else None

    def owner(self) -> Any:
        owner = self._owner()
        if owner is None and self._gone is not None:
            raise UnsupportedMaskError(
                f"`mask_pattern`: got nothing, and {self._gone}, whose {_METHOD} says it, is gone. Keep a reference "
                "to it as long as this one is used, or pass mask_pattern=... ('native' for upstream's own mask)."
            )
        return owner

    def __deepcopy__(self, memo: dict[int, Any]) -> _Link | None:
        owner = self._owner()
        return None if owner is None else _Link(memo.get(id(owner), owner))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        owner = self._owner()
        if hasattr(owner, _METHOD):
            return _Link, (owner,)
        return type(None), ()  # a base model saved alone leaves its owner, which has nothing to say, out


def spokesman(base: Any) -> Callable[..., Any] | None:
    """The `get_mask_pattern` that speaks for a base model: its owner's, else its own, as they are now.

    Raises:
        UnsupportedMaskError: its owner had one, and is gone.
    """
    link = base.__dict__.get(_LINK)
    owner = None if link is None else link.owner()
    found = getattr(owner, _METHOD, None)
    return getattr(base, _METHOD, None) if found is None else found


def _link(owner: Any, name: str, module: Any) -> None:
    if name == getattr(type(owner), "base_model_prefix", None) and takes_masks(type(module)):
        object.__setattr__(module, _LINK, _Link(owner))


register_module_module_registration_hook(_link)
