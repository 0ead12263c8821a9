"""Complete words and the names of tensors in bash, zsh and fish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

import click
from click.shell_completion import get_completion_class

from vita_ckpt.api.inspect import as_checkpoint
from vita_ckpt.errors import VitaCkptError

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

# What click's scripts lack: each text of a script, and what takes its place. A word that is not
# complete, such as KEY= or the start of a name, gets no space after it; what follows --option= is
# completed with that before it, and what follows KEY= as a path; in fish a description may have
# commas.
_BASH: Final = (
    (
        "    return 0\n",
        """\
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.] ]]; then
        compopt -o nospace
    fi
    return 0
""",
    ),
    (
        '    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD ',
        """\
    # bash takes --option=value and KEY=value for three words
    local -a words=()
    local at word
    for ((at = 0; at <= COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if ((at > 1)) && [[ $word == = || ${COMP_WORDS[at - 1]} == = ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
    done
    if [[ $word != = && ${words[${#words[@]} - 1]} == [^-]*=* ]]; then
        compopt -o default
        return 0
    fi
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) """,
    ),
)
_ZSH: Final = (
    (
        "    for type key descr in ${response}; do\n",
        """\
    compset -P 1 '*='
    if [[ "$IPREFIX" == [^-]*= ]]; then
        _path_files -f
        return
    fi
    local -a begun
    for type key descr in ${response}; do
        if [[ "$type" == "plain" && "$key" == *[=.] ]]; then
            begun+=("$key")
            continue
        fi
""",
    ),
    (
        '    if [ -n "$completions" ]; then\n',
        """\
    if [ -n "$begun" ]; then
        compadd -U -i "$IPREFIX" -S '' -V unsorted -a begun
    fi

    if [ -n "$completions" ]; then
""",
    ),
    ("compadd -U -V", 'compadd -U -i "$IPREFIX" -V'),
)
_FISH: Final = (
    ('(string split "," $completion)', '(string split -m 1 "," $completion)'),
    (
        "            echo $metadata[2];\n",
        """\
            set -l begun (string match -r -- '^--[^=]*=' (commandline -ct));
            echo "$begun$metadata[2]";
""",
    ),
)
_LACKS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

# More names than these are completed component by component.
_MOST: Final = 40
# The parameters of the commands that hold a checkpoint.
_CHECKPOINTS: Final = ("checkpoint", "a", "base", "source")


def script(shell: str, command: click.Command, variable: str) -> str:
    """Return what a shell evaluates to complete ``vita-ckpt``.

    ``variable`` of the environment tells the program that a shell asks it for words.
    """
    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - the choices are click's own
    text = completion(command, {}, "vita-ckpt", variable).source()
    for old, new in _LACKS[shell]:
        text = text.replace(old, new)
    return text


def one_of(words: Iterable[str], *, end: str = "") -> Complete:
    """Return what completes one of some words."""

    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return [word + end for word in words if word.startswith(incomplete)]

    return complete


# Those that weights are converted to, and those that torch computes in.
dtypes: Final = one_of(("f32", "bf16", "f16"))
torch_dtypes: Final = one_of(("float32", "bfloat16", "float16"))


def tensors(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a tensor of the checkpoint on the line, if that is on this machine.

    Only headers are read. Of many names the next component is completed.
    """
    names = [name for name in _names_in(ctx) if name.startswith(incomplete)]
    if len(names) > _MOST:
        start = len(incomplete)
        ends = ((name, name.find(".", start) + 1 or len(name)) for name in names)
        names = list(dict.fromkeys(name[:end] for name, end in ends))
    return names


def _names_in(ctx: click.Context) -> list[str]:
    # What could not be parsed, since the last option lacks its value, is left as arguments.
    given = [*(ctx.params.get(name) for name in _CHECKPOINTS), *ctx.args]
    path = next((one for one in given if isinstance(one, str) and os.path.exists(one)), None)
    if path is None:
        return []
    try:
        return sorted(as_checkpoint(path, None).tensors)
    except (VitaCkptError, OSError):  # said when the command runs
        return []
