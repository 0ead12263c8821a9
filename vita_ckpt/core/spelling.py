"""Guess what a mistyped word was meant to be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

_DIGITS = re.compile(r"\d+")


def did_you_mean(word: str, known: Collection[str], otherwise: str = "") -> str:
    """Return a hint: the known word that is nearest to ``word``, if one is near, and more to say.

    Case does not count, and ``_`` is ``-``.
    """
    return _hint(_nearest(word, known), otherwise)


def did_you_mean_tensor(pattern: str, names: Iterable[str], otherwise: str = "") -> str:
    """Return a hint for the name of a tensor, or a glob of names, that matches none of ``names``.

    Numbers are compared last, so that a checkpoint of many layers has few names to look at.
    """
    bare = pattern.strip("*.")
    is_glob = bare != pattern
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_DIGITS.sub("0", name), []).append(name)
    length = bare.count(".") + 1
    known = {run for form in forms for run in _runs(form, length)} if is_glob else forms.keys()
    found = _nearest(_DIGITS.sub("0", bare), known)
    if found is None:
        return otherwise
    numbers = iter(_DIGITS.findall(bare))
    meant = _DIGITS.sub(lambda number: next(numbers, number[0]), found)
    if not is_glob and meant not in forms[found]:
        meant = forms[found][0]
    return _hint(pattern.replace(bare, meant), otherwise)


def globs_of_nothing(globs: Collection[str], names: Iterable[str]) -> list[str]:
    """Return a sentence for each glob that matches no tensor, with a guess at what was meant."""
    known = list(names)
    return [
        f"{glob} matches no tensor" + (f" ({hint})" if hint else "")
        for glob in globs
        if not any(fnmatchcase(name, glob) for name in known)
        for hint in (did_you_mean_tensor(glob, known),)
    ]


def _runs(name: str, length: int) -> Iterator[str]:
    """Yield each run of ``length`` components of a name."""
    parts = name.split(".")
    for start in range(len(parts) - length + 1):
        yield ".".join(parts[start : start + length])


def _nearest(word: str, known: Iterable[str]) -> str | None:
    from difflib import get_close_matches  # noqa: PLC0415 - start-up

    plain = {_plain(one): one for one in known}
    found = get_close_matches(_plain(word), plain, n=1)
    return plain[found[0]] if found else None


def _plain(word: str) -> str:
    return word.lower().replace("_", "-")


def _hint(meant: str | None, otherwise: str) -> str:
    return " ".join(filter(None, (f"did you mean {meant!r}?" if meant else "", otherwise)))
