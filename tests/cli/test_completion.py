"""What a shell completes: words of the command, and the names of tensors on the line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from fixtures.builder import Spec, write_checkpoint
from vita_ckpt.cli import shells
from vita_ckpt.cli.main import cli, main

RUN = [sys.executable, "-m", "vita_ckpt"]


Completed = Callable[..., list[str]]


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Completed:
    """Return what asks the program as the script of a shell does, and returns its answer."""

    def ask(shell: str, *words: str) -> list[str]:
        monkeypatch.setenv("_VITA_CKPT_COMPLETE", f"{shell}_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("vita-ckpt", *words)))
        monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words)))
        with pytest.raises(SystemExit):
            main([])
        done = capsys.readouterr()
        assert done.err == ""
        lines = done.out.strip().splitlines()
        if shell == "zsh":  # three lines for each: type, word, help
            return lines[1::3]
        return [line.split(",")[1].split("\t")[0] for line in lines]

    return ask


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
        (("swap-tower", "--projector-type", "mlp"), ["mlp2x_gelu"]),
        (("resize-embeddings", "x", "--init", "c"), ["copy:"]),
        (("verify", "x", "--device", "a"), ["auto"]),
        (("explain", "x", "--loader", "vita-1.5"), ["vita-1.5"]),
        (("rules", "zzz"), []),
    ],
)
def test_words(
    completed: Completed, shell: str, words: tuple[str, ...], expected: list[str]
) -> None:
    assert completed(shell, *words) == expected


def test_names_of_tensors(completed: Completed, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_has_what_click_leaves_out(shell: str) -> None:
    """Each text of click's script that is replaced is there, in every click."""
    script = shells.script(shell, cli, "_X")
    plain = get_completion_class(shell)
    assert plain is not None
    source = plain(cli, {}, "vita-ckpt", "_X").source()
    for old, new in shells._LACKS[shell]:
        assert old in source
        assert new in script


# What is typed, and what the shell makes of it.
TYPED = {
    "rules tower-path-m": "rules tower-path-misleads ",
    "set x mm_v": "set x mm_vision_tower=",
    "verify x --dtype=b": "verify x --dtype=bfloat16 ",
}
# Stand-ins for what zsh and bash have only while a person types: they print what they are given.
AS_IF_TYPED = {
    "bash": """
compopt() { local IFS=' '; [[ "$*" == "-o nospace" ]] && space=''; }
eval "$(vita-ckpt --completion bash)"
while read -r line; do
    read -ra COMP_WORDS <<< "vita-ckpt ${line//=/ = }"
    COMPREPLY=() COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) space=' '
    _vita_ckpt_completion vita-ckpt
    begun=${line%"${COMP_WORDS[COMP_CWORD]}"}
    echo "$begun${COMPREPLY[*]}$space"
done
""",
    "zsh": """
compdef() { :; }
compset() { [[ $word == ${~3} ]] || [[ $word == --*=* ]] && IPREFIX="${word%%=*}="; }
compadd() { space=' '; [[ "$*" == *" -S "* ]] && space=''; reply=(${(P)@[-1]}) }
_describe() { reply=(${${(P)3}%%:*}); space=' ' }
eval "$(vita-ckpt --completion zsh)"
while read -r line; do
    words=(vita-ckpt ${=line}) CURRENT=$#words word=$words[-1] IPREFIX='' reply=()
    _vita_ckpt_completion
    print -r -- "${line%$word}$IPREFIX$reply$space"
done
""",
    "fish": """
vita-ckpt --completion fish | source
while read line
    set begun (string replace -r '[^ ]*$' '' -- $line)
    set found (string split -f 1 \\t -- (complete -C "vita-ckpt $line"))
    string match -q '*=' -- $found; and echo "$begun$found"; or echo "$begun$found "
end
""",
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_takes_the_script(shell: str, tmp_path: Path) -> None:
    """The script as a user evaluates it; a key that lacks its value gets no space."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    program = tmp_path / "vita-ckpt"
    program.write_text(f'#!/bin/sh\nexec {" ".join(RUN)} "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shell, *(["-f"] if shell == "zsh" else []), "-c", AS_IF_TYPED[shell]],
        input="".join(f"{line}\n" for line in TYPED),
        env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == list(TYPED.values())
