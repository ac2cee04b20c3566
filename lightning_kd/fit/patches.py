"""What this package puts on other people's objects during a fit: one list, taken back in every way a fit can end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet


class Handle(Protocol):
    """What torch returns for a hook."""

    def remove(self) -> None:
        """Take the hook off."""


@dataclass(slots=True)
class _Replaced:
    """An attribute that was replaced: what it is now, and what it was before."""

    owner: Any
    name: str
    value: Any
    was_there: bool
    before: Any


class Patches:
    """Methods that were replaced on instances, and hooks, so that :meth:`undo_all` leaves the objects as they were.

    Several may replace one method, each in its turn. They may be taken back in any order.

    Example:
        >>> class Theirs:
        ...     def step(self):
        ...         return 1
        >>> theirs, patches = Theirs(), Patches()
        >>> patches.replace(theirs, "step", lambda: 2)
        >>> theirs.step()
        2
        >>> patches.undo_all()
        >>> theirs.step(), vars(theirs)
        (1, {})
    """

    def __init__(self) -> None:
        self._replaced: list[_Replaced] = []
        self._handles: list[Handle] = []
        _ALL.add(self)

    def __reduce__(self) -> tuple[type["Patches"], tuple[()]]:
        # a copy of a module, or one that was pickled, has put nothing on anything
        return Patches, ()

    def replace(self, owner: object, name: str, value: Any) -> None:
        """Give an object an attribute of this fit, in place of its class's or one that somebody else gave it."""
        attributes = vars(owner)
        self._replaced.append(_Replaced(owner, name, value, name in attributes, attributes.get(name)))
        attributes[name] = value

    def put_back(self, owner: object, name: str) -> None:
        """Take back the last replacement of an attribute."""
        for i in reversed(range(len(self._replaced))):
            if self._replaced[i].owner is owner and self._replaced[i].name == name:
                _take_back(self._replaced.pop(i))
                return

    def after(self, owner: object, name: str, then: Callable[[], object]) -> None:
        """Do something once, after the next call of a method."""
        method = getattr(owner, name)

        # Lightning 2.6 looks through functools.wraps for an override of configure_model, so this one is not wrapped
        def method_then(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            self.put_back(owner, name)
            then()
            return result

        self.replace(owner, name, method_then)

    def once(self, owner: object, name: str, value: Callable[..., Any]) -> None:
        """Replace a method for its next call alone."""

        def method_once(*args: Any, **kwargs: Any) -> Any:
            self.put_back(owner, name)
            return value(*args, **kwargs)

        self.replace(owner, name, method_once)

    def add(self, *handles: Handle) -> None:
        """Remember hooks to take off."""
        self._handles += handles

    def takes_over(self, one: _Replaced) -> bool:
        """Give back in time what was there before a replacement, if one of these has replaced it in its turn."""
        for later in self._replaced:
            if later.owner is one.owner and later.name == one.name and later.before is one.value:
                later.was_there, later.before = one.was_there, one.before
                return True
        return False

    def undo_all(self) -> None:
        """Leave every object as it was."""
        while self._replaced:
            _take_back(self._replaced.pop())
        while self._handles:
            self._handles.pop().remove()


_ALL: WeakSet[Patches] = WeakSet()


def _take_back(one: _Replaced) -> None:
    """Give an attribute its value of before, or if it was replaced again, let the later one give it that value."""
    if vars(one.owner).get(one.name) is not one.value and any(patches.takes_over(one) for patches in _ALL):
        return
    if one.was_there:
        vars(one.owner)[one.name] = one.before
    else:
        vars(one.owner).pop(one.name, None)
