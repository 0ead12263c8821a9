"""What holds for the reports of every format."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.reports import REPORTS, rendered
from vita_ckpt.cli.formats import FORMATS


def test_the_same_reports_give_the_same_bytes_in_another_process() -> None:
    script = (
        "import sys; from tests.cli.reports import *; "
        "from vita_ckpt.cli.formats import FORMATS; "
        "sys.stdout.buffer.write(''.join(rendered(name, REPORTS) for name in FORMATS).encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
    )
    assert done.stdout.decode() == "".join(rendered(name, REPORTS) for name in FORMATS)
