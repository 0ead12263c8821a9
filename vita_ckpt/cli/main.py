"""The root command: its options, the commands below it, and the one place where errors end."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from vita_ckpt import __version__
from vita_ckpt.cli import console
from vita_ckpt.cli.examples import EXAMPLES, epilog
from vita_ckpt.cli.fitting import terminal_width
from vita_ckpt.cli.shells import script
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import VitaCkptError, escaped, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from vita_ckpt import Stores

_COMPLETE_VARIABLE: Final = "_VITA_CKPT_COMPLETE"
_INTERRUPTED: Final = 130
_WIDEST: Final = 80  # columns of a help

# Every command in its section, with the first sentence of its help. Each lives in the module of its
# name, which is imported only when the command runs: to list the commands costs nothing.
_SECTIONS: Final[dict[str, dict[str, str]]] = {
    "Look": {
        "inspect": "Show what a checkpoint is, without loading it.",
        "explain": "Show what each loader would build from a checkpoint.",
        "diff": "Compare two checkpoints, byte by byte.",
        "history": "Show which surgeries a checkpoint has had.",
    },
    "Check": {
        "validate": "Prove checkpoints sound from their headers.",
        "verify": "Load a checkpoint strictly and run it once.",
        "rules": "List the rules, or explain one.",
    },
    "Change": {
        "merge-projector": "Merge a trained mm_projector into a checkpoint.",
        "merge-lora": "Merge a LoRA run into the model it was trained on.",
        "extract-projector": "Write the mm_projector of a checkpoint to a file.",
        "swap-tower": "Give a checkpoint another vision tower.",
        "extract-tower": "Write the vision tower to a directory of its own.",
        "consolidate": "Turn the state of a training run into a checkpoint.",
        "merge-audio-adapter": "Merge a trained audio adapter into a checkpoint.",
        "extract-audio-adapter": "Write the audio adapter of a checkpoint to a file.",
        "swap-audio-encoder": "Give a checkpoint another audio encoder.",
        "extract-audio-encoder": "Write the audio encoder to a directory of its own.",
        "convert": "Write a checkpoint with other names, dtype or shards.",
        "resize-embeddings": "Add or remove rows of the token embeddings.",
        "set": "Set keys of the vision and audio config.",
        "apply": "Run a plan that --plan-out saved.",
    },
    "Go back": {
        "undo": "Undo the last surgery in place, bit for bit.",
        "recover": "Restore a checkpoint whose surgery was interrupted.",
        "clean": "Remove what interrupted runs left behind.",
    },
    "Hub": {"push": "Upload a checkpoint to the Hugging Face hub."},
}
_SUMMARIES: Final = {
    name: text for commands in _SECTIONS.values() for name, text in commands.items()
}


@dataclass
class Settings:
    """The options that the root command shares with the commands below it."""

    quiet: bool = False

    @cached_property
    def stores(self) -> Stores:
        """The stores of this run: one session with the hub."""
        from vita_ckpt import Stores  # noqa: PLC0415 - start-up

        return Stores()

    def hush(self) -> None:
        """Print only data and errors from now on."""
        import logging  # noqa: PLC0415 - slow, seldom needed

        self.quiet = True
        logging.getLogger("vita_ckpt").setLevel(logging.ERROR)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def note(self, text: str) -> None:
        """Say something beside the data: to stderr, unless quiet."""
        if not self.quiet:
            console.warn(printable(text))


class _Formatter(click.HelpFormatter):
    """Wrap a help between words only: click would break vita-ckpt.toml after its hyphen."""

    _HYPHEN: Final = "\N{NON-BREAKING HYPHEN}"  # while it is wrapped

    def write(self, string: str) -> None:
        super().write(string.replace(self._HYPHEN, "-"))

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", self._HYPHEN))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        unbroken = [(first, text.replace("-", self._HYPHEN)) for first, text in rows]
        # A narrow terminal leaves the long names of tensors room beside the options.
        super().write_dl(unbroken, col_max if self.width > 70 else 18, col_spacing)


class _Context(click.Context):
    formatter_class = _Formatter


class _LazyGroup(click.Group):
    context_class = _Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SUMMARIES:
            return None
        module = import_module(f"vita_ckpt.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        if "--quiet" not in (option for one in command.params for option in one.opts):
            _options_everywhere(command)
            command.context_class = _Context
        command.epilog = epilog(cmd_name, min(terminal_width() or _WIDEST, _WIDEST))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _SUMMARIES and not args[0].startswith("-"):
            hint = did_you_mean(args[0], _SUMMARIES).replace("did", "Did", 1)
            if os.path.exists(args[0]):
                import shlex  # noqa: PLC0415 - start-up

                hint = f"It is a path: vita-ckpt inspect {shlex.quote(args[0])}"
            ctx.fail(f"No such command {args[0]!r}. {hint}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _SUMMARIES))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - seldom needed

        return [
            *(
                CompletionItem(name, help=text)
                for name, text in _SUMMARIES.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **extra)
        except BrokenPipeError as error:  # of a help: click would call it 1, as below
            console.forget_stdout()
            raise click.exceptions.Exit(0) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would call it 1, which says that something was found
            console.forget_stdout()
            return 0
        except KeyboardInterrupt as interrupt:  # click would print an empty line first
            raise click.exceptions.Abort from interrupt


def _show_completion(ctx: click.Context, _param: click.Parameter, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    click.echo(script(shell, cli, _COMPLETE_VARIABLE))
    ctx.exit()


def _hush(ctx: click.Context, _param: click.Parameter, quiet: bool) -> None:
    if quiet:
        ctx.ensure_object(Settings).hush()


def _options_everywhere(command: Any) -> Any:
    """Add the options that are taken before and after the name of a command."""
    quiet = click.option(
        *("--quiet", "-q"),
        is_flag=True,
        expose_value=False,
        callback=_hush,
        help="Print only data and errors.",
    )
    # These two are looked for among the arguments: an error may come before they are parsed.
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )
    color = click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        expose_value=False,
        help="Colour the verdicts; auto: on a terminal.",
    )
    return debug(color(quiet(command)))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST},
)
@click.version_option(__version__, "--version", prog_name="vita-ckpt")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    expose_value=False,
    is_eager=True,
    callback=_show_completion,
    help='Print a completion script: eval "$(vita-ckpt --completion bash)".',
)
@_options_everywhere
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Surgery and checkpoint management for VITA multimodal models, without loading them.

    A checkpoint is a path, or on the hub org/name or hf://org/name[@revision][/subfolder].

    Exit codes: 0 clean, 1 findings, 2 wrong usage, 3 bad input or a failed disk.
    """
    _heed_interrupts()  # the command is imported, and is about to begin
    if not gc.isenabled():  # by entry: what was imported stays, and need not be looked at
        gc.freeze()
        gc.enable()
    ctx.ensure_object(Settings)
    # Read by huggingface_hub once something on the hub is asked for: errors are said here.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


