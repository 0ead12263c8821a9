"""The public face as type checkers see it: complete, in one table, and checked from outside."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
import typing
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

import vita_ckpt

ROOT = Path(__file__).parent.parent

# Made by a user and passed on: its methods serve the library.
PASSED_ON = {vita_ckpt.Stores}


def type_checking_block(module: ModuleType) -> ast.Module:
    """The imports that only type checkers see."""
    tree = ast.parse(inspect.getsource(module))
    blocks = (
        node.body
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    return ast.Module([statement for block in blocks for statement in block], [])


def hints_of(thing: Any) -> dict[str, Any]:
    module = sys.modules[thing.__module__]
    names: dict[str, Any] = {}
    exec(compile(type_checking_block(module), module.__name__, "exec"), names)
    return typing.get_type_hints(thing, localns=names)


def classes_in(hint: Any) -> Iterator[type]:
    """Every class of this package that an annotation is made of."""
    if isinstance(hint, list):  # the parameters of a Callable
        for one in hint:
            yield from classes_in(one)
    for argument in typing.get_args(hint):
        yield from classes_in(argument)
    if isinstance(hint, type) and hint.__module__.partition(".")[0] == "vita_ckpt":
        yield hint


def fields_of(class_: type) -> dict[str, Any]:
    """The public fields and properties of a class."""
    if not (dataclasses.is_dataclass(class_) or typing.is_typeddict(class_)):
        return {}  # a class whose instances are only handed on
    hints = {k: v for k, v in hints_of(class_).items() if not k.startswith("_")}
    for name, member in vars(class_).items():
        if isinstance(member, property) and not name.startswith("_"):
            hints[name] = hints_of(member.fget).get("return")
    return hints


def test_every_type_that_a_public_function_mentions_is_public() -> None:
    public = {getattr(vita_ckpt, name) for name in vita_ckpt.__all__ if name != "__version__"}
    functions = [one for one in public if inspect.isfunction(one)]
    assert len(functions) > 20
    waiting = [(f.__name__, hint) for f in functions for hint in hints_of(f).values()]
    waiting += [(c.__name__, c) for c in public if isinstance(c, type)]
    seen: set[type] = set()
    while waiting:
        where, hint = waiting.pop()
        for class_ in classes_in(hint):
            assert class_ in public, f"{class_} of {where} is not public"
            if class_ not in seen:
                seen.add(class_)
                fields = {} if class_ in PASSED_ON else fields_of(class_)
                waiting += [(f"{class_.__name__}.{k}", v) for k, v in fields.items()]
    assert len(seen) > 50


def test_type_checkers_see_the_names_of_the_table() -> None:
    imported = [
        (statement.module, alias.name, alias.asname)
        for statement in type_checking_block(vita_ckpt).body
        if isinstance(statement, ast.ImportFrom) and statement.module != "typing"
        for alias in statement.names
    ]
    homes = {**vita_ckpt._HOMES, **vita_ckpt._MODEL_HOMES}
    table = [(module, name, name) for module, names in homes.items() for name in names]
    assert sorted(imported, key=str) == sorted(table)
    assert list(vita_ckpt._HOMES) == sorted(vita_ckpt._HOMES)


def test_what_a_star_import_brings() -> None:
    names: dict[str, Any] = {}
    exec("from vita_ckpt import *", names)
    assert names.keys() - {"__builtins__"} == {*vita_ckpt.__all__}


def test_without_torch_the_types_of_the_model_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vita_ckpt.__all__
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert {*whole} - {*vita_ckpt.__all__} == {"Output", "Ranks", "VitaModel"}
    assert "Verification" in vita_ckpt.__all__


CLIENT = """
from vita_ckpt import (
    Checkpoint,
    Change,
    Difference,
    Edit,
    Explanation,
    Finding,
    History,
    Inspection,
    Leftover,
    Plan,
    Push,
    Report,
    Step,
    StrPath,
    Summary,
    Tower,
    VitaCkptError,
    VitaModel,
    apply,
    clean,
    diff,
    explain,
    get_w,
    history,
    inspect,
    list_tensors,
    load_model,
    open_checkpoint,
    plan_merge_projector,
    push,
    push_plan,
    summarize,
    validate,
    verify,
)


def kept(path: StrPath) -> list[Leftover]:
    return [leftover for leftover, gone in clean(path) if not gone]


def look(path: StrPath) -> tuple[Inspection, Tower | None, dict[str, int]]:
    found = inspect(path)
    return found, found.tower, {part.name: part.bytes for part in found.parts}


def changes(a: Checkpoint, b: Checkpoint) -> list[Change]:
    found: Difference = diff(a, b)
    return [tensor.change for tensor in found.tensors]


def steps(path: str) -> list[Step]:
    explanation: Explanation = explain(path)
    return [step for trace in explanation.traces for step in trace.steps]


def surgery(base: str, adapter: str, out: str) -> tuple[Edit, ...]:
    plan: Plan = plan_merge_projector(base, adapter)
    summary: Summary = summarize(plan)
    print(summary.bytes_to_write + sum(file.bytes for file in summary.carried), summary.to_dict())
    try:
        print(apply(plan, out).upper())
    except VitaCkptError as error:
        print(error.code.upper(), error.exit_code + 1)
    return plan.edits


def findings(path: str) -> list[Finding]:
    report: Report = validate(path)
    known: History = history(path)
    done: Push = push(path, "org/name")
    there: Push = push_plan(plan_merge_projector("hf://org/name", path), "org/other")
    print(known.to_dict(), done.url, there.copied)
    return [*report.findings, *verify(path).findings, *done.report.findings]


def model(path: str) -> VitaModel:
    return load_model(path)


sizes: list[int] = [row["bytes"] for row in list_tensors("x")]
widths: dict[str, int] = get_w({"a": 1}, "mm_projector")
wrong: int = open_checkpoint("x").root  # type: ignore[assignment]
"""


def test_a_strict_client_of_the_wheel_type_checks(tmp_path: Path) -> None:
    """``py.typed`` is in the wheel: what is wrong in a client is an error, and nothing else is."""
    pytest.importorskip("mypy")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    home = tmp_path / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(packages)
    (tmp_path / "client.py").write_text(CLIENT)
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    options += ["--python-executable", str(home / "bin" / "python")]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "client.py"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vita_ckpt", "--version"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"vita-ckpt, version {vita_ckpt.__version__}\n"
