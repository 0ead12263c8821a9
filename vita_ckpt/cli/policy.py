"""Which rules count: options of the command line over ``vita-ckpt.toml`` or ``pyproject.toml``.

A configuration file that lies in what is validated is data of a stranger, and is never obeyed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

from vita_ckpt.checks.rules import RULES
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.report import Report, Selection
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OWN: Final = "vita-ckpt.toml"
_PROJECT: Final = "pyproject.toml"
_TABLE: Final = "vita-ckpt"
_TABLE_KEYS: Final = ("select", "ignore", "strict")
_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Policy(Selection):
    """Rules to look at (all if none is named), rules to leave out, and what fails."""

    def applied(self, report: Report) -> Report:
        """``report`` with the findings that count."""
        return replace(report, findings=tuple(f for f in report.findings if self._counts(f.rule)))

    def _counts(self, rule: str) -> bool:
        selected = not self.select or _matches(rule, self.select)
        return selected and not _matches(rule, self.ignore)


def read_policy(
    select: Sequence[str],
    ignore: Sequence[str],
    strict: bool | None,
    directory: str = ".",
    *,
    validated: Iterable[str] = (),
) -> Policy:
    """Return the policy of the options, where they are given, else of the configuration file.

    ``vita-ckpt.toml`` holds the keys at its top, ``pyproject.toml`` below ``[tool.vita-ckpt]``; the
    first that is in ``directory`` counts, unless it lies in one of the ``validated`` paths or leads
    there. Raises UsageError for a key, a type or a rule that is none.
    """
    table, path, disregarded = _read(directory, [_root(p) for p in validated if not is_remote(p)])
    unknown = table.keys() - set(_TABLE_KEYS)
    if unknown:
        key = sorted(unknown)[0]
        meant = did_you_mean(key, _TABLE_KEYS)
        raise _invalid(path, "select, ignore and strict", f"the key {key!r}", meant)
    for key in ("select", "ignore"):
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(rule, str) for rule in value):
            raise _invalid(path, f"{key} to be a list of rules", repr(value))
    if not isinstance(table.get("strict", False), bool):
        raise _invalid(path, "strict to be true or false", repr(table["strict"]))
    policy = Policy(
        tuple(_split(select)) or tuple(table.get("select", ())),
        tuple(_split(ignore)) or tuple(table.get("ignore", ())),
        bool(table.get("strict", False)) if strict is None else strict,
        path,
        disregarded,
    )
    for rule in (*policy.select, *policy.ignore):
        if not any(_matches(known, (rule,)) for known in RULES):
            raise UsageError(
                "unknown-rule",
                rule,
                expected="a rule, or a pattern that matches one",
                hint=did_you_mean(rule, RULES, "vita-ckpt rules lists them"),
            )
    return policy


def _read(directory: str, roots: Sequence[str]) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """Return the table that counts, its file (empty if there is none), and files not obeyed."""
    disregarded: list[str] = []
    for name, below in ((_OWN, ()), (_PROJECT, ("tool", _TABLE))):
        path = os.path.join(directory, name)
        if not os.path.isfile(path):
            continue
        if _lies_in(path, roots):
            disregarded.append(os.path.normpath(path))
            continue
        try:
            with open(path, "rb") as file:
                table: Any = tomllib.loads(file.read(_LARGEST).decode("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _invalid(path, "a TOML file", str(error)) from error
        for key in below:
            table = table.get(key, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict) and (table or name == _OWN):
            return table, os.path.normpath(path), tuple(disregarded)
    return {}, "", tuple(disregarded)


def _root(path: str) -> str:
    """Return the directory that a validated path stands for: of a lone file, where it lies."""
    real = os.path.realpath(path)
    return real if os.path.isdir(real) else os.path.dirname(real)


def _lies_in(path: str, roots: Iterable[str]) -> bool:
    """Return whether a file, or what it is a link to, is below one of ``roots``."""
    folder, name = os.path.split(path)
    places = {os.path.join(os.path.realpath(folder or os.curdir), name), os.path.realpath(path)}
    return any(place.startswith(os.path.join(root, "")) for root in roots for place in places)


def _split(rules: Sequence[str]) -> list[str]:
    return [rule for entry in rules for rule in entry.replace(",", " ").split()]


def _matches(rule: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(rule, pattern) for pattern in patterns)


def _invalid(path: str, expected: str, got: str, hint: str = "") -> UsageError:
    return UsageError("invalid-configuration", path, expected=expected, got=got, hint=hint)
