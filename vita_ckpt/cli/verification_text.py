"""Render the result of a forward pass as lines of text."""

from __future__ import annotations

from vita_ckpt.cli import render
from vita_ckpt.core.report import condensed, has_errors
from vita_ckpt.core.verification import Verification
from vita_ckpt.errors import escaped, printable


def verification_lines(verification: Verification) -> list[str]:
    """Return the lines that a person reads of a verification."""
    how = "streamed" if verification.streamed else "resident"
    lines = [
        printable(render.path(verification.path)),
        f"  {verification.dtype} on {verification.device}, {how} · load "
        f"{verification.load_seconds:.1f} s · pass {verification.pass_seconds:.1f} s · peak "
        f"{render.size(verification.peak_memory)}",
    ]
    lines += [
        f"  rank {one.rank}: {one.device} · read {render.size(one.bytes_read)} · peak "
        f"{render.size(one.peak_memory)}"
        for one in verification.ranks
    ]
    if verification.tokens_per_image is not None:
        lines.append(f"  one image is {verification.tokens_per_image} tokens")
    if verification.tokens_per_recording is not None:
        lines.append(f"  a recording of 400 frames is {verification.tokens_per_recording} tokens")
    for finding in condensed(verification.findings):
        hint = f" ({finding.hint})" if finding.hint else ""
        text = f"{finding.rule}: {finding.subject}: {finding.message}{hint}"
        lines.append(printable(f"{finding.severity} {text}"))
    lines.append("it does not work" if has_errors(verification.findings) else "it works")
    if verification.answer is not None:
        lines += ["", *(escaped(line) for line in verification.answer.split("\n"))]
    return lines
