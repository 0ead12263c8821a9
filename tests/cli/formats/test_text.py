"""Reports as text."""

from __future__ import annotations

import re

from hypothesis import given

from tests.cli.reports import CLEAN, HOSTILE_REPORTS, REPORTS, findings_of, rendered
from vita_ckpt.core.report import Report


def test_text_is_one_screen() -> None:
    assert rendered("text", REPORTS).splitlines() == [
        "ckpts/vita",
        "  vita-checkpoint · 3 errors, 1 warning, 1 note",
        "",
        "severity  rule                         file                              what",
        "error     missing-shard                model-00002-of-00002.safetensors  expected a "
        "file, got nothing",
        "error     missing-tensor                                                 a: expected "
        "[4], got nothing",
        "error     missing-tensor                                                 b: expected "
        "[2], got nothing",
        "warning   tower-path-absolute          config.json                       "
        "mm_vision_tower: got /data/tower",
        "note      more-embeddings-than-tokens                                    "
        "model.embed_tokens.weight: expected 8, got 9",
        "",
        "→ missing-shard: download it again",
        "→ tower-path-absolute: give a relative one",
        "",
        "/elsewhere/projector",
        "  projector · nothing found",
        "",
        "2 checkpoints: 3 errors, 1 warning, 1 note",
    ]
    assert rendered("text", [CLEAN]).splitlines()[-1] == "1 checkpoint: nothing found"


@given(HOSTILE_REPORTS)
def test_text_has_a_line_for_each_finding(reports: list[Report]) -> None:
    lines = rendered("text", reports).splitlines()
    rows = [line for line in lines if re.match(r"(error|warning|note) ", line)]
    assert len(rows) >= len(findings_of(reports))
