"""Dataclasses of the package's own making are those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from vita_ckpt.core.dataclass import dataclass

Decorator = Callable[..., Any]


def classes(dataclass: Decorator) -> tuple[type[Any], type[Any], type[Any]]:
    @dataclass(frozen=True, slots=True)
    class Plain:
        a: int
        b: tuple[int, ...] = (1, 2)
        c: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

        @property
        def twice(self) -> int:
            return 2 * self.a

    @dataclass(frozen=True, slots=True, repr=False)
    class Inherits(Plain):
        """Has one more."""

        d: str = ""

        def __post_init__(self) -> None:
            if self.d == "wrong":
                raise ValueError(self.d)

        def __repr__(self) -> str:
            return "shown otherwise"

    @dataclass(frozen=True, slots=True, eq=False)
    class Empty:
        pass

    return Plain, Inherits, Empty


OURS, THEIRS = classes(dataclass), classes(dataclasses.dataclass)


@pytest.mark.parametrize("number", range(3))
def test_a_class_is_what_the_standard_library_makes(number: int) -> None:
    ours, theirs = OURS[number], THEIRS[number]
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs))
    assert ours.__match_args__ == theirs.__match_args__
    assert ours.__slots__ == theirs.__slots__
    assert ours.__qualname__ == theirs.__qualname__
    assert [f.name for f in dataclasses.fields(ours)] == [
        f.name for f in dataclasses.fields(theirs)
    ]
    values = (1,) if number < 2 else ()
    assert repr(ours(*values)).partition(" at ")[0] == repr(theirs(*values)).partition(" at ")[0]
    assert not hasattr(ours(*values), "__dict__")


@pytest.mark.parametrize(("plain", "inherits", "empty"), [OURS, THEIRS])
def test_values(plain: Any, inherits: Any, empty: Any) -> None:
    assert plain(1) == plain(1, c={"x": 1}) != plain(2)
    assert hash(plain(1)) == hash(plain(1, c={"x": 1}))
    assert plain(1) != inherits(1) == inherits(1)
    assert plain(1).c is not plain(1).c
    assert plain(2).twice == inherits(2).twice == 4
    assert dataclasses.replace(inherits(1), d="other") == inherits(1, d="other")
    assert dataclasses.asdict(plain(1)) == {"a": 1, "b": (1, 2), "c": {}}
    assert copy.deepcopy(plain(1, c={"x": 1})).c == {"x": 1}
    assert empty() != empty()
    with pytest.raises(ValueError, match="wrong"):
        inherits(1, d="wrong")
    with pytest.raises(TypeError, match=r"Plain\.__init__\(\) missing 1"):
        plain()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain(1).a = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del plain(1).a
    match inherits(1, d="two"):
        case inherits(a, _, _, d):
            assert (a, d) == (1, "two")


@dataclass(frozen=True, slots=True)
class Pickled:
    a: int
    b: tuple[int, ...] = ()


def test_values_are_pickled() -> None:
    assert pickle.loads(pickle.dumps(Pickled(1, (2,)))) == Pickled(1, (2,))
