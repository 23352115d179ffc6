"""Which model a base model stands in, and so whose `get_mask_pattern` speaks for it.

The mask is asked for in the base model, past whatever the model around it does, as trainers call it directly. torch
tells of every module that is put into another one, so a base model learns of its owner wherever that happens: in a
constructor, or in `model.model = other`. Both are told: what is pickled or copied with its owner is linked again by a
`_Seat` in the owner, and a base model saved alone leaves its owner out.
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
_SEAT = "_mask_seat"


class _Link:
    """From a base model to the models that it was put into: weak, as they hold the base model.

    Args:
        owners: weak references, the last one last; empty for a base model that was saved without its owner.
        speaker: the class of the owner whose method spoke for the base model when that was last seen, or None.
    """

    def __init__(self, owners: tuple[ref[Any], ...], speaker: str | None) -> None:
        self._owners = owners
        self._speaker = speaker

    def __deepcopy__(self, memo: dict[int, Any]) -> _Link:
        return self  # where the owner is copied too, its seat links the two copies

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        alive = self._owners[-1]() if self._owners else None
        speaker = self._speaker if alive is None else _speaker(alive)
        return (type(None), ()) if speaker is None else (_Link, ((), speaker))

    def followed_by(self, owner: Any) -> _Link:
        """The link of a base model that was put into one model more."""
        others = tuple(known for known in self._owners if known() is not None and known() is not owner)
        return _Link((*others, ref(owner)), _class_speaker(owner))

    def owner(self, base: Any) -> Any:
        """The model around `base` that speaks for it; None if that is gone and said nothing."""
        alive = [owner for owner in (known() for known in self._owners) if owner is not None]
        holders = [owner for owner in alive if _holds(owner, base)] if len(self._owners) > 1 else []
        if len(holders) > 1:
            _check_one_voice(holders)
        owner = holders[-1] if holders else self._owners[-1]() if self._owners else None
        if owner is None:
            self._check_said_nothing()
        elif self._speaker != (speaker := _speaker(owner)):
            self._speaker = speaker
        return owner

    def _check_said_nothing(self) -> None:
        if self._speaker is not None:
            raise UnsupportedMaskError(
                f"`mask_pattern`: got nothing, and the {self._speaker} around this model, whose {_METHOD} says it, is "
                "gone. Keep a reference to it as long as this one is used, save the two together, or pass "
                "mask_pattern=... ('native' for upstream's own mask)."
            )


class _Seat:
    """In an owner, what links it to its base model again where the two were copied or unpickled together."""

    def __init__(self, owner: Any, base: Any) -> None:
        self._owner, self._base = ref(owner), ref(base)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        owner, base = self._owner(), self._base()
        if owner is None or base is None or not _holds(owner, base):
            return type(None), ()
        return _seat, (owner, base)


def spokesman(base: Any) -> Callable[..., Any] | None:
    """The `get_mask_pattern` that speaks for a base model: its owner's, else its own, as they are now.

    Raises:
        UnsupportedMaskError: its owner had one, and is gone; or it has several owners, and one of them has one.
    """
    found = getattr(_owner(base), _METHOD, None)
    return getattr(base, _METHOD, None) if found is None else found


def configured(base: Any) -> Any:
    """The pattern in the configuration that a base model reads.

    Raises:
        UnsupportedMaskError: its owner has been given another configuration, which says another one.
    """
    said, owner = getattr(base.config, "mask_pattern", None), _owner(base)
    given = getattr(owner, "config", base.config)
    if given is not base.config and (other := _text_pattern(given)) != said:
        name = type(owner).__name__
        raise UnsupportedMaskError(
            f"`config.mask_pattern`: the {name}'s config says {other!r}, and that of its {owner.base_model_prefix}, "
            f"another object, says {said!r}. Set the pattern in both, let the two share one config, or pass "
            "mask_pattern=..."
        )
    return said


def _text_pattern(config: Any) -> Any:
    return getattr(config.get_text_config(), "mask_pattern", None)


def _owner(base: Any) -> Any:
    link = base.__dict__.get(_LINK)
    return None if link is None else link.owner(base)


def _holds(owner: Any, base: Any) -> bool:
    """Whether the base model is still in there, within what adapters put around it too."""
    return any(part is base for part in owner.modules())


def _check_one_voice(holders: list[Any]) -> None:
    """Refuse to guess which of several models is running, where it matters."""
    if any(hasattr(owner, _METHOD) for owner in holders):
        names = " and a ".join(type(owner).__name__ for owner in holders)
        raise UnsupportedMaskError(
            f"`mask_pattern`: got nothing, and a {names} share this base model, of which one at least has a "
            f"{_METHOD}: which of them is running is not known. Give each a base model of its own "
            "(copy.deepcopy), drop the others, or pass mask_pattern=... ('native' for upstream's own mask)."
        )


def _speaker(owner: Any) -> str | None:
    return type(owner).__name__ if hasattr(owner, _METHOD) else None


def _class_speaker(owner: Any) -> str | None:
    """The same of an owner that is under construction."""
    return type(owner).__name__ if hasattr(type(owner), _METHOD) else None


def _seat(owner: Any, base: Any) -> _Seat:
    """Link the two; both may be half unpickled."""
    link = base.__dict__.get(_LINK) or _Link((), None)
    object.__setattr__(base, _LINK, link.followed_by(owner))
    return _Seat(owner, base)


def _link(owner: Any, name: str, module: Any) -> None:
    if name == getattr(type(owner), "base_model_prefix", None) and takes_masks(type(module)):
        object.__setattr__(owner, _SEAT, _seat(owner, module))


register_module_module_registration_hook(_link)
