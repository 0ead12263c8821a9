"""Run the command line with a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

RUN = "from vita_ckpt.cli.main import main; main()"


def on_a_terminal(
    *arguments: object,
    stdout: bool = True,
    columns: int = 80,
    code: str = RUN,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[int, str, str]:
    """Return the exit code, what the terminal got, and what a pipe got from stdout.

    stderr is the terminal, and so is ``stdout`` unless told otherwise.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = bytearray()

    def collect() -> None:
        while True:
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # the last process has closed it
                return
            shown.extend(data)

    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=slave,
        stdout=slave if stdout else subprocess.PIPE,
        stderr=slave,
        cwd=cwd,
        env={**os.environ, "TERM": "xterm", **(environment or {})},
    ) as process:
        os.close(slave)
        reader = threading.Thread(target=collect)
        reader.start()
        piped, _ = process.communicate()
    reader.join()
    os.close(master)
    text = shown.decode("latin-1").replace("\r\n", "\n")
    return process.returncode, text, (piped or b"").decode()
