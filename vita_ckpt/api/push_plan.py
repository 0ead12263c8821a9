"""Push what a plan makes of a base on the hub, without moving what it leaves as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from vita_ckpt.api.apply import Flushed, lay_out, unmeasured, write_result
from vita_ckpt.api.destination import check_destination, check_pushable
from vita_ckpt.api.fetch import fetched_files
from vita_ckpt.api.plans.values import check_fetched
from vita_ckpt.api.push import push_directory
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.core.options import Options
from vita_ckpt.core.outcomes import Push
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.report import Report
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.system.os_errors import io_error
from vita_ckpt.storage.system.owner import stage_name
from vita_ckpt.storage.tensors.stream import not_said
from vita_ckpt.storage.writing.layout import plan_layout


def push_plan(
    plan: Plan,
    repository: str,
    *,
    options: Options = Options(),
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
    stores: Stores | None = None,
) -> Push:
    """Push what ``plan`` makes of a base on the hub to the model repository ``org/name``.

    Only the weight files that it changes, and small files, are downloaded, written and uploaded;
    the hub copies the others from the base's commit to the repository. Where it cannot, they are
    downloaded and uploaded too, which is logged. What it makes is validated before, by the headers
    of what is copied; with errors nothing is uploaded. One commit holds everything, as with
    :func:`push`, which raises the same. What is written lies in the system's temporary directory
    until it is uploaded. ``options.link`` and ``options.check`` do not matter.

    Raises UsageError for a base that is not on the hub, and what :func:`apply` raises.
    """
    check_destination(repository, revision)
    check_pushable(plan)
    stores = Stores() if stores is None else stores
    whole = unmeasured(plan, options, stores)
    copies = {
        file.name: file.source
        for file in lay_out(plan, options).carried
        if isinstance(file.source, RemoteFile) and file.source.is_large
    }
    shards = {shard.name for shard in plan.base.shards} - whole
    outlined = {name: file for name, file in copies.items() if name in shards}
    lays_out = partial(plan_layout, plan, options.carry)
    with _folder() as folder:
        root = os.path.join(folder, repository.rpartition("/")[2])
        with fetched_files(plan, lays_out, folder, stores, outlined.values()) as here:
            check_fetched(plan, here)
            as_links = replace(options, link="symlink", check=False)
            write_result(here, root, as_links, on_progress, flushed, stores)
            done = push_directory(
                root,
                repository,
                private=private,
                revision=revision,
                create_pr=create_pr,
                force=False,
                message=message or f"{plan.operation} of {plan.base.root} with vita-ckpt",
                stores=stores,
                copies=copies,
                outlined=frozenset(os.path.join(root, name) for name in outlined),
            )
    return replace(done, report=_moved(done.report, root, f"hf://{repository}"))


@contextmanager
def _folder() -> Iterator[str]:
    """Yield a new folder in the system's temporary directory, which is removed at the end."""
    path = os.path.join(os.path.realpath(tempfile.gettempdir()), stage_name())
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise io_error(error, path, "nothing is left") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _moved(report: Report, root: str, address: str) -> Report:
    """Return a report on a directory as one on the repository that it was to become."""
    findings = tuple(
        replace(
            found,
            subject=found.subject.replace(root, address),
            message=found.message.replace(root, address),
            hint=found.hint.replace(root, address),
            file=found.file.replace(root, address),
        )
        for found in report.findings
    )
    return replace(report, path=address, findings=findings)
