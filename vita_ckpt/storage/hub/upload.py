"""Upload a directory to the hub in one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from vita_ckpt import __version__
from vita_ckpt.core.filenames import counts_as_weights
from vita_ckpt.errors import HubError, UsageError
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


class Uploaded(NamedTuple):
    """The address of the commit or of the pull request, and the files that it removes."""

    url: str
    removed: tuple[str, ...]


def upload(
    session: Session,
    repository: str,
    files: Mapping[str, str | bytes],
    check: Callable[[], None],
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
) -> Uploaded:
    """Commit ``files``, given as local paths or as contents by name, to a model repository.

    The repository is created if it does not exist, and so is the branch ``revision``, but not a
    ``refs/pr/…``. Nothing is visible before the single commit at the end. Large files that an
    interrupted upload has sent are not sent again. Other weights in the repository are removed in
    the same commit, since with them it would be ambiguous what to load. ``check`` raises if
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
    removed = tuple(
        sorted(n for n in existing if "/" not in n and n not in files and counts_as_weights(n))
    )
    removals = [CommitOperationDelete(name, is_folder=False) for name in removed]
    where = {"repo_id": repository, "revision": revision, "create_pr": create_pr}
    try:
        additions = []
        for name, given in files.items():
            additions.append(addition := CommitOperationAdd(name, _content(given)))
            # One file at a time, so that an interruption loses one file only. huggingface_hub sends
            # several files in threads, and waits for all of them.
            is_weights = counts_as_weights(name.rpartition("/")[2])
            if is_weights or addition.upload_info.size >= _SEPARATE_UPLOAD:
                retry(partial(api.preupload_lfs_files, additions=[addition], **where))
    except Exception:
        check()  # a file that changed meanwhile is the cause of the error
        raise
    check()
    operations = [*additions, *removals]
    done = retry(lambda: api.create_commit(operations=operations, commit_message=message, **where))
    if _IGNORED in existing:
        committed = retry(lambda: {*api.list_repo_files(repository, revision=done.oid)})
        _check_complete(repository, sorted(files.keys() - committed))
    return Uploaded(str(done.pr_url or done.commit_url), removed)


def _check_complete(repository: str, missing: list[str]) -> None:
    """Raise HubError for files that were not committed."""
    if missing:
        raise HubError(
            "hub-failed",
            repository,
            expected="every file in the commit",
            got=f"a commit without {', '.join(missing)}",
            hint=f"remove {_IGNORED} from the repository, which names them, and push again",
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
