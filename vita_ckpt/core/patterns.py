"""Match an untrusted regular expression in bounded time: positions are sets, nothing backtracks.

A run's ``target_modules`` may be a pattern, and those of its ranks are. Python's ``re`` can take
exponential time on some, so these are parsed here and matched by the set of positions that each
construct reaches. What matches is what ``re`` matches; what is not in the subset below is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vita_ckpt.core.dataclass import dataclass

LONGEST: Final = 4096
_DEEPEST: Final = 16
_MOST_REPEATS: Final = 1000
# Positions looked at while one text is matched; a pattern of peft's kind needs a few thousand.
_MOST_STEPS: Final = 200_000

_Test = Callable[[str], bool]


class PatternError(ValueError):
    """A pattern that is not understood, or that takes too long."""


@dataclass(frozen=True, slots=True)
class _Character:
    test: _Test


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    body: _Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Look:
    """A lookahead, or an anchor: a condition on a position."""

    body: _Node | None  # None for an anchor
    is_wanted: bool = True
    anchor: str = ""


_Node = _Character | _Sequence | _Choice | _Repeat | _Look


class Pattern:
    """A pattern that was understood."""

    def __init__(self, text: str) -> None:
        """Parse ``text``. Raises PatternError for what is no pattern, or none of the subset."""
        if len(text) > LONGEST:
            raise PatternError(f"a pattern of {len(text)} characters")
        self._root = _Parser(text).parse()

    def fullmatch(self, text: str) -> bool:
        """Return whether all of ``text`` matches. Raises PatternError if it takes too long."""
        return len(text) in _Matcher(text).ends(self._root, frozenset((0,)))

    def match(self, text: str) -> bool:
        """Return whether a beginning of ``text`` matches. Raises PatternError as well."""
        return bool(_Matcher(text).ends(self._root, frozenset((0,))))


class _Matcher:
    def __init__(self, text: str) -> None:
        self._text = text
        self._steps = 0

    def ends(self, node: _Node, starts: frozenset[int]) -> frozenset[int]:
        """Return every position at which ``node`` can end if it begins at one of ``starts``."""
        self._steps += 1 + len(starts)
        if self._steps > _MOST_STEPS:
            raise PatternError("a pattern that takes too long")
        if isinstance(node, _Character):
            text = self._text
            return frozenset(at + 1 for at in starts if at < len(text) and node.test(text[at]))
        if isinstance(node, _Sequence):
            for part in node.parts:
                if not starts:
                    break
                starts = self.ends(part, starts)
            return starts
        if isinstance(node, _Choice):
            return frozenset().union(*(self.ends(option, starts) for option in node.options))
        if isinstance(node, _Repeat):
            return self._repeated(node, starts)
        return frozenset(at for at in starts if self._holds(node, at))

    def _repeated(self, node: _Repeat, starts: frozenset[int]) -> frozenset[int]:
        for _ in range(node.least):
            starts = self.ends(node.body, starts)
        reached = new = starts
        count = node.least
        while new and (node.most is None or count < node.most):
            new = self.ends(node.body, new) - reached
            reached |= new
            count += 1
        return reached

    def _holds(self, look: _Look, at: int) -> bool:
        text = self._text
        if look.body is not None:
            return bool(self.ends(look.body, frozenset((at,)))) == look.is_wanted
        if look.anchor in ("^", r"\A"):
            return at == 0
        if look.anchor == "$":
            return at == len(text) or (at == len(text) - 1 and text[at] == "\n")
        if look.anchor == r"\Z":
            return at == len(text)
        before = at > 0 and _is_word(text[at - 1])
        after = at < len(text) and _is_word(text[at])
        return (before != after) == (look.anchor == r"\b")


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _opposite(test: _Test) -> _Test:
    return lambda character: not test(character)


_CLASSES: Final[dict[str, _Test]] = {
    "d": str.isdecimal,
    "w": _is_word,
    "s": str.isspace,
    "D": _opposite(str.isdecimal),
    "W": _opposite(_is_word),
    "S": _opposite(str.isspace),
}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> _Node:
        node = self._choice(0)
        if self._at < len(self._text):
            raise self._error("an unbalanced parenthesis")
        return node

    def _choice(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise self._error(f"groups nested more than {_DEEPEST} deep")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._quantified(self._atom(depth)))
        return _Sequence(tuple(parts))

    def _quantified(self, node: _Node) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return node
        if isinstance(node, _Look):
            raise self._error("a repeated assertion")
        if self._take("+"):
            raise self._error("a possessive quantifier")
        self._take("?")  # a lazy one matches the same texts
        if self._text.startswith(("*", "+", "?"), self._at) or self._bounds() is not None:
            raise self._error("a multiple repeat")
        return _Repeat(node, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for mark, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(mark):
                return bounds
        if not self._text.startswith("{", self._at):
            return None
        inside, closed, _ = self._text[self._at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        digits = all(not side or (side.isascii() and side.isdigit()) for side in (low, high))
        if not closed or not digits or not (low or comma):
            return None  # then { stands for itself
        if any(len(side) > 4 or int(side or 0) > _MOST_REPEATS for side in (low, high)):
            raise self._error(f"more than {_MOST_REPEATS} repetitions")
        self._at += len(inside) + 2
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise self._error("a repeat whose bounds are the wrong way round")
        return least, most

    def _atom(self, depth: int) -> _Node:
        character = self._next()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return _Character(self._set())
        if character in "^$":
            return _Look(None, anchor=character)
        if character == "\\" and self._text.startswith(("A", "Z", "b", "B"), self._at):
            return _Look(None, anchor=f"\\{self._next()}")
        return _Character(self._single(character))

    def _single(self, character: str) -> _Test:
        """Return the test of one character outside a set."""
        self._at -= 1
        if self._bounds() is not None:
            raise self._error("nothing to repeat")
        self._at += 1
        if character == ".":
            return "\n".__ne__
        return self._escaped(self._next()) if character == "\\" else character.__eq__

    def _group(self, depth: int) -> _Node:
        look: bool | None = None
        if self._take("?"):
            if self._take("P<"):
                name, closed, _ = self._text[self._at :].partition(">")
                if not closed or not name.isidentifier():
                    raise self._error("a group without a name")
                self._at += len(name) + 1
            elif self._take("="):
                look = True
            elif self._take("!"):
                look = False
            elif not self._take(":"):
                raise self._error("a group of another kind than (?:, (?P<, (?= or (?!")
        node = self._choice(depth + 1)
        if not self._take(")"):
            raise self._error("an unbalanced parenthesis")
        return node if look is None else _Look(node, look)

    def _set(self) -> _Test:
        is_inverted = self._take("^")
        tests: list[_Test] = []
        while not (tests and self._take("]")):
            first = self._next()
            low = self._escaped(self._next(), in_set=True) if first == "\\" else first.__eq__
            start = self._text[self._at - 1]
            is_range = self._text.startswith("-", self._at) and not self._text.startswith(
                "-]", self._at
            )
            if not is_range:
                tests.append(low)
                continue
            self._at += 1
            end = self._next()
            if end == "\\" or first == "\\":
                raise self._error("a range from or to an escaped character")
            if end < start:
                raise self._error("a range that is the wrong way round")
            tests.append(lambda c, start=start, end=end: start <= c <= end)  # type: ignore[misc]
        found = tuple(tests)
        return lambda character: any(test(character) for test in found) != is_inverted

    def _escaped(self, character: str, *, in_set: bool = False) -> _Test:
        if character in _CLASSES:
            return _CLASSES[character]
        if character in _CONTROLS:
            return _CONTROLS[character].__eq__
        if in_set and character == "b":
            return "\b".__eq__
        if character.isalnum():
            raise self._error(f"\\{character}")
        return character.__eq__

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise self._error("an end in the middle")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _error(self, what: str) -> PatternError:
        return PatternError(f"a pattern with {what} at position {self._at}")
