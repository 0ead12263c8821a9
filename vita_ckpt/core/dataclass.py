"""Make frozen dataclasses with slots as the standard library does, in a fifth of its time.

A command makes seventy of them before it begins. For each the standard library writes and compiles
a handful of methods; here that is ``__init__`` alone, once it is asked for, and the others are
written once for all.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - to be imported from here
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, repr=True, eq=True):
        """Make a class a dataclass; the options are the standard library's."""

        def made(cls):
            if frozen and slots:
                return _frozen(cls, repr=repr, eq=eq)
            return dataclasses.dataclass(frozen=frozen, slots=slots, repr=repr, eq=eq)(cls)

        return made if cls is None else made(cls)


class _Default:
    """Stands in a signature for what a factory makes."""

    def __repr__(self) -> str:
        return "<factory>"


_DEFAULT: Final = _Default()


def _frozen(cls: type, *, repr: bool, eq: bool) -> type:
    cls.__doc__ = cls.__doc__ or cls.__name__  # else the signature is taken, which is slow
    dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    fields = dataclasses.fields(cls)
    shared: dict[str, Any] = {
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__reduce__": _reduce,
    }
    if repr:
        shared["__repr__"] = _repr
    if eq:
        compared = [field.name for field in fields if field.compare]
        shared |= {"__eq__": _eq, "__hash__": _hash}
        shared["_compared"] = attrgetter(*compared) if compared else _nothing
    own = {name for base in cls.__mro__[1:] for name in vars(base).get("__slots__", ())}
    names = [field.name for field in fields]
    body = shared | {
        name: value
        for name, value in vars(cls).items()
        if name not in {*names, "__dict__", "__weakref__"}
    }
    body["__slots__"] = tuple(name for name in names if name not in own)
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    made.__init__ = _Init(made, fields)  # type: ignore[misc] # mypy sees a method of all types
    return made


class _Init:
    """Compiles ``__init__`` when it is first looked up: of many classes a run makes no object."""

    def __init__(self, cls: type, fields: tuple[dataclasses.Field[Any], ...]) -> None:
        self._cls = cls
        self._fields = fields

    def __get__(self, instance: object, owner: type) -> Any:
        made = _init(self._cls, self._fields)
        self._cls.__init__ = made  # type: ignore[misc]
        return made.__get__(instance, owner)


def _init(cls: type, fields: tuple[dataclasses.Field[Any], ...]) -> Any:
    """Write and compile ``__init__``, the method that each class needs its own of.

    It fills the slots by their descriptors, which is the fastest way around ``__setattr__``.
    """
    scope: dict[str, Any] = {"_default": _DEFAULT}
    parameters, lines = ["self"], []
    for field in fields:
        name, default = field.name, f"_default_{field.name}"
        value = name
        if field.default is not dataclasses.MISSING:
            scope[default] = field.default
            parameters.append(f"{name}={default}")
        elif field.default_factory is not dataclasses.MISSING:
            scope[default] = field.default_factory
            parameters.append(f"{name}=_default")
            value = f"{default}() if {name} is _default else {name}"
        else:
            parameters.append(name)
        scope[f"_set_{name}"] = getattr(cls, name).__set__
        lines.append(f"_set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    source = f"def __init__({', '.join(parameters)}): {'; '.join(lines) or 'pass'}"
    exec(source, scope)  # noqa: S102 - of names of fields
    made = scope["__init__"]
    made.__annotations__ = {field.name: field.type for field in fields} | {"return": None}
    made.__module__, made.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    return made


def _refuse(self: object, name: str, _value: object = None) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _reduce(self: Any) -> tuple[type, tuple[Any, ...]]:
    return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def _repr(self: Any) -> str:
    shown = (field.name for field in dataclasses.fields(self) if field.repr)
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
    return f"{type(self).__qualname__}({values})"


def _eq(self: Any, other: Any) -> Any:
    if type(self) is not type(other):
        return NotImplemented
    return self._compared(self) == self._compared(other)


def _hash(self: Any) -> int:
    return hash(self._compared(self))


def _nothing(_self: object) -> tuple[()]:
    return ()
