"""Say what a push has done, or why there was none."""

from __future__ import annotations

from collections.abc import Iterator

from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli import console, render
from vita_ckpt.cli.outputs import deliver
from vita_ckpt.core.outcomes import Push


def say_refused(done: Push, hint: str, *, in_json: bool = False) -> None:
    """Print the report on what is not sound, and that nothing was uploaded."""
    if not in_json:
        deliver((done.report,), RULES, "text", ())
    console.warn(f"error: not-sound: nothing was uploaded ({hint})")


def notes_on(done: Push | None) -> Iterator[str]:
    """Yield what was left out and what was removed."""
    if done is not None:
        for name, reason in sorted(done.left_out.items()):
            yield f"not uploaded: {name}: {reason}"
        for name in done.removed:
            yield f"removed from the repository: {name}"


def pushed_line(done: Push) -> str:
    """Say where it is now."""
    files = render.counted(len(done.files), "file")
    copied = f", {len(done.copied)} of them copied on the hub" if done.copied else ""
    return f"pushed {files}{copied}: {done.url}"
