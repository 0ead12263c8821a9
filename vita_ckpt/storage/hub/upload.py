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

_BY_ITSELF: Final = 1 << 20
# What is larger goes under its digest; below it, the hub may want the content in the commit.
_LARGEST_CONTENT: Final = 10 << 20
_IGNORED: Final = ".gitignore"  # what it names in the repository, huggingface_hub leaves out
_NOT_HEARD: Final = 429  # of all that may pass, what surely was not done
_COMMITS: Final = re.compile(r"/commit/[^/]+$")


class Uploaded(NamedTuple):
    """The address of the commit, or of the pull request, and the files that it removes."""

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
    """Commit ``files``, paths on the disk or contents by their names, to a model repository.

    The repository is created if there is none, the branch ``revision`` too, but not what
    ``refs/pr/…`` names. Nothing of it is seen before the one commit at the end. Large files that an
    interrupted upload has sent are not sent again. Weights beside them, of what was there before,
    are removed in the same commit: with them it would be ambiguous what is to be loaded. ``check``
    raises if ``files`` are not what they were any more: it is asked just before the commit, when
    all of them have been read, and whenever something fails. Raises HubError where the hub refuses
    or cannot be reached, UsageError if ``private`` is asked for and the repository is public.
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

    if create_pr and revision is not None:  # a repository is not made for one that cannot be
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
    there = retry(lambda: list(api.list_repo_files(repository, revision=revision)))
    removed = tuple(
        sorted(n for n in there if "/" not in n and n not in files and counts_as_weights(n))
    )
    removals = [CommitOperationDelete(name, is_folder=False) for name in removed]
    where = {"repo_id": repository, "revision": revision, "create_pr": create_pr}
    try:
        additions = []
        for name, given in files.items():
            additions.append(addition := CommitOperationAdd(name, _content(given)))
            # So that an interruption costs one file, and waits for no other: several are sent by
            # threads of huggingface_hub, which are waited for.
            is_weights = counts_as_weights(name.rpartition("/")[2])
            if is_weights or addition.upload_info.size >= _BY_ITSELF:
                retry(partial(api.preupload_lfs_files, additions=[addition], **where))
    except Exception:
        check()  # what changed under the upload is the reason, whatever it led to
        raise
    check()
    operations = [*additions, *removals]
    done = retry(lambda: api.create_commit(operations=operations, commit_message=message, **where))
    if _IGNORED in there:
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
    """The result of ``call``; a PassingError for what may be tried again.

    A commit is not, once the hub may have heard of it: its answer may be what was lost.
    """
    try:
        return attempted(subject, call, writing=True)
    except PassingError as passing:
        error, response = passing.error, response_of(passing.error)
        unheard = response is not None and response.status_code == _NOT_HEARD
        if not unheard and _COMMITS.search(path_of(error)):
            hint = "it may be committed all the same: look at its page, then run it again"
            raise error.replaced(hint=hint) from passing
        raise


def _content(given: str | bytes) -> str | bytes:
    """A file is read now, so that nothing can change between the last look and the commit.

    A large one is sent under its digest, and read as it is sent.
    """
    if isinstance(given, bytes) or os.stat(given).st_size >= _LARGEST_CONTENT:
        return given
    with opened(given) as (descriptor, file):
        return read_at(descriptor, file.size, 0, given)
