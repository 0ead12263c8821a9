"""Whose a temporary file is: what may be removed is what nobody can be working on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from vita_ckpt.storage.system import owner

HERE = owner.current()


def test_this_process_is_alive() -> None:
    assert HERE.pid == os.getpid()
    assert HERE.fate() == "alive"
    assert owner.parse(HERE.tag) == HERE
    assert f"process {os.getpid()} on " in str(HERE)


def test_a_process_that_has_ended_is_dead() -> None:
    program = "from vita_ckpt.storage.system.owner import current; print(current().tag)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    found = owner.parse(done.stdout.strip())
    assert found is not None
    assert found.pid != os.getpid()
    assert found.fate() == "dead"


def test_a_process_that_nobody_waited_for_is_dead() -> None:
    program = "from vita_ckpt.storage.system.owner import current; print(current().tag, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        found = owner.parse(process.stdout.readline().strip())
        assert found is not None
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert found.fate() == "dead"


def test_another_process_with_the_same_number_is_another() -> None:
    assert replace(HERE, started=HERE.started + 1).fate() == "dead"


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, host="otherhost", boot="00000000"),
        replace(HERE, machine="00000000"),
        replace(HERE, namespace=1),
    ],
)
def test_what_cannot_be_looked_for_is_elsewhere(other: owner.Owner) -> None:
    assert other.fate() == "elsewhere"


def test_a_machine_that_was_renamed_is_the_same() -> None:
    assert replace(HERE, host="newname").fate() == ("alive" if HERE.machine else "elsewhere")


def test_after_a_restart_everybody_is_dead() -> None:
    """If the machine has an id of its own: hosts may share a name."""
    assert replace(HERE, boot="00000000", machine=HERE.machine).fate() == (
        "dead" if HERE.machine and HERE.boot else "elsewhere"
    )
    anonymous = replace(HERE, boot="00000000", machine="")
    assert anonymous.fate() == "elsewhere"


def test_names() -> None:
    name = owner.stage_name()
    assert len(name) < 200
    assert owner.is_stage(name)
    assert owner.fate_of_stage(name) == "alive"
    assert owner.is_stage(".vita-ckpt-0123456789ab.tmp")  # of an earlier version: nobody's
    assert owner.fate_of_stage(".vita-ckpt-0123456789ab.tmp") == "elsewhere"
    for other in (".vita-ckpt", "vita-ckpt-0123456789ab.tmp", ".vita-ckpt-0123.tmp", "model.tmp"):
        assert not owner.is_stage(other)
    for tag in ("", "1-2", "x" * 99, HERE.tag + "/..", HERE.tag.replace("-", "_")):
        assert owner.parse(tag) is None
