"""Turn refusals of the hub into errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vita_ckpt.errors import HubError

_LOG_IN: Final = "hf auth login, or HF_TOKEN"

# What an answer means: what was expected, and what to do.
MEANINGS: Final[Mapping[str, tuple[str, str]]] = {
    "repository-gated": (
        "access to it",
        f"accept its conditions on its page on the hub, then {_LOG_IN}",
    ),
    "revision-not-found": (
        "a branch, a tag or a commit of the repository",
        "it was renamed, removed or rewritten: look at the repository's branches",
    ),
    "not-on-hub": ("the file, as the hub listed it", "run the command again"),
    "token-refused": ("a valid token that may do this", f"{_LOG_IN}, with a token that may"),
    "repository-not-found": (
        "a repository that can be seen from here",
        f"check the name; if it is private, {_LOG_IN} of an account that may see it",
    ),
    "hub-forbids": ("permission", f"{_LOG_IN} of an account, and with a token, that may do this"),
    "branch-moved": (
        "the branch as it was",
        "somebody else pushed to it meanwhile: look at it, then run the command again",
    ),
    "rate-limited": (
        "an answer",
        f"wait some minutes; who is logged in ({_LOG_IN}) may ask more often",
    ),
    "hub-failed": ("an answer", "try again later; if it stays so, look at HF_ENDPOINT"),
}
_OF_CODE: Final = {
    "GatedRepo": "repository-gated",
    "RevisionNotFound": "revision-not-found",
    "EntryNotFound": "not-on-hub",
    "RepoNotFound": "repository-not-found",
}
_OF_STATUS: Final = {
    401: "repository-not-found",  # of what is private and of what is not there alike
    403: "hub-forbids",
    404: "repository-not-found",
    409: "branch-moved",
    412: "branch-moved",
    429: "rate-limited",
}


def refusal(
    status: int, headers: Mapping[str, str], subject: str, *, writing: bool = False
) -> HubError:
    """The error for an answer of the hub: ``headers`` by their lower-case names."""
    said = headers.get("x-error-message", "")
    code = _OF_CODE.get(headers.get("x-error-code", "")) or _OF_STATUS.get(status, "hub-failed")
    if status == 401 and (writing or "credentials" in said.lower()):
        code = "token-refused"
    expected, hint = MEANINGS[code]
    return HubError(code, subject, expected=expected, got=said or f"status {status}", hint=hint)


def unusable_token(subject: str) -> HubError:
    """The error for a token that no hub has given."""
    expected, hint = MEANINGS["token-refused"]
    got = "one with other characters than a token has"
    return HubError("token-refused", subject, expected=expected, got=got, hint=hint)


def unreachable(subject: str, error: Exception) -> HubError:
    """The error for a hub that cannot be reached."""
    return HubError(
        "hub-unreachable",
        subject,
        expected="an answer of the hub",
        got=str(error).partition("\n")[0] or type(error).__name__,
        hint="check the network, the proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 reads the cache alone",
    )


def offline(subject: str) -> HubError:
    """The error for what would have to be fetched while HF_HUB_OFFLINE is set."""
    return HubError(
        "hub-offline",
        subject,
        expected="it in the cache, since HF_HUB_OFFLINE is set",
        got="nothing there",
        hint="unset HF_HUB_OFFLINE, or download it before (hf download)",
    )
