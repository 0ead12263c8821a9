"""Paths of this machine: where an address on the hub was given instead, or nothing."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import vita_ckpt
from fixtures.builder import snapshot
from tests.conftest import GOLDEN, Cli, assert_one_error
from vita_ckpt.api import apply as surgery
from vita_ckpt.api import lifecycle
from vita_ckpt.cli.main import cli as group
from vita_ckpt.errors import UsageError

RUN = "from vita_ckpt.cli.main import main; main()"
ADDRESS = "hf://org/name"
_CAPBSET_DROP, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2  # of Linux: prctl.h, capability.h

# What can be read where it is. All other paths of all commands are of this machine.
ON_THE_HUB = {
    "consolidate --base",
    "consolidate --config",
    "consolidate state",
    "convert checkpoint",
    "diff a",
    "diff b",
    "explain checkpoint",
    "extract-audio-adapter --from",
    "extract-audio-encoder --audio-encoder",
    "extract-audio-encoder --from",
    "extract-projector --from",
    "extract-tower --from",
    "extract-tower --tower-config",
    "history checkpoint",
    "inspect checkpoint",
    "merge-audio-adapter --adapter",
    "merge-audio-adapter --base",
    "merge-lora --adapter",
    "merge-lora --adapter-config",
    "merge-lora --base",
    "merge-lora --tower",
    "merge-projector --adapter",
    "merge-projector --base",
    "merge-projector --tower",
    "resize-embeddings --tokenizer",
    "resize-embeddings checkpoint",
    "set checkpoint",
    "swap-audio-encoder --adapter",
    "swap-audio-encoder --audio-encoder",
    "swap-audio-encoder --base",
    "swap-tower --base",
    "swap-tower --projector",
    "swap-tower --tower",
    "swap-tower --tower-config",
    "validate paths",
    "verify --against",
    "verify --audio-encoder",
    "verify --tower",
    "verify checkpoint",
}


def paths() -> Iterator[tuple[str, str, click.Parameter]]:
    """Command, name and declaration of every argument and option that takes a path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            said = (parameter.metavar or "").replace("|", " ").replace("=", " ").split()
            if isinstance(parameter.type, click.Path) or {"FILE", "PATH", "DIR", "CKPT"} & {*said}:
                yield name, parameter.opts[0], parameter


PATHS = {f"{command} {name}": (command, parameter) for command, name, parameter in paths()}


def test_what_can_be_on_the_hub_is_known() -> None:
    here = {"apply plan_file", "set --out", "validate --output"}
    assert PATHS.keys() >= ON_THE_HUB | here


@pytest.mark.parametrize("path", sorted(PATHS.keys() - ON_THE_HUB))
def test_what_must_be_here_is_not_on_the_hub(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command, parameter = PATHS[path]
    value = f"text={ADDRESS}" if parameter.metavar == "FORMAT=FILE" else ADDRESS
    option = parameter.opts if isinstance(parameter, click.Option) else []
    done = cli(command, *option[:1], value)
    assert_one_error(done, 2, f"path-on-hub: {ADDRESS}: expected a path on this machine, ")
    assert "got an address on the hub (hf download" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted(ON_THE_HUB))
def test_what_can_be_on_the_hub_may(path: str) -> None:
    _, parameter = PATHS[path]
    assert parameter.type.convert(ADDRESS, parameter, click.Context(group)) == ADDRESS


@pytest.mark.parametrize("path", sorted(PATHS.keys() - {"diff --output", "validate --output"}))
def test_an_empty_path_is_not_the_working_directory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    shutil.copytree(GOLDEN / "A1" / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path / "base")
    before = snapshot(tmp_path / "base")
    command, parameter = PATHS[path]
    option = parameter.opts if isinstance(parameter, click.Option) else []
    done = cli(command, *option[:1], "")
    assert_one_error(done, 2, "empty-path: '': expected a path, got an empty one (is a variable")
    assert snapshot(tmp_path / "base") == before


def test_the_library_takes_no_empty_path_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN / "A1" / "base")
    calls: list[Callable[[str], object]] = [
        vita_ckpt.open_checkpoint,
        vita_ckpt.explain,
        vita_ckpt.validate,
        vita_ckpt.undo,
        vita_ckpt.recover,
        vita_ckpt.clean,
    ]
    for call in calls:
        with pytest.raises(UsageError, match="empty-path"):
            call("")


