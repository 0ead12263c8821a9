"""The four commands of audio surgery, as a person types them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, Cli, assert_one_error


@pytest.fixture(autouse=True)
def in_u2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN / "U2", tmp_path / "U2")
    monkeypatch.chdir(tmp_path / "U2")


def is_same(cli: Cli, one: str, other: str | Path) -> bool:
    return "no difference" in cli("diff", one, other).out


def test_merge_audio_adapter(cli: Cli) -> None:
    arguments = ("merge-audio-adapter", "--base", "base", "--adapter", "audio_run")
    merged = cli(*arguments, "--out", "merged")
    assert merged.code == 0, merged
    assert "2 running statistics are kept" in merged.err
    assert is_same(cli, "merged", "merged_by_upstream")
    assert cli(*arguments, "--in-place").code == 0
    assert is_same(cli, "base", "merged_by_upstream")
    assert cli("undo", "base").code == 0
    assert is_same(cli, "base", GOLDEN / "U2" / "base")
    assert "merge-audio-adapter" in cli("history", "merged").out


def test_extract_audio_adapter(cli: Cli) -> None:
    made = cli("extract-audio-adapter", "--from", "base", "--out", "adapter.safetensors")
    assert made.code == 0, made
    assert "audio adapter" in cli("inspect", "adapter.safetensors").out
    assert_one_error(
        cli("extract-audio-adapter", "--from", "tower-internvit", "--out", "x.bin"),
        3,
        "adapter-no-audio-adapter",
    )


def test_swap_and_extract_audio_encoder(cli: Cli) -> None:
    made = cli("extract-audio-encoder", "--from", "base", "--out", "heard", "--check")
    assert made.code == 0, made
    assert [line.split()[:4] for line in made.out.splitlines()[1:2]] == [
        ["audio", "encoder", "added", "63"]
    ]
    swap = ("swap-audio-encoder", "--base", "base", "--audio-encoder", "audio-encoder")
    assert cli(*swap, "--plan-out", "plan.json").code == 0
    assert cli("apply", "plan.json", "--out", "swapped").code == 0
    assert not is_same(cli, "swapped", "base")
    back = ("swap-audio-encoder", "--base", "swapped", "--audio-encoder", "heard")
    result = cli(*back, "--audio-path", "audio-encoder", "--out", "back", "--json")
    assert result.code == 0, result
    assert is_same(cli, "back", "base")
    assert "audio encoder" in cli("inspect", "back").out
