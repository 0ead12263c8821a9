"""Validate several checkpoints, one after the other or in processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vita_ckpt.api.locate import StrPath, locate, open_checkpoint
from vita_ckpt.api.ranks import told_to_all
from vita_ckpt.api.validate import validate
from vita_ckpt.core import kinds
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.report import Report, has_errors, worst_first
from vita_ckpt.core.team import ALONE
from vita_ckpt.errors import InputError, VitaCkptError
from vita_ckpt.storage.reading.paths import Stores

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

_One = Callable[..., Report | VitaCkptError]


def validate_all(
    paths: Sequence[StrPath],
    *,
    kind: str | None = None,
    values: bool = False,
    deep: bool = False,
    loader: str | None = None,
    key: str | None = None,
    verify: bool = False,
    golden: StrPath | None = None,
    jobs: int = 1,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Report | VitaCkptError]:
    """Yield the report of each path, or the error that prevented it, in order; ``jobs`` at once.

    ``ranks``, of which each makes the same call, share the bytes of one path after the other.
    """
    one = partial(
        _report_or_error,
        kind=kind,
        values=values,
        deep=deep,
        loader=loader,
        key=key,
        verify=verify,
        golden=golden,
    )
    stores = Stores() if stores is None else stores
    if jobs == 1 or len(paths) == 1 or ranks is not None:
        for number, path in enumerate(paths, 1):
            watch = _of(number, len(paths), on_progress)
            yield one(path, on_progress=watch, stores=stores, ranks=ranks)
        return
    # Whether to say what is looked for on the hub is known in this process only.
    located = [_located(path, stores) for path in paths]
    results = _by_processes(one, [p for p in located if isinstance(p, str)], jobs)
    with closing(results):  # an interrupt is raised then too
        for number, place in enumerate(located, 1):
            on_progress(f"checkpoint {number} of {len(paths)}", 0, 0)
            if isinstance(place, str):
                report, nbytes = next(results)
                stores.count_downloaded(nbytes)
                yield report
            else:
                yield place


def _of(number: int, count: int, on_progress: OnProgress) -> OnProgress:
    """Return ``on_progress``, which is told too which of several checkpoints it is about."""
    if count == 1:
        return on_progress
    return lambda what, *sizes: on_progress(f"{number} of {count}: {what}", *sizes)


def _by_processes(
    one: _One, paths: Sequence[str], jobs: int
) -> Generator[tuple[Report | VitaCkptError, int], None, None]:
    """Call ``one`` with each path in several processes: threads would take turns at parsing."""
    import logging  # noqa: PLC0415 - slow, seldom needed

    from vita_ckpt.storage.system.processes import evaluate_each  # noqa: PLC0415 - start-up

    level = logging.getLogger("vita_ckpt").level
    try:
        yield from evaluate_each(partial(_counted, one, level), paths, workers=jobs)
    except InputError as error:  # of a process: what is wrong with a path is returned
        raise error.replaced(hint="ask for fewer at once") from error


def _counted(one: _One, level: int, path: str) -> tuple[Report | VitaCkptError, int]:
    """Return the result for a path, and the number of bytes that came from the hub for it."""
    import logging  # noqa: PLC0415 - slow, seldom needed

    logging.getLogger("vita_ckpt").setLevel(level)
    stores = Stores()
    return one(path, stores=stores), stores.bytes_downloaded


def _located(path: StrPath, stores: Stores) -> str | VitaCkptError:
    """Return where ``path`` leads, or the error for it."""
    try:
        return locate(path, stores)
    except VitaCkptError as error:
        return error


def _report_or_error(
    path: StrPath,
    *,
    kind: str | None,
    values: bool,
    deep: bool,
    loader: str | None,
    key: str | None,
    verify: bool,
    golden: StrPath | None,
    on_progress: OnProgress = unwatched,
    stores: Stores,
    ranks: Ranks | None = None,
) -> Report | VitaCkptError:
    """Return the report on one path, or the error that kept it from being made."""
    try:
        report = validate(
            path,
            kind=kind,
            values=values,
            deep=deep,
            loader=loader,
            key=key,
            on_progress=on_progress,
            stores=stores,
            ranks=ranks,
        )
        if verify and report.kind in kinds.WHOLE and not has_errors(report.findings):
            from vita_ckpt.api.verify import verify as run  # noqa: PLC0415 - only when asked for

            with told_to_all(ranks), (ALONE if ranks is None else ranks).agreement():
                chosen = path if key is None else open_checkpoint(path, key=key, stores=stores)
            found = run(
                chosen, golden=golden, on_progress=on_progress, stores=stores, ranks=ranks
            ).findings
            known = {(f.rule, f.subject) for f in report.findings}
            more = [f for f in found if (f.rule, f.subject) not in known]
            report = replace(report, findings=worst_first([*report.findings, *more]))
    except VitaCkptError as error:
        if ranks is not None and ranks.ended:
            raise
        return error
    return report
