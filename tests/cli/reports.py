"""Reports with ordinary and with hostile names, and how they are rendered."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files

import jsonschema
from hypothesis import strategies as st

from vita_ckpt.checks.rules import RULES, Rule, finding
from vita_ckpt.cli.formats import renderer
from vita_ckpt.core.report import Finding, Report
from vita_ckpt.errors import printable

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "report-v1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

BROKEN = Report(
    "ckpts/vita",
    "vita-checkpoint",
    (
        finding("more-embeddings-than-tokens", "model.embed_tokens.weight", "expected 8, got 9"),
        finding(
            "tower-path-absolute",
            "mm_vision_tower",
            "got /data/tower",
            hint="give a relative one",
            file=os.path.abspath("ckpts/vita/config.json"),
        ),
        finding(
            "missing-shard",
            "model-00002-of-00002.safetensors",
            "expected a file, got nothing",
            hint="download it again",
            file=os.path.abspath("ckpts/vita/model-00002-of-00002.safetensors"),
        ),
        finding("missing-tensor", "a", "expected [4], got nothing"),
        finding("missing-tensor", "b", "expected [2], got nothing"),
    ),
)
CLEAN = Report("/elsewhere/projector", "projector", ())
REPORTS = (BROKEN, CLEAN)

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "a\nb\r\n::error::x",
    "::set-output name=a::b",
    "##[error]x",
    "- a list",
    "1. a list",
    "    code",
    "x ##vso[task.setvariable variable=a]b",
    "::stop-commands::x",
    "www.example.org http://example.org a@example.org @user #123 GH-1 o/r#1 o/r@" + "ab12" * 10,
    "%0A::warning::%25",
    "file.bin,line=1:2",
    "a | b | c",
    "`code` ``more`` \\` *bold* _it_ ~~no~~ $x$",
    "<script>alert(1)</script><b>&amp;",
    "[link](javascript:alert)![image](http://x)",
    "]]></failure><testcase/>",
    "\x00\x0b\x7f\x85\ufffe\uffff\ufeff",
    "\udcff\ud800",
    "\u202eright to left\u2028",
    "../../etc/passwd",
    "//host/share",
    "x" * 2000,
    "a b#c?d%20e",
    "日本語/é.safetensors",
    "",
    " ",
    "- ",
    "C:\\Windows",
)
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=()), max_size=30),
    st.text("`|*_<>&[]()\\%:,\n\r\x1b\x00\udcff\uffff#$!\"'", max_size=12),
)
FINDINGS = st.builds(
    Finding,
    rule=st.sampled_from([*RULES, "no-such-rule"]),
    severity=st.sampled_from(["error", "warning", "note"]),
    subject=NAMES,
    message=NAMES,
    hint=NAMES,
    file=st.one_of(NAMES, NAMES.map("/root/{}".format)),
)
HOSTILE_REPORTS = st.lists(
    st.builds(Report, path=NAMES, kind=NAMES, findings=st.lists(FINDINGS, max_size=4).map(tuple)),
    max_size=3,
)


def rendered(name: str, reports: Sequence[Report], rules: Mapping[str, Rule] = RULES) -> str:
    text = renderer(name)(reports, rules)
    assert text.endswith("\n")
    assert not {c for c in set(text) if c != "\n" and printable(c) != c}
    text.encode()
    return text


def findings_of(reports: Sequence[Report]) -> list[Finding]:
    return [found for report in reports for found in report.findings]
