"""Upload a directory to the hub in one commit; copy there what already lies there."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from vita_ckpt import __version__
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.core.filenames import counts_as_weights
from vita_ckpt.errors import HubError, UsageError, printable
from vita_ckpt.storage.hub.errors import offline
from vita_ckpt.storage.hub.session import PassingError, Session, attempted, path_of, response_of
from vita_ckpt.storage.stores.local import opened, read_at

_SEPARATE_UPLOAD: Final = 1 << 20
# Larger files are uploaded by their digest; the hub may ask for smaller ones in the commit.
_LARGEST_CONTENT: Final = 10 << 20
_IGNORED: Final = ".gitignore"  # huggingface_hub skips the files that it names
_TOO_MANY_REQUESTS: Final = (
    429  # the only temporary status after which a commit was surely not made
)
_COMMITS: Final = re.compile(r"/commit/[^/]+$")
_DUPLICATES: Final = re.compile(r"/lfs-files/duplicate$")
# Nothing has happened when the hub answers so, and it will answer so again.
_REFUSALS: Final = frozenset({*range(400, 500), 501}) - {401, 408, 425, 429}
_PATHS: Final = 500  # of which the hub is asked in one request
_LOCAL_ONLY: Final = "this version of huggingface_hub copies within one repository only"
_OLD_STORAGE: Final = "the hub has them in a storage that it does not copy from"

# From files on the hub by their names: the paths of local copies of them.
Fetch = Callable[[Mapping[str, RemoteFile]], Mapping[str, str]]


class Uploaded(NamedTuple):
    """The address of the commit or of the pull request.

    ``removed`` are the files that it removes, ``copied`` those that were copied on the hub.
    """

    url: str
    removed: tuple[str, ...]
    copied: tuple[str, ...]


class _NotCopiedError(Exception):
    """The hub refuses to copy large files into a repository."""


def upload(
    session: Session,
    repository: str,
    files: Mapping[str, str | bytes],
    check: Callable[[], None],
    *,
    copies: Mapping[str, RemoteFile],
    fetch: Fetch,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
) -> Uploaded:
    """Commit ``files``, given as local paths or as contents by name, to a model repository.

    The repository is created if it does not exist, and so is the branch ``revision``, but not a
    ``refs/pr/…``. Nothing is visible before the single commit at the end. Large files that an
    interrupted upload has sent are not sent again. Other weights in the repository are removed in
    the same commit, since with them it would be ambiguous what to load. ``copies`` are large files
    of one commit on the hub by the names that they get: the hub copies them, and what it does not
    copy is brought here by ``fetch`` and uploaded, which is logged. ``check`` raises if
    ``files`` have changed: it is called just before the commit, when all of them have been read,
    and after every failure. Raises HubError where the hub refuses or cannot be reached, UsageError
    if ``private`` is asked for and the repository is public.
    """
    if session.is_offline:
        raise offline(repository)
    session.check_token(repository)
    from huggingface_hub import (  # noqa: PLC0415 - slow
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
    )

    api: Any = HfApi(library_name="vita-ckpt", library_version=__version__)

    def retry(call: Callable[[], Any]) -> Any:
        return session.retry(lambda: _attempt(repository, call))

    if create_pr and revision is not None:  # do not create a repository if this fails
        retry(lambda: api.model_info(repository, revision=revision))
    retry(lambda: api.create_repo(repository, private=private, exist_ok=True))
    if private and not retry(lambda: api.model_info(repository)).private:
        raise UsageError(
            "repository-is-public",
            repository,
            expected="a private repository, or none yet",
            got="a public one",
            hint="make it private on its page, or leave --private out",
        )
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        retry(lambda: api.create_branch(repository, branch=revision, exist_ok=True))
    existing = retry(lambda: list(api.list_repo_files(repository, revision=revision)))
    kept = {*files, *copies}
    removed = tuple(
        sorted(n for n in existing if "/" not in n and n not in kept and counts_as_weights(n))
    )
    removals = [CommitOperationDelete(name, is_folder=False) for name in removed]
    where = {"repo_id": repository, "revision": revision, "create_pr": create_pr}
    additions: list[Any] = []

    def add(given: Mapping[str, str | bytes]) -> None:
        for name, content in given.items():
            additions.append(addition := CommitOperationAdd(name, _content(content)))
            # One file at a time, so that an interruption loses one file only. huggingface_hub sends
            # several files in threads, and waits for all of them.
            is_weights = counts_as_weights(name.rpartition("/")[2])
            if is_weights or addition.upload_info.size >= _SEPARATE_UPLOAD:
                retry(partial(api.preupload_lfs_files, additions=[addition], **where))

    def bring(names: Collection[str], why: str) -> None:
        _log_fetched(repository, len(names), why)
        add(fetch({name: copies[name] for name in names}))

    copying, why = retry(lambda: _copies(api, repository, copies))
    try:
        add(files)
        if len(copying) < len(copies):
            bring(copies.keys() - copying.keys(), why)
    except Exception:
        check()  # a file that changed meanwhile is the cause of the error
        raise

    def commit() -> Any:
        check()
        operations = [*additions, *copying.values(), *removals]
        return retry(lambda: _commit(api, operations=operations, commit_message=message, **where))

    try:
        done = commit()
    except _NotCopiedError as refused:
        names, copying = list(copying), {}
        bring(names, str(refused))
        done = commit()
    if _IGNORED in existing or copying:
        tree = retry(
            lambda: list(api.list_repo_tree(repository, revision=done.oid, recursive=True))
        )
        _check_complete(repository, tree, kept, {name: copies[name] for name in copying})
    return Uploaded(str(done.pr_url or done.commit_url), removed, tuple(sorted(copying)))


def _copies(
    api: Any, repository: str, copies: Mapping[str, RemoteFile]
) -> tuple[dict[str, Any], str]:
    """Return the operations that copy files, of those that can be copied, and why others cannot."""
    from huggingface_hub import CommitOperationCopy  # noqa: PLC0415 - slow

    source = next(iter(copies.values()), None)
    if source is None:
        return {}, ""
    away: dict[str, Any] = {}
    movable = {file.name for file in copies.values()}
    if source.repository != repository:
        if "src_repo_id" not in {field.name for field in dataclasses.fields(CommitOperationCopy)}:
            return {}, _LOCAL_ONLY
        away = {"src_repo_id": source.repository, "src_repo_type": "model"}
        names = sorted(movable)
        movable = set()
        for start in range(0, len(names), _PATHS):
            found = api.get_paths_info(
                source.repository, names[start : start + _PATHS], revision=source.commit
            )
            movable |= {file.path for file in found if getattr(file, "xet_hash", None)}
    operations = {
        name: CommitOperationCopy(file.name, name, src_revision=file.commit, **away)
        for name, file in copies.items()
        if file.name in movable
    }
    return operations, _OLD_STORAGE


def _commit(api: Any, **given: Any) -> Any:
    """Commit. Raises _NotCopiedError where the hub refuses to copy, before it commits anything."""
    import huggingface_hub.errors as known  # noqa: PLC0415 - slow

    try:
        return api.create_commit(**given)
    except getattr(known, "FileDuplicationError", ()) as error:
        raise _NotCopiedError(str(error).partition("\n")[2].strip() or str(error)) from error
    except Exception as error:
        response = response_of(error)
        if (
            response is not None
            and response.status_code in _REFUSALS
            and _DUPLICATES.search(path_of(error))
        ):
            raise _NotCopiedError(f"it answers {response.status_code}") from error
        raise


def _log_fetched(repository: str, count: int, why: str) -> None:
    files = "1 file is" if count == 1 else f"{count} files are"
    text = f"{repository}: {files} downloaded and uploaded, not copied on the hub: {why}"
    logging.getLogger("vita_ckpt").warning(printable(text))


def _check_complete(
    repository: str,
    tree: Collection[Any],
    names: Collection[str],
    copies: Mapping[str, RemoteFile],
) -> None:
    """Raise HubError for files that were not committed, or copied from something else."""
    there = {e.path: getattr(getattr(e, "lfs", None), "sha256", "") for e in tree}
    missing = sorted(set(names) - there.keys())
    if missing:
        raise HubError(
            "hub-failed",
            repository,
            expected="every file in the commit",
            got=f"a commit without {', '.join(missing)}",
            hint=f"remove {_IGNORED} from the repository, which names them, and push again",
        )
    other = [n for n, f in copies.items() if there[n] != f.etag]
    if other:
        raise HubError(
            "hub-failed",
            repository,
            expected=f"copies with the digests of {copies[other[0]].repository}",
            got=f"a commit with others, of {', '.join(sorted(other))}",
            hint="write to a directory with --out, then vita-ckpt push",
        )


def _attempt(subject: str, call: Callable[[], Any]) -> Any:
    """Return the result of ``call``. Raises PassingError if it may be retried.

    A commit is not retried once the hub may have received it, since only its response may be lost.
    """
    try:
        return attempted(subject, call, writing=True)
    except PassingError as passing:
        error, response = passing.error, response_of(passing.error)
        is_rejected = response is not None and response.status_code == _TOO_MANY_REQUESTS
        if not is_rejected and _COMMITS.search(path_of(error)):
            hint = "it may be committed all the same: look at its page, then run it again"
            raise error.replaced(hint=hint) from passing
        raise


def _content(given: str | bytes) -> str | bytes:
    """Read a small file now, so that it cannot change between the last check and the commit.

    A large file is sent by its digest, and read while it is sent.
    """
    if isinstance(given, bytes) or os.stat(given).st_size >= _LARGEST_CONTENT:
        return given
    with opened(given) as (descriptor, file):
        return read_at(descriptor, file.size, 0, given)
