"""What holds for the reports of every format."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given

from tests.cli.reports import HOSTILE_REPORTS, REPORTS, rendered
from vita_ckpt.checks.rules import finding
from vita_ckpt.cli.formats import FORMATS
from vita_ckpt.core.report import Report


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


@given(HOSTILE_REPORTS)
def test_no_format_starts_a_command_of_azure_or_github(reports: list[Report]) -> None:
    for name in FORMATS:
        text = rendered(name, reports)
        assert "##[" not in text
        assert "##vso[" not in text.lower()


def test_credentials_are_in_no_report() -> None:
    report = Report(
        "https://me:secret@host/hf_abcdefghijklmnopqrstuv",
        "https://host/x?X-Amz-Signature=secret",
        (
            finding(
                "missing-shard",
                "ssh://:secret@host/a",
                "GET /a?b=c&token=secret",
                hint="https://secret@host hf_abcdefghijklmnopqrstuvsecret",
                file="https://me:secret@host/a?secret",
            ),
        ),
    )
    for name in FORMATS:
        text = rendered(name, [report])
        assert "secret" not in text
        assert "hf_abc" not in text
