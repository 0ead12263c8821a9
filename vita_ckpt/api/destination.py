"""Check whether something can be pushed, and where to, before it is made."""

from __future__ import annotations

import os

from vita_ckpt.api.apply import makes_a_file
from vita_ckpt.core.address import is_inside, is_remote, looks_like_repository
from vita_ckpt.core.plan import Plan
from vita_ckpt.errors import UsageError


def check_destination(repository: str, revision: str | None) -> None:
    """Raise UsageError for what is no name of a repository, or of a branch."""
    if not looks_like_repository(repository):
        raise UsageError(
            "invalid-repository",
            repository,
            expected="org/name",
            got="a path on this machine" if os.path.lexists(repository) else "",
            hint="DIR comes first: vita-ckpt push DIR ORG/NAME"
            if os.path.isdir(repository)
            else "the hub names a repository by its user or organization and its name",
        )
    if revision == "" or not is_inside(revision or ""):
        got = revision or "no name"
        raise UsageError("invalid-revision", "--revision", expected="a branch", got=got)


def check_pushable(plan: Plan) -> None:
    """Raise UsageError unless :func:`push_plan` can push what ``plan`` makes."""
    if plan.record is None or makes_a_file(plan):
        raise UsageError(
            "not-a-directory",
            plan.operation,
            expected="a surgery of a checkpoint",
            got="one that makes something else",
            hint="write it with --out, then vita-ckpt push",
        )
    if not is_remote(plan.base.root):
        raise UsageError(
            "base-not-on-hub",
            plan.base.root,
            expected="a base on the hub, whose unchanged files are copied there",
            got="a path on this machine",
            hint="write to a new directory with --out, then vita-ckpt push",
        )
