"""Plans: edits in any order, one per name, saved and loaded without loss."""

from __future__ import annotations

import json
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
    input_paths,
    plan_from_json,
    plan_to_json,
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
PLAN = Plan("test", BASE, EDITS, (DONOR,), ("said",))


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


def test_a_saved_plan_is_the_plan() -> None:
    data = json.loads(json.dumps(plan_to_json(PLAN)))
    assert input_paths(data) == ("/base", "/donor.safetensors")
    assert plan_from_json(data, [BASE, DONOR]) == PLAN


def test_a_plan_from_nothing() -> None:
    plan = Plan("extract", EMPTY, (AddTensor("c", NEW, ""),), (DONOR,))
    data = json.loads(json.dumps(plan_to_json(plan)))
    assert input_paths(data) == ("", "/donor.safetensors")
    assert plan_from_json(data, [EMPTY, DONOR]) == plan


@pytest.mark.parametrize("field", ["size", "mtime_ns", "digest", "path"])
def test_a_changed_input_is_refused(field: str) -> None:
    data = plan_to_json(PLAN)
    data["inputs"][0]["files"][0][field] = "/other" if field == "path" else 5
    with pytest.raises(StaleInputError, match="/base/model"):
        plan_from_json(data, [BASE, DONOR])
    data["inputs"][0]["files"] = []
    with pytest.raises(StaleInputError, match="/base/model"):
        plan_from_json(data, [BASE, DONOR])


def broken_plans() -> list[Any]:
    plans: list[Any] = [None, [], {}, {"format": "vita-ckpt-plan", "version": 99}]
    for path in (
        ("inputs",),
        ("edits",),
        ("notes",),
        ("operation",),
        ("inputs", 0),
        ("inputs", 0, "path"),
        ("inputs", 0, "files"),
        ("edits", 0),
        ("edits", 0, "edit"),
        ("edits", 0, "name"),
        ("edits", 0, "input"),
        ("edits", 0, "tensor"),
        ("edits", 0, "dtype"),
        ("edits", 0, "reason"),
        ("edits", 1, "name"),
        ("edits", 3, "key"),
        ("edits", 5, "init"),
        ("edits", 5, "init", "dtype"),
        ("edits", 5, "init", "shape"),
        ("edits", 5, "init", "fill"),
        ("edits", 6, "name"),
        ("edits", 6, "text"),
        ("edits", 7, "name"),
        ("notes", 0),
    ):
        values: list[Any] = [None, 3.5, "nonsense", [[]]]
        for value in values:
            plan = json.loads(json.dumps(plan_to_json(PLAN)))
            place = plan
            for step in path[:-1]:
                place = place[step]
            if value == "nonsense" and path[-1] in (
                "operation",
                "reason",
                "key",
                0,
                "path",
                "text",
            ):
                continue
            if value == 3.5 and path[-1] == "fill":
                continue
            place[path[-1]] = value
            plans.append(plan)
    plan = plan_to_json(PLAN)
    plan["edits"][0]["input"] = -1
    plans.append(plan)
    for number, key, value in (
        (5, "shape", [1 << 63, 4]),
        (5, "shape", [-1]),
        (5, "bound", 1e9),
        (5, "bound", -1.0),
        (5, "fill", 7e4),
        (5, "fill", float("nan")),
        (6, "name", "config.json"),
        (6, "name", "../config.json"),
        (6, "name", "/etc/x.json"),
        (6, "name", "code.py"),
        (6, "name", "sub/a.json"),
    ):
        plan = json.loads(json.dumps(plan_to_json(PLAN)))
        edit = plan["edits"][number]
        (edit["init"] if number == 5 else edit)[key] = value
        plans.append(plan)
    return plans


@pytest.mark.parametrize("data", broken_plans())
def test_what_is_no_plan_is_said(data: Any) -> None:
    with pytest.raises(InputError) as error:
        plan_from_json(data, [BASE, DONOR])
    assert "\n" not in str(error.value)