def as_nobody_special(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line in a folder, of a user whom permissions hold back."""
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(vita_ckpt.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_be_nobody_special,
    )


def _be_nobody_special() -> None:
    """What keeps others out does not keep root out, unless it drops that right for good."""
    if os.geteuid() == 0:
        for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_CAPBSET_DROP, capability)


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["explain"],
        ["validate"],
        ["history"],
        ["recover"],
        ["undo"],
        ["clean"],
        ["clean", "--undo"],
    ],
)
def test_a_directory_that_cannot_be_read(tmp_path: Path, command: list[str]) -> None:
    """It is bad input, not wrong usage, and nobody says that it is whole."""
    base = tmp_path / "base"
    base.mkdir(mode=0)
    done = as_nobody_special(tmp_path, *command, "base")
    assert (done.returncode, done.stdout) == (3, "")
    said = "permission denied (check its permissions)"
    assert done.stderr == f"error: unreadable-directory: {base}: got {said}\n"
    base.chmod(0o700)


def test_what_is_not_known_is_not_denied(tmp_path: Path) -> None:
    """A directory that cannot be read hides no other one, and is neither empty nor whole."""
    for name in ("many/closed", "many/sound", "torn/.vita-ckpt/active"):
        (tmp_path / name).mkdir(parents=True)
    for root in ("many/sound", "torn"):
        shutil.copytree(GOLDEN / "A1" / "base", tmp_path / root, dirs_exist_ok=True)
    (tmp_path / "many" / "closed").chmod(0)
    (tmp_path / "torn" / ".vita-ckpt").chmod(0)
    (tmp_path / "shut").mkdir(mode=0)
    done = as_nobody_special(tmp_path, "validate", "many", "torn", "shut/in", "--json")
    for name in ("many/closed", "torn/.vita-ckpt", "shut"):
        (tmp_path / name).chmod(0o700)
    assert done.returncode == 3, done.stderr
    reports = {report["path"]: report for report in json.loads(done.stdout)["reports"]}
    assert [*reports] == ["many/closed", "many/sound", "torn", "shut/in"]
    assert reports["many/sound"]["read"]
    for name, rule in (
        ("many/closed", "unreadable-directory"),
        ("torn", "unreadable-directory"),
        ("shut/in", "not-found"),
    ):
        (found,) = (one for one in reports[name]["findings"] if one["severity"] == "error")
        assert found["rule"] == rule
        assert "permission denied" in found["message"]


@pytest.mark.parametrize(
    "call",
    [
        lambda plan: vita_ckpt.apply(plan, ADDRESS),
        lambda plan: vita_ckpt.save_plan(plan, ADDRESS),
        lambda _: vita_ckpt.load_plan(ADDRESS),
        lambda _: surgery.base_of(ADDRESS),
        lambda _: vita_ckpt.undo(ADDRESS),
        lambda _: vita_ckpt.recover(ADDRESS),
        lambda _: vita_ckpt.clean(ADDRESS),
        lambda _: vita_ckpt.drop_undo(ADDRESS),
        lambda _: lifecycle.leftovers(ADDRESS),
        lambda _: vita_ckpt.push(ADDRESS, "org/other"),
        pytest.param(
            lambda _: vita_ckpt.verify(GOLDEN / "A1" / "base", golden=ADDRESS),
            marks=pytest.mark.torch,
        ),
        pytest.param(
            lambda _: vita_ckpt.verify(GOLDEN / "A1" / "base", save_golden=ADDRESS),
            marks=pytest.mark.torch,
        ),
        pytest.param(
            lambda _: vita_ckpt.verify(GOLDEN / "A1" / "base", image=ADDRESS),
            marks=pytest.mark.torch,
        ),
    ],
)
def test_the_library_refuses_it_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[vita_ckpt.Plan], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = vita_ckpt.plan_set(GOLDEN / "A1" / "base", {"use_s2": False})
    with pytest.raises(UsageError) as error:
        call(plan)
    assert (error.value.code, error.value.subject) == ("path-on-hub", ADDRESS)
    assert list(tmp_path.iterdir()) == []
