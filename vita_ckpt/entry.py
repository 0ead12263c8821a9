"""Start the command line so that an interrupt ends it in one line from the first import on.

Nothing is imported here but what every interpreter has loaded, and what is built into it.
"""

import _signal  # type: ignore[import-not-found] # signal itself imports enum first
import gc
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the command line and exit."""
    _leave_at_once()
    gc.disable()  # until all is imported, which stays
    try:
        from vita_ckpt.cli.main import main as run  # noqa: PLC0415 - not before interrupts are heeded

        run()
    except KeyboardInterrupt:
        _leave(_signal.SIGINT, None)
    finally:
        # What is done is done; whatever still runs at exit need not be waited for.
        _leave_at_once()


def _leave_at_once() -> None:
    """Let SIGINT and SIGTERM end the process, while there is nothing to clean up."""
    for number in (_signal.SIGINT, _signal.SIGTERM):
        # What whoever started this had ignored, such as nohup, stays ignored.
        if _signal.getsignal(number) is not _signal.SIG_IGN:
            _signal.signal(number, _leave)


def _leave(_number: int, _frame: object) -> "NoReturn":
    # Not an exception: in the middle of an import it could be taken for something else.
    try:  # noqa: SIM105 - contextlib is not loaded yet
        os.write(2, b"error: interrupted\n")
    except OSError:
        pass
    os._exit(130)
