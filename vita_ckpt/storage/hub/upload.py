"""A directory to the hub: large files one after another, then one commit that holds everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from vita_ckpt import __version__
from vita_ckpt.errors import HubError, UsageError
from vita_ckpt.storage.hub.refusals import offline
from vita_ckpt.storage.hub.repository import hub
from vita_ckpt.storage.hub.session import PassingError, translated

_BY_ITSELF: Final = 1 << 20
# What may be over soon, said by a server or by the network.
_PASSING: Final = ("hub-unreachable", "hub-failed", "rate-limited")


def upload(
    repository: str,
    files: Mapping[str, str | bytes],
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
) -> str:
    """Commit ``files``, paths on the disk or contents by their names, to a model repository.

    The repository is created if there is none, the branch ``revision`` too. Nothing of it is seen
    before the one commit at the end. Large files that an interrupted upload has sent are not sent
    again. Returns the address of the commit, or of the pull request with ``create_pr``. Raises
    HubError where the hub refuses or cannot be reached, UsageError if ``private`` is asked for and
    the repository is public.
    """
    if hub().session.is_offline:
        raise offline(repository)
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - slow

    api: Any = HfApi(library_name="vita-ckpt", library_version=__version__)

    def patiently(call: Callable[[], Any]) -> Any:
        return hub().session.patiently(lambda: _attempt(repository, call))

    patiently(lambda: api.create_repo(repository, private=private, exist_ok=True))
    if private and not patiently(lambda: api.model_info(repository)).private:
        raise UsageError(
            "repository-is-public",
            repository,
            expected="a private repository, or none yet",
            got="a public one",
            hint="make it private on its page, or leave --private out",
        )
    if revision is not None and not create_pr:
        patiently(lambda: api.create_branch(repository, branch=revision, exist_ok=True))
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    where = {"repo_id": repository, "revision": revision, "create_pr": create_pr}
    for operation in operations:
        if operation.upload_info.size >= _BY_ITSELF:  # so that an interruption costs one file
            patiently(partial(api.preupload_lfs_files, additions=[operation], **where))
    done = patiently(
        lambda: api.create_commit(operations=operations, commit_message=message, **where)
    )
    return str(done.pr_url or done.commit_url)


def _attempt(subject: str, call: Callable[[], Any]) -> Any:
    try:
        with translated(subject, writing=True):
            return call()
    except HubError as error:
        if error.code in _PASSING:
            raise PassingError(error) from error
        raise