@cli.result_callback()
@click.pass_obj
def _report_downloads(settings: Settings, /, result: Any, **_options: object) -> Any:
    """Note how much came from the hub, if anything did."""
    if settings.stores.bytes_downloaded:
        from vita_ckpt.cli import render  # noqa: PLC0415 - only for what is remote

        settings.note(f"{render.size(settings.stores.bytes_downloaded)} moved from the hub")
    return result


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_standard_streams()
    console.prepare()
    # Looked for among the arguments, as --debug is: an error may come before they are parsed.
    for word, choice in pairwise((*arguments, "")):
        given, _, joined = word.partition("=")
        if given == "--color":
            console.choose_colour(joined or choice)
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:  # noqa: PLR0911 - one for each way to end
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(
            arguments,
            prog_name="vita-ckpt",
            complete_var=_COMPLETE_VARIABLE,
            standalone_mode=False,
        )
        sys.stdout.flush()
    except VitaCkptError as error:
        if debug:
            _print_traceback()
        console.warn_of(error)
        return error.exit_code
    except click.exceptions.Abort as error:
        # What was being written says in which state that is left.
        reason = error.__context__  # click 8.1 raises it from None
        state = reason.args if isinstance(reason, KeyboardInterrupt) else ()
        _print_error(f"interrupted: {printable(state[0])}" if state else "interrupted")
        return _INTERRUPTED
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # not in every click
            error.show()
            return error.exit_code
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "vita-ckpt"
        _print_error(f"usage: {printable(_usage(error))} ({command} --help)")
        return error.exit_code
    except BrokenPipeError:
        console.forget_stdout()
        return 0
    except OSError as error:
        if debug:
            _print_traceback()
        _print_error(f"system: {printable(': '.join(_os_error_parts(error)))}")
        console.forget_stdout()
        return 3
    except MemoryError:
        if debug:
            _print_traceback()
        _print_error("system: out of memory")
        return 3
    except Exception as error:  # noqa: BLE001 - the boundary: a bug is said in one line too
        if debug:
            _print_traceback()
        _print_error(
            f"internal-error: {type(error).__name__}: {printable(error)} "
            "(a bug of vita-ckpt: --debug shows where)"
        )
        return 3
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> str:
    """Word a wrong call, and what may have been meant by it, or an example."""
    message, meant = error.format_message(), ""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption):
        have = [name for name, command in _commands() if error.option_name in _options_of(command)]
        if have:  # nearer than a word that looks like it
            message, meant = error.message, f"It is an option of {', '.join(have)}."
        elif error.possibilities:
            return message
    elif isinstance(error, click.MissingParameter):
        meant = _taken_by_an_option(error)
    elif isinstance(error, click.BadParameter):
        meant = _nearest_choice(error)
        context = None  # an example does not show which values there are
    if not meant and context is not None and context.info_name in EXAMPLES:
        meant = f"For example: {EXAMPLES[context.info_name][0]}"
    return f"{message.rstrip('.')}. {meant}" if meant else message


