"""The whole program on checkpoints of which one file is damaged."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st

from tests.conftest import Cli, Result
from tests.fuzz.conftest import Explore
from tests.fuzz.damage import Change, Step, changed, changes, damage, damaged
from tests.fuzz.sandbox import Sandbox, is_one_line

FORMATS = ("text", "json", "sarif", "junit", "github", "markdown")
READS = st.sampled_from(
    [
        ["inspect"],
        ["inspect", "--json"],
        ["inspect", "--tensors"],
        ["inspect", "--depth", "3"],
        ["explain"],
        ["explain", "--json"],
        *(["validate", "--values", "--format", name] for name in FORMATS),
    ]
)


def ends_well(result: Result, *, as_json: bool = False) -> None:
    """One of four ways to end, at most one line about an error, and never a bug's."""
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert result.code in (0, 1, 2, 3), result
    assert "internal-error" not in result.err
    assert "Traceback" not in result.err + result.out
    assert len(errors) == (result.code >= 2), result.err
    assert all(is_one_line(line) for line in result.err.splitlines())
    if as_json and result.code < 2:
        json.loads(result.out, parse_constant=pytest.fail)


@pytest.mark.parametrize("box", ["vita", "bins", "lora"])
def test_reading(explore: Explore, cli: Cli, box: str, request: pytest.FixtureRequest) -> None:
    sandbox: Sandbox = request.getfixturevalue(box)

    def check(name: str, how: list[Step], command: list[str]) -> None:
        with sandbox.holding(name, damaged(sandbox.sound[name], how, 4096)) as root:
            ends_well(cli(*command, root), as_json="--json" in command or "json" in command)

    names = st.sampled_from([*sandbox.sound])
    explore(check, sample=15, name=names, how=damage, command=READS)


@pytest.mark.parametrize("box", ["vita", "lora"])
def test_reading_hostile_values(
    explore: Explore, cli: Cli, box: str, request: pytest.FixtureRequest
) -> None:
    sandbox: Sandbox = request.getfixturevalue(box)

    def check(name: str, how: list[Change], command: list[str]) -> None:
        with sandbox.holding(name, changed(sandbox.sound[name], how)) as root:
            ends_well(cli(*command, root), as_json="--json" in command or "json" in command)

    names = st.sampled_from([name for name in sandbox.sound if name.endswith(".json")])
    explore(check, sample=15, name=names, how=changes, command=READS)


PLANS = st.sampled_from([["--dry-run"], ["--dry-run", "--json"]])


def test_merging_into_a_damaged_base(
    explore: Explore, cli: Cli, vita: Sandbox, adapter: Sandbox
) -> None:
    def check(name: str, how: list[Step], values: list[Change], options: list[str]) -> None:
        sound = vita.sound[name]
        data = changed(sound, values) if name.endswith(".json") else damaged(sound, how, 4096)
        with vita.holding(name, data) as root:
            arguments = ("--base", root, "--adapter", adapter.root, *options)
            ends_well(cli("merge-projector", *arguments), as_json="--json" in options)

    names = st.sampled_from([*vita.sound])
    explore(check, sample=15, name=names, how=damage, values=changes, options=PLANS)


def test_merging_a_damaged_adapter(
    explore: Explore, cli: Cli, vita: Sandbox, adapter: Sandbox
) -> None:
    name = "mm_projector.safetensors"

    def check(how: list[Step], options: list[str]) -> None:
        with adapter.holding(name, damaged(adapter.sound[name], how, 1200)) as root:
            arguments = ("--base", vita.root, "--adapter", root, *options)
            ends_well(cli("merge-projector", *arguments), as_json="--json" in options)

    explore(check, sample=15, how=damage, options=PLANS)


def test_comparing(explore: Explore, cli: Cli, vita: Sandbox) -> None:
    def check(name: str, how: list[Step], options: list[str]) -> None:
        with vita.holding(name, damaged(vita.sound[name], how, 4096)) as root:
            result = cli("diff", root, vita.root.parent / "tower-internvit", *options)
            ends_well(result, as_json="--json" in options)

    names = st.sampled_from([*vita.sound])
    options = st.sampled_from([[], ["--json"], ["--values"]])
    explore(check, sample=8, name=names, how=damage, options=options)
