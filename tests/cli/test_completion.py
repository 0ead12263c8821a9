"""What a shell completes: words of the command, and the names of tensors on the line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.builder import Spec, write_checkpoint
from tests.forker import Forker

RUN = [sys.executable, "-m", "vita_ckpt"]
SHARED: list[Forker] = []


@pytest.fixture(scope="module", autouse=True)
def _shared(forker: Forker) -> None:
    SHARED[:] = [forker]


def completed(shell: str, *words: str) -> list[str]:
    """Return what the program answers to the script of a shell."""
    last = words[-1] if shell == "fish" else str(len(words))
    environment = {
        "_VITA_CKPT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(("vita-ckpt", *words)),
        "COMP_CWORD": last,
    }
    done = SHARED[0].run((), environment={**os.environ, **environment})
    assert done.err == ""
    lines = done.out.strip().splitlines()
    if shell == "zsh":  # three lines for each: type, word, help
        return lines[1::3]
    return [line.split(",")[1].split("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("merge-p",), ["merge-projector"]),
        (("rules", "tower-path-m"), ["tower-path-misleads"]),
        (("validate", "x", "--ignore", "tower-path-a"), ["tower-path-absolute"]),
        (("validate", "x", "--format", "ju"), ["junit"]),
        (("diff", "x", "y", "--output", "sar"), ["sarif="]),
        (("convert", "x", "--dtype", "b"), ["bf16"]),
        (("verify", "x", "--dtype", "b"), ["bfloat16"]),
        (("set", "x", "mm_v"), ["mm_vision_tower="]),
        (("set", "x", "use_s2=true", "s2"), ["s2_scales="]),
        (("rules", "zzz"), []),
    ],
)
def test_words(shell: str, words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(shell, *words) == expected


def test_names_of_tensors(tmp_path: Path) -> None:
    path = str(write_checkpoint(tmp_path / "c", Spec(layers=4), dtype="F32"))
    begin = ("inspect", path, "--tensors")
    assert completed("bash", *begin, "mo") == ["model."]
    assert "model.mm_projector.0.bias" in completed("bash", *begin, "model.mm_")
    assert completed("bash", *begin, "model.layers.3.mlp.u") == [
        "model.layers.3.mlp.up_proj.weight"
    ]
    assert completed("bash", "diff", path, "x", "--only", "lm") == ["lm_head.weight"]
    assert completed("bash", "convert", path, "--keep", "lm") == ["lm_head.weight"]
    assert completed("bash", "inspect", str(tmp_path / "nowhere"), "--tensors", "m") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_takes_the_script(tmp_path: Path) -> None:
    """The script as a user evaluates it; a key that lacks its value gets no space."""
    program = tmp_path / "vita-ckpt"
    program.write_text(f'#!/bin/sh\nexec {" ".join(RUN)} "$@"\n')
    program.chmod(0o755)
    script = """
    compopt() { local IFS=' '; echo "compopt $*"; }
    eval "$(vita-ckpt --completion bash)"
    complete -p vita-ckpt
    for words in "set x mm_v" "rules tower-path-m"; do
        COMP_WORDS=(vita-ckpt $words) COMPREPLY=()
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _vita_ckpt_completion vita-ckpt
        echo "${COMPREPLY[@]}"
    done
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _vita_ckpt_completion vita-ckpt",
        "compopt -o nospace",
        "mm_vision_tower=",
        "tower-path-misleads",
    ]
