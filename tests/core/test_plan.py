"""Plans: edits in any order, one per name, saved and loaded without loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from vita_ckpt.core.checkpoint import (
    EMPTY,
    Cast,
    Checkpoint,
    LocalFile,
    RandomInit,
    Shard,
    TensorRef,
)
from vita_ckpt.core.diff import diff_config, diff_tensors
from vita_ckpt.core.plan import (
    AddTensor,
    DropFile,
    DropTensor,
    Plan,
    PutFile,
    ReplaceTensor,
    SetConfig,
    plan_to_json,
    saved_plan,
)
from vita_ckpt.errors import InputError, StaleInputError

FILE = LocalFile("/base/model.safetensors", 100, 7, "abc")
DONOR_FILE = LocalFile("/donor.safetensors", 50, 8, "def")
BASE = Checkpoint(
    "/base",
    "safetensors",
    {"a": TensorRef(FILE, 0, "F32", (2,)), "b": TensorRef(FILE, 8, "F32", (1,))},
    (Shard("model.safetensors", FILE, "safetensors"),),
    config={"x": 1, "y": None},
    files={"old.json": LocalFile("/base/old.json", 3, 9)},
)
NEW = TensorRef(DONOR_FILE, 0, "F32", (2,))
DONOR = Checkpoint(
    "/donor.safetensors", "file", {"n": NEW}, (Shard("", DONOR_FILE, "safetensors"),)
)
EDITS = (
    ReplaceTensor("a", Cast(NEW, "BF16"), "why"),
    DropTensor("b", "gone"),
    AddTensor("c", NEW, "new"),
    SetConfig("x", [2], "changed"),
    SetConfig("z", None, "added"),
    AddTensor("d", RandomInit("BF16", (2, 3), 5, "d", 0.25, 0.0), "drawn"),
    PutFile("new.json", "{}\n", "put"),
    DropFile("old.json", "stale"),
)
PLAN = Plan("test", BASE, EDITS, (DONOR,), ("said",), request={"asked": None})


def test_the_target_does_not_depend_on_the_order() -> None:
    target = PLAN.target()
    assert target.tensors == {
        "a": Cast(NEW, "BF16"),
        "c": NEW,
        "d": RandomInit("BF16", (2, 3), 5, "d", 0.25),
    }
    assert (target.files, target.texts) == ({}, {"new.json": "{}\n"})
    assert target.config == {"x": [2], "y": None, "z": None}
    assert Plan("test", BASE, EDITS[::-1], (DONOR,)).target() == target
    assert BASE.config == {"x": 1, "y": None}


@pytest.mark.parametrize(
    "edits",
    [
        (DropTensor("a", ""), ReplaceTensor("a", NEW, "")),
        (SetConfig("x", 1, ""), SetConfig("x", 2, "")),
        (AddTensor("a", NEW, ""),),
        (DropTensor("nowhere", ""),),
        (DropFile("nowhere.json", ""),),
        (PutFile("old.json", "", ""), DropFile("old.json", "")),
        (ReplaceTensor("nowhere", NEW, ""),),
    ],
)
def test_edits_that_contradict_are_refused(edits: Any) -> None:
    with pytest.raises(ValueError, match=r"edits of|(Tensor|File) of"):
        Plan("test", BASE, edits, (DONOR,))


def test_a_tensor_and_a_key_may_share_a_name() -> None:
    Plan("test", BASE, (DropTensor("a", ""), SetConfig("a", 1, "")))


def test_diff_shows_what_a_plan_does() -> None:
    changes = {change.name: change.change for change in diff_tensors(BASE, PLAN.target())}
    assert changes == {"a": "replaced", "b": "removed", "c": "added", "d": "added"}
    keys = {
        change.key: (change.before, change.after) for change in diff_config(BASE, PLAN.target())
    }
    assert keys == {"x": (1, [2]), "z": (None, None)}


def saved(plan: Plan = PLAN) -> Any:
    return json.loads(json.dumps(plan_to_json(plan)))


def test_a_saved_plan_is_the_plan() -> None:
    read = saved_plan(saved())
    assert read.paths == ("/base", "/donor.safetensors")
    assert (read.operation, read.request) == ("test", {"asked": None})
    read.check_inputs([BASE, DONOR])
    read.check_same(PLAN)


def test_a_plan_from_nothing() -> None:
    plan = Plan("extract", EMPTY, (AddTensor("c", NEW, ""),), (DONOR,), request={})
    read = saved_plan(saved(plan))
    assert read.paths == ("", "/donor.safetensors")
    read.check_inputs([EMPTY, DONOR])
    read.check_same(plan)


def test_notes_may_say_something_else() -> None:
    saved_plan(saved() | {"notes": ["another"]}).check_same(PLAN)


@pytest.mark.parametrize("field", ["size", "mtime_ns", "digest", "path"])
def test_a_changed_input_is_refused(field: str) -> None:
    data = saved()
    data["inputs"][0]["files"][0][field] = "/other" if field == "path" else 5
    with pytest.raises(StaleInputError, match="/base/model"):
        saved_plan(data).check_inputs([BASE, DONOR])
    data["inputs"][0]["files"] = []
    with pytest.raises(StaleInputError, match="/base/model"):
        saved_plan(data).check_inputs([BASE, DONOR])


def broken_plans() -> list[Any]:
    plans: list[Any] = [None, [], {}, {"format": "vita-ckpt-plan", "version": 99}]
    for path in _places(saved()):
        if path[:1] == ("notes",) and len(path) > 1:
            continue
        values: list[Any] = [None, 3.5, "nonsense", [[]], {"a": 1}]
        for value in values:
            plan = saved()
            place = plan
            for step in path[:-1]:
                place = place[step]
            if place[path[-1]] != value and path[0] not in ("request", "operation"):
                place[path[-1]] = value
                plans.append(plan)
    for edit in (
        {"edit": "set-config", "key": "auto_map", "value": {}, "reason": ""},
        {"edit": "drop-file", "name": "config.json", "reason": ""},
        {"edit": "put-file", "name": "adapter_config.json", "text": "{}", "reason": ""},
        {"edit": "set-config", "key": "x", "value": float("nan"), "reason": ""},
    ):
        plan = saved()
        plan["edits"].append(edit)
        plans.append(plan)
    for key in saved():
        plan = saved()
        del plan[key]
        plans.append(plan)
    for strange in ("a\0b", "\ud800"):
        plan = saved()
        plan["inputs"][0]["path"] = strange
        plans.append(plan)
    return [*plans, saved() | {"more": None}]


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (key,)
            yield from ((key, *below) for below in _places(value[key]))


@pytest.mark.parametrize("data", broken_plans())
def test_what_is_another_plan_is_said(data: Any) -> None:
    with pytest.raises(InputError) as error:
        read = saved_plan(data)
        read.check_inputs([BASE, DONOR])
        read.check_same(PLAN)
    assert "\n" not in str(error.value)


def test_a_path_may_hold_bytes_that_are_no_utf8() -> None:
    data = saved()
    data["inputs"][0]["path"] = "/base\udcff"
    assert saved_plan(data).paths[0] == "/base\udcff"
