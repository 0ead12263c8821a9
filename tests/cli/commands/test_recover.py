"""What ``vita-ckpt recover`` is for: a checkpoint that a killed command left torn."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.dead import dead_tag
from tests.conftest import Cli, assert_one_error


def test_a_torn_checkpoint_is_made_whole_by_the_next_command(
    cli: Cli, base: Path, adapter: Path
) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    kept = base / ".vita-ckpt" / "undo-1"
    (kept / "owner-nobody").rename(kept / f"owner-{dead_tag()}")
    kept.rename(base / ".vita-ckpt" / "active")  # as a killed undo leaves it
    assert_one_error(cli("history", base), 3, "mid-surgery", "died", "vita-ckpt recover")
    merge = ("merge-projector", "--base", base, "--adapter", adapter)
    assert_one_error(cli(*merge, "--out", base.parent / "out"), 3, "mid-surgery")
    result = cli(*merge, "--in-place")
    assert result.code == 0, result
    assert "an interrupted " in result.err
    assert [
        o["operation"] for o in json.loads(cli("history", base, "--json").out)["operations"]
    ] == ["merge-projector"]
