"""Compare the tensors that a model expects with those that were found."""

from __future__ import annotations

from collections.abc import Mapping

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class KeyMismatch:
    """Missing names, unexpected names, and mismatched shapes as (name, expected, found)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def refuse(self, subject: str, expected: str, hint: str = "") -> None:
        """Raise InputError that names the first problems, if there are any."""
        problems = [
            *(f"{name} is missing" for name in self.missing),
            *(f"{name} is unexpected" for name in self.unexpected),
            *(f"{name} is {list(got)}, not {list(want)}" for name, want, got in self.mismatched),
        ]
        if problems:
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise InputError(
                "weights-do-not-fit",
                subject,
                expected=expected,
                got="; ".join(problems[:_SHOWN]) + more,
                hint=hint,
            )


def compare(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> KeyMismatch:
    """Return the differences between the tensors that a model expects and those that were found."""
    return KeyMismatch(
        tuple(name for name in wanted if name not in found),
        tuple(name for name in found if name not in wanted),
        tuple(
            (name, wanted[name], found[name])
            for name in wanted
            if name in found and wanted[name] != found[name]
        ),
    )
