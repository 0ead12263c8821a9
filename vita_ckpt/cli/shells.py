"""The scripts by which bash, zsh and fish complete ``vita-ckpt``."""

from __future__ import annotations

from typing import Final

import click

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


def script(shell: str, command: click.Command, variable: str) -> str:
    """Return what a shell evaluates to complete ``vita-ckpt``.

    ``variable`` of the environment tells the program that a shell asks it for words.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - seldom needed

    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - the choices are click's own
    text = completion(command, {}, "vita-ckpt", variable).source()
    for old, new in _LACKS[shell]:
        text = text.replace(old, new)
    return text
