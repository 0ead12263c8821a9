"""Make requests to the hub: headers, redirects, retries, and a count of the bytes moved.

All requests use the HTTP session of huggingface_hub (requests or httpx, depending on its version),
so that proxies, certificates and other settings of its users apply here too.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from itertools import islice
from threading import BoundedSemaphore, Lock
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

from vita_ckpt import __version__
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import HubError, OutputError, printable
from vita_ckpt.storage.hub.concurrency import MANY
from vita_ckpt.storage.hub.errors import offline, refusal, unreachable, unusable_token
from vita_ckpt.storage.system.os_errors import CODES, code_of

_T = TypeVar("_T")

_TIMEOUT: Final = 20.0  # seconds to connect, and between two pieces of a response
_CHUNK: Final = 1 << 14  # bytes per piece, which is what a broken connection loses
_MOST_REDIRECTS: Final = 5
_MOST_TRIES: Final = 5
_MOST_DRAINED: Final = 8  # pieces of a body that are read before following a redirect
_FIRST_WAIT: Final = 0.25  # seconds; doubled each time
_LONGEST_WAIT: Final = 60.0
_UNLOGGED_WAIT: Final = 3.0  # seconds; longer waits are logged
# Status codes that may be temporary: the server is busy or fails.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GIVEN: Final = frozenset({200, 206, 416})  # the file, a part of it, or that there is no such part
# Errors that only a disk raises; EPERM may also come from a firewall.
_DISK_ERRORS: Final = CODES.keys() - {errno.EPERM}
# Seconds until the rate limit resets, if it is used up: the hub sends it in every response.
_LIMIT_RESETS: Final = re.compile(r"\br=0;t=([0-9]{1,6})\b", re.ASCII)
_TOKEN: Final = re.compile(r"Bearer [!-~]+", re.ASCII)
_URL: Final = re.compile(r"https?://[!-~]+", re.ASCII | re.IGNORECASE)


class PassingError(Exception):
    """A temporary failure: a broken connection or a busy server.

    ``wait`` is the delay in seconds that the server asked for.
    """

    def __init__(self, error: HubError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body was not read yet; names of headers are in lower case.

    ``on_the_way`` are the headers of the hub's own responses that redirected to another server.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    on_the_way: Mapping[str, str] = field(default_factory=dict)


class Session:
    """A session with the hub, shared by all threads. ``bytes_downloaded`` counts bodies."""

    def __init__(
        self, endpoint: str | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        from huggingface_hub import constants  # noqa: PLC0415 - slow

        self.endpoint: str = endpoint or constants.ENDPOINT
        self.is_offline = constants.HF_HUB_OFFLINE
        self.bytes_downloaded = 0
        self._sleep = sleep
        self._logged_until = 0.0
        self._lock = Lock()
        self._room = BoundedSemaphore(MANY)  # for requests in progress, of nested calls too
        # Where the hub last redirected a URL to, and the headers of its answers.
        self._targets: dict[str, tuple[str, Mapping[str, str]]] = {}

    def count(self, size: int) -> None:
        """Add to the bytes moved."""
        with self._lock:
            self.bytes_downloaded += size

    def retry(self, attempt: Callable[[], _T], advanced: Callable[[], bool] = bool) -> _T:
        """Return the result of ``attempt``, retried a few times after temporary failures.

        The count of tries restarts after an attempt for which ``advanced`` returns true. Long waits
        are logged.
        """
        tries = 0
        while True:
            began = time.monotonic()
            try:
                return attempt()
            except PassingError as passing:
                tries = 1 if advanced() else tries + 1
                wait = _FIRST_WAIT * 2 ** (tries - 1) if passing.wait is None else passing.wait
                if tries >= _MOST_TRIES or wait > _LONGEST_WAIT:
                    raise passing.error from passing
                self._log_wait(passing.error, wait, time.monotonic() - began)
                self._sleep(wait)

    def _log_wait(self, error: HubError, wait: float, waited: float) -> None:
        """Log why the session is waiting, once for all threads that wait for the same reason."""
        if wait + waited <= _UNLOGGED_WAIT:
            return
        now = time.monotonic()
        with self._lock:
            is_logged = now < self._logged_until
            self._logged_until = max(self._logged_until, now + wait)
        if not is_logged:
            import logging  # noqa: PLC0415 - seldom needed

            text = f"{error.code}: {error.subject}: {error.got}; trying again in {wait:.2g} s"
            logging.getLogger("vita_ckpt").warning(printable(text))

    @contextmanager
    def get(self, url: str, subject: str, span: tuple[int, int] | None = None) -> Iterator[Answer]:
        """Yield the response to a request for ``url``, or for its bytes in ``span`` (start, stop).

        Redirects are followed; the token is sent only to the hub's own host. What is asked for
        again is asked for where the hub has redirected to before, as long as that gives it. Raises
        HubError for a permanent failure and PassingError for a temporary one, also while the body
        is read.
        """
        if self.is_offline:
            raise offline(subject)
        asked = url
        target, said = self._targets.get(asked, ("", {}))
        if target:
            with (
                self._ask(target, self._headers(False, span, subject), subject) as answer,
                self._forgetting(asked),
            ):
                if answer.status in _GIVEN or answer.status in _PASSING:
                    _check(answer, subject)
                    _check_plain(answer, subject)
                    yield replace(answer, on_the_way=said)
                    return
            self._targets.pop(asked, None)  # such addresses expire
        passed: dict[str, str] = {}
        for _ in range(_MOST_REDIRECTS):
            _check_url(url, subject)
            is_hub = _origin(url) == _origin(self.endpoint)
            with self._ask(url, self._headers(is_hub, span, subject), subject) as answer:
                if answer.status not in _REDIRECTS:
                    _check(answer, subject)
                    _check_plain(answer, subject)
                    if not is_hub:
                        self._targets[asked] = url, passed
                    with self._forgetting(asked):
                        yield replace(answer, on_the_way={} if is_hub else passed)
                    return
                passed |= answer.headers if is_hub else {}
                # Once the short body is read to its end, the connection can be reused.
                deque(islice(answer.chunks, _MOST_DRAINED), maxlen=0)
                target = _joined(url, answer.headers.get("location", ""), subject)
            if urlsplit(url).scheme == "https" != urlsplit(target).scheme:
                raise HubError(
                    "hub-failed", subject, expected="https", got=f"a redirect to {target}"
                )
            url = target
        raise HubError("hub-failed", subject, expected="an answer", got="too many redirects")

    @contextmanager
    def _forgetting(self, asked: str) -> Iterator[None]:
        """Forget where a URL led to when anything is wrong with what came from there."""
        try:
            yield
        except BaseException:
            self._targets.pop(asked, None)
            raise

    @contextmanager
    def _ask(self, url: str, headers: dict[str, str], subject: str) -> Iterator[Answer]:
        with self._room:
            yield from self._answer(url, headers, subject)

    def _answer(self, url: str, headers: dict[str, str], subject: str) -> Iterator[Answer]:
        session = _library().get_session()
        with _passing(session, subject), _addressed(session, url, subject):
            if hasattr(session, "build_request"):  # httpx
                request = session.build_request("GET", url, headers=headers, timeout=_TIMEOUT)
                response = session.send(request, stream=True, follow_redirects=False)
                chunks = response.iter_raw()
            else:
                response = session.get(
                    url, headers=headers, timeout=_TIMEOUT, stream=True, allow_redirects=False
                )
                chunks = response.iter_content(_CHUNK)
        received = {name.lower(): value for name, value in response.headers.items()}
        try:
            body = self._counted(chunks, session, subject)
            yield Answer(response.status_code, received, body)
        finally:
            response.close()

    def _counted(self, chunks: Iterator[bytes], session: Any, subject: str) -> Iterator[bytes]:
        with _passing(session, subject):
            for chunk in chunks:
                self.count(len(chunk))
                yield chunk

    def check_token(self, subject: str) -> None:
        """Raise HubError for a token that cannot be sent in a header."""
        self._headers(True, None, subject)

    def _headers(self, is_hub: bool, span: tuple[int, int] | None, subject: str) -> dict[str, str]:
        headers: dict[str, str] = _library().build_hf_headers(
            library_name="vita-ckpt", library_version=__version__
        )
        if not _TOKEN.fullmatch(headers.get("authorization", "Bearer none")):
            raise unusable_token(subject)
        if not is_hub:
            headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        # The bytes must be those of the file, not compressed, since they are counted and placed.
        headers["accept-encoding"] = "identity"
        if span is not None:
            headers["range"] = f"bytes={span[0]}-{span[1] - 1}"
        return headers


@contextmanager
def translated(subject: str, *, writing: bool = False) -> Iterator[None]:
    """Convert the errors that huggingface_hub's own calls raise into this package's errors.

    This includes errors about a response, or about a file that huggingface_hub does not accept.
    """
    library = _library()
    known = (library.HfHubHTTPError, *_transport_errors(library.get_session()))
    try:
        yield
    except (*known, RuntimeError) as error:
        # An error while one of several files is uploaded is the cause of a RuntimeError.
        cause = error if isinstance(error, known) else error.__cause__
        if not isinstance(cause, known):
            raise
        response = response_of(cause)
        if response is not None:
            headers = {name.lower(): value for name, value in response.headers.items()}
            raise refusal(response.status_code, headers, subject, writing=writing) from error
        code: int | None = getattr(cause, "errno", None)
        path = getattr(cause, "filename", None)
        if code is None or (code not in _DISK_ERRORS and not path):
            raise unreachable(subject, cause) from error
        raise OutputError(
            code_of(code),
            path or "the cache of huggingface_hub",
            got=os.strerror(code),
            hint="free some space, or let HF_HOME name another disk",
        ) from error
    except (ValueError, KeyError) as error:
        raise HubError(
            "hub-failed",
            subject,
            expected="what huggingface_hub takes",
            got=f"{type(error).__name__}: {error}",
            hint="look at HF_ENDPOINT, and whether there is a newer huggingface_hub",
        ) from error


def attempted(subject: str, call: Callable[[], _T], *, writing: bool = False) -> _T:
    """Return the result of a call of huggingface_hub's.

    Raises PassingError if it may be retried.
    """
    try:
        with translated(subject, writing=writing):
            return call()
    except HubError as error:
        response = response_of(error)
        status = response.status_code if response is not None else None
        if status not in _PASSING and error.code != "hub-unreachable":
            raise
        headers = response.headers.items() if response is not None else ()
        wait = _asked_wait({name.lower(): value for name, value in headers})
        raise PassingError(error, wait) from error


def response_of(error: BaseException | None) -> Any:
    """Return the server's response that led to an error; None if there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response
        error = error.__cause__
    return None


