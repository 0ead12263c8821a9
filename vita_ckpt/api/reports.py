"""Write reports to files, whole or not at all."""

from __future__ import annotations

from vita_ckpt.storage.writing import atomic_file


def write_report(path: str, text: str, *, append: bool = False) -> None:
    """Write a report in place of what the file at ``path`` was, or at its end with ``append``.

    A reader finds the old file or the new one, whole. Raises OutputError if the disk refuses.
    """
    if append:
        atomic_file.append(path, text)
    else:
        atomic_file.write_over(path, text)
