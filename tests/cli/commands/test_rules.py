"""``vita-ckpt rules`` as a person types it."""

from __future__ import annotations

import json

from tests.conftest import Cli, assert_one_error
from vita_ckpt.checks.rules import RULES


def test_rules(cli: Cli) -> None:
    listed = cli("rules").out
    assert all(rule in listed for rule in RULES)
    one = cli("rules", "tower-path-misleads").out
    assert RULES["tower-path-misleads"].why in one
    assert len(json.loads(cli("rules", "--json").out)) == len(RULES)
    assert_one_error(cli("rules", "cat"), 2, "unknown-rule")
