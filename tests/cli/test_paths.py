"""Paths of this machine, where an address on the hub was given instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import vita_ckpt
from tests.conftest import GOLDEN, Cli, assert_one_error
from vita_ckpt.api import lifecycle, surgery
from vita_ckpt.cli.main import cli as group
from vita_ckpt.errors import UsageError

ADDRESS = "hf://org/name"

# What can be read where it is. All other paths of all commands are of this machine.
ON_THE_HUB = {
    "diff a",
    "diff b",
    "explain checkpoint",
    "extract-projector --from",
    "extract-tower --from",
    "extract-tower --tower-config",
    "history checkpoint",
    "inspect checkpoint",
    "merge-projector --adapter",
    "merge-projector --base",
    "merge-projector --tower",
    "set checkpoint",
    "swap-tower --base",
    "swap-tower --projector",
    "swap-tower --tower",
    "swap-tower --tower-config",
    "validate paths",
    "verify --against",
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
        lambda _: vita_ckpt.verify(GOLDEN / "A1" / "base", golden=ADDRESS),
        lambda _: vita_ckpt.verify(GOLDEN / "A1" / "base", save_golden=ADDRESS),
        lambda _: vita_ckpt.verify(GOLDEN / "A1" / "base", image=ADDRESS),
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
