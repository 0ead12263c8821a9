"""The root command: its options, the commands below it, and the one place where errors end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from vita_ckpt import __version__
from vita_ckpt.cli import console
from vita_ckpt.errors import VitaCkptError, escaped, printable

if TYPE_CHECKING:
    from vita_ckpt import Stores

_COMPLETE_VARIABLE: Final = "_VITA_CKPT_COMPLETE"
_INTERRUPTED: Final = 130

# Imported only when they are run: a command costs what it needs.
_COMMANDS: Final = {
    "inspect": "vita_ckpt.cli.commands.inspect",
    "diff": "vita_ckpt.cli.commands.diff",
    "extract-projector": "vita_ckpt.cli.commands.extract_projector",
    "merge-projector": "vita_ckpt.cli.commands.merge_projector",
    "swap-tower": "vita_ckpt.cli.commands.swap_tower",
    "extract-tower": "vita_ckpt.cli.commands.extract_tower",
    "merge-audio-adapter": "vita_ckpt.cli.commands.merge_audio_adapter",
    "extract-audio-adapter": "vita_ckpt.cli.commands.extract_audio_adapter",
    "swap-audio-encoder": "vita_ckpt.cli.commands.swap_audio_encoder",
    "extract-audio-encoder": "vita_ckpt.cli.commands.extract_audio_encoder",
    "set": "vita_ckpt.cli.commands.set",
    "explain": "vita_ckpt.cli.commands.explain",
    "apply": "vita_ckpt.cli.commands.apply",
    "history": "vita_ckpt.cli.commands.history",
    "undo": "vita_ckpt.cli.commands.undo",
    "recover": "vita_ckpt.cli.commands.recover",
    "clean": "vita_ckpt.cli.commands.clean",
    "verify": "vita_ckpt.cli.commands.verify",
    "validate": "vita_ckpt.cli.commands.validate",
    "rules": "vita_ckpt.cli.commands.rules",
    "push": "vita_ckpt.cli.commands.push",
}


@dataclass(frozen=True)
class Settings:
    """The options of the root command, for the commands below it."""

    quiet: bool
    debug: bool

    @cached_property
    def stores(self) -> Stores:
        """The stores of this run: one session with the hub."""
        from vita_ckpt import Stores  # noqa: PLC0415 - start-up

        return Stores()

    def note(self, text: str) -> None:
        """Say something beside the data: to stderr, unless quiet."""
        if not self.quiet:
            console.warn(printable(text))


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[cmd_name]).command
        return command

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
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - seldom needed

    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - the choices are click's own
    click.echo(completion(cli, {}, "vita-ckpt", _COMPLETE_VARIABLE).source())
    ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", prog_name="vita-ckpt")
@click.option("--quiet", "-q", is_flag=True, help="No notes and no progress, only data and errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    expose_value=False,
    is_eager=True,
    callback=_show_completion,
    help='Print a completion script: eval "$(vita-ckpt --completion bash)".',
)
@click.pass_context
def cli(ctx: click.Context, quiet: bool, debug: bool) -> None:
    """Surgery and checkpoint management for VITA multimodal models, without loading them.

    A checkpoint is a path, or on the hub org/name or hf://org/name[@revision][/subfolder].

    Exit codes: 0 clean, 1 findings, 2 wrong usage, 3 bad input or a failed disk.
    """
    _heed_interrupts()  # the command is imported, and is about to begin
    ctx.obj = Settings(quiet, debug)
    # Read by huggingface_hub once something on the hub is asked for: errors are said here.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if quiet:
        import logging  # noqa: PLC0415 - slow, seldom needed

        logging.getLogger("vita_ckpt").setLevel(logging.ERROR)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


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
        _print_error(str(error))
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
        _print_error(f"usage: {printable(error.format_message())} ({command} --help)")
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
    except Exception as error:  # noqa: BLE001 - the boundary: a bug is said in one line too
        if debug:
            _print_traceback()
        _print_error(
            f"internal-error: {type(error).__name__}: {printable(error)} "
            "(a bug of vita-ckpt: --debug shows where)"
        )
        return 3
    return result if isinstance(result, int) else 0


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