def path_of(error: BaseException | None) -> str:
    """Return the path of the request that led to an error; empty if there was no request."""
    while error is not None:
        with suppress(RuntimeError):  # raised by httpx without a request
            request = getattr(error, "request", None)
            if request is not None:
                return urlsplit(str(request.url)).path
        error = error.__cause__
    return ""


def _library() -> Any:
    """Return ``huggingface_hub.utils`` as Any: type checkers do not treat its names as public."""
    from huggingface_hub import utils  # noqa: PLC0415 - slow

    return utils


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _check(answer: Answer, subject: str) -> None:
    if answer.status in _GIVEN:
        return
    error = refusal(answer.status, answer.headers, subject)
    if answer.status in _PASSING:
        raise PassingError(error, _asked_wait(answer.headers))
    raise error


def _check_plain(answer: Answer, subject: str) -> None:
    """Raise for a compressed body, whose bytes are not those of the file."""
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HubError(
            "hub-failed",
            subject,
            expected="the bytes as they are",
            got=f"Content-Encoding {encoding}, which was not asked for",
            hint="look at HF_ENDPOINT, and at proxies",
        )


def _joined(url: str, location: str, subject: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _no_address(location, subject) from error


def _check_url(url: str, subject: str) -> None:
    """Raise for an invalid URL, since a redirect may contain any text."""
    try:
        parts = urlsplit(url)
        is_address = _URL.fullmatch(url) and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise _no_address(url, subject)


def _no_address(url: str, subject: str) -> HubError:
    return HubError(
        "hub-failed",
        subject,
        expected="an address that begins with http:// or https://",
        got=url or "nothing",
        hint="look at HF_ENDPOINT",
    )


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait; None if it does not.

    They are in ``Retry-After`` or in the hub's ``RateLimit`` header.
    """
    after = headers.get("retry-after", "")
    if after.isdecimal() and len(after) < 7:
        return float(after)
    resets = _LIMIT_RESETS.search(headers.get("ratelimit", ""))
    return float(resets[1]) if resets is not None else None


@contextmanager
def _passing(session: Any, subject: str) -> Iterator[None]:
    """Convert errors of the session's HTTP library about the connection to PassingError."""
    try:
        yield
    except _transport_errors(session) as error:
        raise PassingError(unreachable(subject, error)) from error


@contextmanager
def _addressed(session: Any, url: str, subject: str) -> Iterator[None]:
    """Convert errors of the HTTP library about a URL to HubError; retrying does not help."""
    errors: tuple[type[Exception], ...] = (ValueError, *_errors_named("InvalidURL", session))
    try:
        yield
    except errors as error:
        raise _no_address(url, subject) from error


def _transport_errors(session: Any) -> tuple[type[Exception], ...]:
    """Return the transport errors: OSError for requests, and httpx's own base class."""
    return OSError, *_errors_named("HTTPError", session)


def _errors_named(name: str, session: Any) -> tuple[type[Exception], ...]:
    """Return the error class called ``name`` in the HTTP library of a session, if there is one."""
    for ancestor in type(session).__mro__:
        module = sys.modules.get(ancestor.__module__.partition(".")[0])
        found = getattr(module, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return (found,)
    return ()
