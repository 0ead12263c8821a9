"""Hold what a forward pass showed, as data that needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from vita_ckpt.core.display import Displayed
from vita_ckpt.core.report import Finding, finding_rows, has_errors

VERIFICATION_VERSION: Final = 1


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Displayed):
    """What a forward pass showed: findings, and what it cost.

    Times in seconds, ``peak_memory`` in bytes (of the GPU if there is one, else of this process);
    ``tokens_per_image`` is what one image became; ``answer`` the one to the prompt, None without a
    prompt or where the model does not get as far.
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
    answer: str | None = None
    golden: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON, in the form of ``schemas/verify-v1.json``: no ``golden``."""
        report = asdict(self)
        del report["golden"]
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
        """Yield every field that is not empty, the findings one by one at the end."""
        for label, value in Displayed.display_rows(self):
            if label != "findings":
                yield label, value
        yield from finding_rows(self.findings)
