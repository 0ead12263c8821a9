"""What ``--json`` prints of a report is its ``to_dict()``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN, Cli
from vita_ckpt import (
    Plan,
    Push,
    diff,
    explain,
    history,
    inspect,
    list_tensors,
    load_plan,
    module_tree,
    plan_set,
    summarize,
    undo,
    validate,
    verify,
)
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.strict_json import json_text

BASE = GOLDEN / "A7" / "base"
ADAPTER = GOLDEN / "A7" / "mm_projector_fp32"


def as_json(value: dict[str, Any]) -> Any:
    return json.loads(json_text(value))


def test_inspect(cli: Cli) -> None:
    printed = json.loads(cli("inspect", BASE, "--json", "--tensors", "--depth", "2").out)
    more = {"tensor_list": list_tensors(BASE), "modules": module_tree(BASE, 2), "values": None}
    assert printed == as_json({**inspect(BASE).to_dict(), **more})


@pytest.mark.parametrize("values", [False, True])
def test_diff(cli: Cli, values: bool) -> None:
    printed = cli("diff", BASE, ADAPTER, "--json", *(["--values"] if values else [])).out
    assert json.loads(printed) == as_json(diff(BASE, ADAPTER, values=values).to_dict())


def test_explain(cli: Cli) -> None:
    assert json.loads(cli("explain", BASE, "--json").out) == as_json(explain(BASE).to_dict())


def test_validate(cli: Cli) -> None:
    printed = json.loads(cli("validate", BASE, "--format", "json").out)
    assert printed["reports"] == [as_json(validate(str(BASE)).to_dict())]


def test_a_surgery_and_its_history(cli: Cli, tmp_path: Path) -> None:
    out, saved = tmp_path / "out", tmp_path / "plan.json"
    arguments = ("set", BASE, "use_s2=false", "--json", "--plan-out", saved)
    summary = as_json(summarize(plan_set(BASE, {"use_s2": False})).to_dict())
    assert json.loads(cli(*arguments, "--out", out).out) == {
        **summary,
        "out": str(out),
        "pushed": None,
    }
    plan: Plan = load_plan(saved)
    assert json.loads(saved.read_text()) == as_json(plan.to_dict())
    assert json.loads(cli("history", out, "--json").out) == as_json(history(out).to_dict())
    cli("set", out, "use_s2=true", "--in-place")
    kept = history(out).undoable
    assert kept is not None
    assert history(out).to_dict()["undoable"] == kept.to_dict()
    assert undo(out).to_dict() == {
        "path": str(out),
        "operation": "set",
        "time": kept.time,
        "recovered": False,
        "kept": [],
    }


@pytest.mark.torch
def test_verify(cli: Cli) -> None:
    base = GOLDEN / "A1" / "base"
    printed = json.loads(cli("verify", base, "--device", "cpu", "--json").out)
    found = as_json(verify(base, device="cpu").to_dict())
    for figure in ("load_seconds", "pass_seconds", "peak_memory"):  # another run, other figures
        assert type(printed.pop(figure)) is type(found.pop(figure))
    assert printed == found


def test_a_push_holds_its_report() -> None:
    report = validate(BASE)
    done = Push(report, None, ("config.json",), {".git": LeftOut.HIDDEN}).to_dict()
    assert done == {
        "report": report.to_dict(),
        "url": None,
        "files": ["config.json"],
        "left_out": [{"name": ".git", "reason": "hidden"}],
        "removed": [],
        "copied": [],
    }
    assert as_json(done) == done
