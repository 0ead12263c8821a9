"""The process in which portions of a scan are evaluated."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from typing import Final

# What a worker says once it is ready.
READY: Final = b"+"


def main() -> None:
    """Evaluate one portion after the other, until the process that asks is gone."""
    # Closed, either pipe says that it is gone.
    with (
        suppress(EOFError, BrokenPipeError),
        os.fdopen(0, "rb") as requests,
        os.fdopen(1, "wb") as answers,
    ):
        # Both ends are this program's own: no pickle comes from anywhere else.
        work = pickle.load(requests)  # noqa: S301
        answers.write(READY)
        answers.flush()
        while True:
            portion = pickle.load(requests)  # noqa: S301
            try:
                answer = True, work(portion)
            except Exception as error:  # noqa: BLE001 - raised where the answer is waited for
                answer = False, error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
