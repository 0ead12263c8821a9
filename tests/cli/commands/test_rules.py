"""``vita-ckpt rules`` as a person types it."""

from __future__ import annotations

import json

from tests.conftest import Cli, assert_one_error
from vita_ckpt.checks.rules import RULES
from vita_ckpt.core.error_codes import ERRORS, WORDS


def test_rules(cli: Cli) -> None:
    listed = cli("rules").out
    assert all(rule in listed for rule in RULES)
    one = cli("rules", "tower-path-misleads").out
    assert RULES["tower-path-misleads"].why in one
    assert len(json.loads(cli("rules", "--json").out)) == len(RULES)
    assert_one_error(cli("rules", "cat"), 2, "unknown-rule")


def test_every_code_is_explained_errors_included(cli: Cli) -> None:
    for code in (*RULES, *ERRORS, *WORDS):
        done = cli("rules", code)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"{code} (")
    (said,) = json.loads(cli("rules", "output-exists", "--json").out)
    assert (said["id"], said["severity"]) == ("output-exists", "error")
    assert cli("rules", "no-such-code").code == 2
