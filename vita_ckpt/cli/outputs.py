"""Where reports go: ``--format`` to stdout, ``--output FORMAT=FILE`` to files, several at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from vita_ckpt.api.locate import local
from vita_ckpt.cli import completion, console
from vita_ckpt.cli.formats import FORMATS, renderer
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import UsageError

if TYPE_CHECKING:
    from vita_ckpt.checks.rules import Rule
    from vita_ckpt.core.report import Report, Selection

_Command = Callable[..., Any]

# GitHub names the file of a step's summary here; all commands of the step share it.
_JOB_SUMMARY: Final = "GITHUB_STEP_SUMMARY"
# What people read: JSON, SARIF and JUnit keep everything.
_FOR_PEOPLE: Final = ("text", "markdown", "github")
_MOST_LINKS: Final = 40


@dataclass(frozen=True, slots=True)
class Output:
    """A report that goes to a file: the format, and the path as it was given.

    ``given_as`` is the option in words, where it was not ``--output``.
    """

    format: str
    path: str
    given_as: str = ""

    @property
    def option(self) -> str:
        """The option that asked for it."""
        return self.given_as or f"--output {self.format}={self.path}"

    @property
    def alternative(self) -> str:
        """What to do where the path is no place for a report."""
        return "name another path" if self.given_as else "--format prints to stdout"


def report_options(command: _Command) -> _Command:
    """``--format`` and ``--output``, as the parameters ``report_format`` and ``outputs``."""
    for option in (
        click.option(
            "--output",
            "outputs",
            multiple=True,
            metavar="FORMAT=FILE",
            shell_complete=completion.one_of(FORMATS, end="="),
            callback=lambda _context, _option, values: tuple(_output(value) for value in values),
            help="Write the report to a file too, over an older one. Can be repeated.",
        ),
        click.option(
            "--format",
            "report_format",
            default="text",
            show_default=True,
            metavar="FORMAT",
            shell_complete=completion.one_of(FORMATS),
            callback=lambda _context, _option, value: _known(value, "--format"),
            help=f"What to print: {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
        ),
    ):
        command = option(command)
    return command


def html_option(command: _Command) -> _Command:
    """``--html``, as the parameter ``page``: an Output, or None."""
    option = click.option(
        "--html",
        "page",
        metavar="FILE",
        callback=lambda _context, _option, value: None if value is None else _page(value),
        help="Write a page for a browser too: one file, which runs and loads nothing.",
    )
    return option(command)


def check_outputs(outputs: Iterable[Output], checkpoints: Iterable[str]) -> None:
    """Raise UsageError unless every output may be written: before work that takes minutes.

    A report replaces nothing but a regular file, follows no link that somebody else could have put
    there, and never replaces one of ``checkpoints`` (paths of
    directories and weight files) or in one of them.
    """
    roots = [os.path.realpath(checkpoint) for checkpoint in checkpoints]
    taken: set[str] = set()
    for output in outputs:
        path = _target(output)
        subject = output.option
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UsageError(
                "not-a-regular-file",
                subject,
                expected="a file, or a path that does not exist yet",
                hint="name a file in it" if os.path.isdir(path) else output.alternative,
            )
        if not os.path.isdir(os.path.dirname(path)):
            raise UsageError(
                "no-output-directory", subject, expected="a directory to write to", hint="make it"
            )
        if any(path == root or path.startswith(os.path.join(root, "")) for root in roots):
            raise UsageError(
                "output-overlaps-input",
                subject,
                expected="a path outside every checkpoint",
                hint="write it beside the checkpoint",
            )
        if path in taken:
            raise UsageError(
                "outputs-collide",
                subject,
                expected="a file of its own for each report",
                hint="name another file",
            )
        taken.add(path)


def deliver(
    reports: Sequence[Report],
    rules: Mapping[str, Rule],
    report_format: str | None,
    outputs: Iterable[Output],
    own: Mapping[str, Callable[[], str]] | None = None,
    selection: Selection | None = None,
    *,
    every: bool = False,
) -> None:
    """Write ``reports`` to every output, then to stdout if a format is given.

    Raises OutputError if the disk refuses.

    That nobody reads stdout to its end changes nothing in what a command found, and exits with.
    Formats for people say once what is alike of many tensors, unless ``every`` finding is wanted.
    ``own`` are the formats in which a command has more to say than a report.
    """

    chosen = () if selection is None else (selection,)

    def rendered(name: str) -> str:
        if own and name in own:
            return own[name]()
        short = name in _FOR_PEOPLE and not every
        shown = [report.condensed() for report in reports] if short else reports
        return renderer(name)(shown, rules, *chosen)

    for output in outputs:
        write_output(output, rendered(output.format))
    if report_format is None:
        return
    text = rendered(report_format)
    try:
        # The commands of github are its own: in them every name is escaped.
        text = text if report_format == "github" else console.harmless(text)
        console.write(console.coloured(text, sys.stdout) if report_format == "text" else text)
    except BrokenPipeError:
        console.forget_stdout()


def write_output(output: Output, text: str) -> None:
    """Write a report where it goes. Raises OutputError if the disk refuses."""
    append = output.path == os.environ.get(_JOB_SUMMARY)
    from vita_ckpt.api.reports import write_report  # noqa: PLC0415 - start-up

    write_report(_target(output), text, append=append)


def _target(output: Output) -> str:
    """Return the path that is written, with its links followed.

    Raises UsageError for a link in a folder that others can write to, since they may have put it
    there: for the last component always, for a folder unless the link is ours or the system's.
    """
    place = os.path.abspath(output.path)
    pending = place.split(os.sep)[1:]
    real, hops = os.sep, 0
    while pending:
        name = pending.pop(0)
        step = os.path.join(real, name)
        if name in ("", os.curdir):
            continue
        if name == os.pardir:
            real = os.path.dirname(real)
        elif not os.path.islink(step):
            real = step
        else:
            is_last = not pending
            hops += 1
            if hops > _MOST_LINKS or _may_be_planted(step, is_last=is_last):
                raise UsageError(
                    "output-is-a-link",
                    output.option,
                    expected="a path without links that others could have put there",
                    got=f"a link at {step}",
                    hint="remove the link, or name the file that it leads to",
                )
            target = os.readlink(step)
            real = os.sep if os.path.isabs(target) else real
            pending = [*target.split(os.sep), *pending]
    return real


def _may_be_planted(link: str, *, is_last: bool) -> bool:
    """Return whether somebody else may have put a link where it is."""
    folder, own = os.stat(os.path.dirname(link)), (0, os.geteuid())
    others_write = folder.st_mode & 0o022 != 0 or folder.st_uid not in own
    return others_write and (is_last or os.lstat(link).st_uid not in own)


def _output(value: str) -> Output:
    name, equals, path = value.partition("=")
    if not equals or path in ("", "-"):
        raise UsageError(
            "invalid-output",
            f"--output {value}",
            expected="FORMAT=FILE, such as junit=report.xml",
            hint="--format prints to stdout",
        )
    return Output(_known(name, f"--output {value}"), local(path))


def _page(path: str) -> Output:
    option = f"--html {path}"
    if path == "-":
        raise UsageError("invalid-output", option, expected="a file", hint="such as report.html")
    return Output("html", local(path), option)


def _known(name: str, subject: str) -> str:
    if name not in FORMATS:
        raise UsageError(
            "unknown-format",
            subject,
            expected=", ".join(FORMATS),
            got=name or "no format",
            hint=did_you_mean(name, FORMATS),
        )
    return name
