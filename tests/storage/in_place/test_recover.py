"""A surgery that was killed or stopped: everybody sees it, and what was there comes back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.in_place import files_of, kill, owner_file, set_key, stopped_in_the_middle
from vita_ckpt import (
    InputError,
    apply_in_place,
    history,
    inspect,
    open_checkpoint,
    plan_merge_projector,
    plan_set,
    recover,
    undo,
    validate,
)
from vita_ckpt.api.explain import explain
from vita_ckpt.storage.system import owner


def test_every_reader_says_that_it_is_torn(torn: Path, adapter: Path) -> None:
    shard = next(torn.glob("*.safetensors"))
    for read in (
        open_checkpoint,
        inspect,
        explain,
        history,
        lambda p: plan_set(p, {"use_s2": False}),
        lambda p: plan_merge_projector(p, adapter),
    ):
        for path in (torn, shard):
            with pytest.raises(InputError, match=r"mid-surgery.*died.*vita-ckpt recover"):
                read(path)
    for path in (torn, shard):
        assert "mid-surgery" in {finding.rule for finding in validate(path).findings}


def test_recovering_brings_back_what_was_there(tmp_path: Path, base: Path, adapter: Path) -> None:
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    found = recover(base)
    assert found is not None
    assert (found.operation, found.recovered) == ("merge-projector", True)
    assert files_of(base) == before
    assert recover(base) is None
    assert not (base / ".vita-ckpt").exists()


def test_undo_of_a_torn_checkpoint_undoes_that_surgery_alone(base: Path, adapter: Path) -> None:
    apply_in_place(set_key(base, adapter))
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    assert undo(base).recovered
    assert files_of(base) == before
    assert undo(base).operation == "set"


def test_a_surgery_under_way_is_left_alone(base: Path, adapter: Path) -> None:
    plan = set_key(base, adapter)
    with stopped_in_the_middle(base, adapter) as process:
        for attempt in (recover, undo):
            with pytest.raises(InputError, match=r"surgery-under-way.*at work on it|mid-surgery"):
                attempt(base)
        with pytest.raises(InputError, match=r"mid-surgery.*is at work on it"):
            apply_in_place(plan)
        kill(process)
    assert recover(base) is not None


def test_asked_to_end_it_puts_back_what_was_there(base: Path, adapter: Path) -> None:
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert "KeyboardInterrupt: the checkpoint is as it was" in err
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


def test_a_surgery_of_another_host_is_not_taken_over_unasked(torn: Path) -> None:
    active = torn / ".vita-ckpt" / "active"
    tag = owner.current().tag
    elsewhere = tag.rsplit("-", 2)[0] + "-00000000-otherhost"
    owner_file(active).rename(active / f"owner-{elsewhere}")
    with pytest.raises(InputError, match=r"owned-elsewhere.*otherhost"):
        recover(torn)
    assert recover(torn, force=True) is not None
