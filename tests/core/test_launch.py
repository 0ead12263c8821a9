"""A launcher is assumed only where all of its variables are there."""

from __future__ import annotations

import pytest

from vita_ckpt.core.launch import Launch, launch_of
from vita_ckpt.errors import UsageError

LAUNCHED = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_all_variables_make_a_launch() -> None:
    launch = Launch(9, 16, 1, "node0", 29500, served=False, attempt="0")
    assert launch_of(LAUNCHED) == launch
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    served = Launch(9, 16, 1, "node0", 29500, served=True, attempt="2")
    assert launch_of(LAUNCHED | torchrun) == served


@pytest.mark.parametrize("name", LAUNCHED)
def test_without_one_of_them_there_is_none(name: str) -> None:
    assert launch_of({key: LAUNCHED[key] for key in LAUNCHED if key != name}) is None
    assert launch_of(LAUNCHED | {name: ""}) is None


def test_one_process_is_no_launch() -> None:
    assert launch_of(LAUNCHED | {"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RANK", "16"),
        ("RANK", "-1"),
        ("RANK", "one"),
        ("RANK", "²"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "9" * 30),
        ("LOCAL_RANK", "16"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "65536"),
    ],
)
def test_numbers_that_cannot_be(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"invalid-launch: {name}: .*--single"):
        launch_of(LAUNCHED | {name: text})