def _taken_by_an_option(error: click.MissingParameter) -> str:
    """Name an option that took the argument that is missing, as --tensors takes a path."""
    if error.ctx is None or error.param is None:
        return ""
    for option in error.ctx.command.params:
        value = error.ctx.params.get(option.name or "")
        if isinstance(getattr(option, "flag_value", None), str) and isinstance(value, str):
            return f"{option.opts[0]} took {value!r}: name {error.param.human_readable_name} first."
    return ""


def _nearest_choice(error: click.BadParameter) -> str:
    kind = error.param.type if error.param is not None else None
    if not isinstance(kind, click.Choice):
        return ""
    word = error.message.partition("'")[2].partition("'")[0]
    return did_you_mean(word, [str(c) for c in kind.choices]).replace("did", "Did", 1)


def _commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in _SUMMARIES:
        command = cli.get_command(context, name)
        if command is not None:
            yield name, command


def _options_of(command: click.Command) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def _open_standard_streams() -> None:
    """Point closed standard streams at nothing: else an output would get their number."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers: the lowest is taken
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open


def _os_error_parts(error: OSError) -> list[str]:
    """Return the file that an error is about, if it is known, and the system's message."""
    subject = [os.fsdecode(error.filename)] if error.filename is not None else []
    return [*subject, (error.strerror or str(error) or type(error).__name__).lower()]


def _print_error(line: str) -> None:
    console.warn(f"error: {line}")


def _print_traceback() -> None:
    import traceback  # noqa: PLC0415 - start-up

    for line in traceback.format_exc().splitlines():
        console.warn(escaped(line))


def _heed_interrupts() -> None:
    """Raise KeyboardInterrupt at a request to end: what was staged is removed on the way out."""
    with contextlib.suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
