"""Choose a tower class by the path of the tower, as upstream does."""

from __future__ import annotations

from enum import Enum

from vita_ckpt.core.anatomy.towers.families import FAMILIES
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError


class Outcome(Enum):
    """The outcome of the choice."""

    WORD = "a family's word is in the path"
    WORD_WITH_S2 = "a family's word is in the path, and S2 is asked for"
    NO_S2 = "S2 is asked for, and the family in the path has none"
    NO_WORD = "no family's word is in the path"
    RULE = "a rule for the form of the path chose"
    NO_RULE = "no rule is for a path of this form"


@dataclass(frozen=True, slots=True)
class Reason:
    """The reason for a choice: its outcome, and the family whose word was found (None without one).

    Its string is the reason as reports word it. ``text`` is that of a rule which looks for no word.
    """

    outcome: Outcome
    family: str | None = None
    text: str = ""

    def __str__(self) -> str:
        if self.text:
            return self.text
        if self.family is None:
            words = ", ".join(f'"{family.word}"' for family in FAMILIES.values())
            return f"none of {words} in the path: it raises"
        family = FAMILIES[self.family]
        found = f'"{family.word}" in the path'
        if self.outcome is Outcome.NO_S2:
            return f"{found}, and {family.label} has no S2: it raises"
        return f"{found} and use_s2" if self.outcome is Outcome.WORD_WITH_S2 else found


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The tower class that upstream's loader builds from a tower path.

    ``family`` is the name of the tower's family, None for a class of no family that is known here.
    It and ``tower_class`` are None where upstream raises.
    """

    family: str | None
    tower_class: str | None
    reason: Reason


def dispatch(path: str, use_s2: bool) -> Dispatch:
    """Choose the tower class as upstream does: by the first word found in the lower-cased path."""
    lowered = path.lower()
    for name, family in FAMILIES.items():
        if family.word in lowered:
            if not use_s2:
                return Dispatch(name, family.tower_class, Reason(Outcome.WORD, name))
            if family.has_s2:
                reason = Reason(Outcome.WORD_WITH_S2, name)
                return Dispatch(name, f"{family.tower_class}S2", reason)
            return Dispatch(None, None, Reason(Outcome.NO_S2, name))
    return Dispatch(None, None, Reason(Outcome.NO_WORD))


def check_dispatch(path: str, family: str, by_path: Dispatch, hint: str) -> None:
    """Raise InputError ``tower-path-misleads`` unless ``family`` is what upstream builds."""
    if by_path.family != family:
        raise InputError(
            "tower-path-misleads",
            path,
            expected=f"a path that upstream takes for {FAMILIES[family].label}",
            got=f"{by_path.tower_class or 'nothing'}: {by_path.reason}",
            hint=hint,
        )
