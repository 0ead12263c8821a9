"""Represent the result of a forward pass as data that needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.report import Finding, finding_rows, has_errors

VERIFICATION_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one of several processes did: where, the bytes of tensors it read, its peak in bytes."""

    rank: int
    device: str
    bytes_read: int
    peak_memory: int


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Displayed):
    """The result of a forward pass: findings, time and memory.

    Times are in seconds, ``peak_memory`` in bytes (of the GPU if there is one, else of this
    process; the largest of several). ``tokens_per_image`` is the number of tokens that one image
    produces, ``tokens_per_recording`` that of a recording of 400 frames.
    ``skipped_audio_tensors`` counts those that were not run, since no ``train.yaml`` says how.
    ``answer`` is the answer to the prompt, None without a prompt or if the model does not generate
    one. ``ranks`` are the processes that a launcher started, none without a launcher.
    """

    path: str
    device: str
    dtype: str
    streamed: bool
    findings: tuple[Finding, ...]
    load_seconds: float
    pass_seconds: float
    peak_memory: int
    tokens_per_image: int | None
    skipped_audio_tensors: int
    tokens_per_recording: int | None = None
    answer: str | None = None
    ranks: tuple[RankReport, ...] = ()
    golden: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON, as in ``schemas/verify-v1.json``, without ``golden``."""
        report = asdict(self)
        del report["golden"]
        if not self.ranks:
            del report["ranks"]
        report["findings"] = [
            {key: value for key, value in finding.items() if key != "file"}
            for finding in report["findings"]
        ]
        return {
            "format": "vita-ckpt-verify",
            "version": VERIFICATION_VERSION,
            "ok": not has_errors(self.findings),
            **report,
        }

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield every field that is not empty, with the findings one by one at the end."""
        for label, value in Displayed.display_rows(self):
            if label != "findings":
                yield label, value
        yield from finding_rows(self.findings)
