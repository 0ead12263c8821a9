"""Fetch byte ranges of files on the hub, checked and resumed after interruptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final
from urllib.parse import quote

from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError, StaleInputError
from vita_ckpt.storage.hub.concurrency import at_once
from vita_ckpt.storage.hub.session import Answer, PassingError, Session

Span = tuple[int, int]  # from a byte up to another, not included
# What was received, and where in the file it belongs.
Put = Callable[[bytes, int], None]
# Where it is put is opened by the thread that fetches it, and is that one's alone.
Opened = Callable[[], AbstractContextManager[Put]]

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.ASCII)
# A gap that costs less to receive than another request does, and what one request asks for.
_GAP: Final = 4096
_PIECE: Final = 16 << 20


def coalesced(spans: Iterable[Span]) -> Iterator[Span]:
    """The spans that cover ``spans``, with what lies in small gaps, in pieces of 16 MB."""
    start = end = -1
    for first, last in sorted(span for span in spans if span[0] < span[1]):
        if start >= 0 and first <= end + _GAP:
            end = max(end, last)
            continue
        yield from _pieces(start, end)
        start, end = first, last
    yield from _pieces(start, end)


def fetch(session: Session, wanted: Iterable[tuple[RemoteFile, Span, Opened]]) -> None:
    """Fetch spans of files, several at a time, and put what arrives where each one opens.

    Raises HubError where the hub, or the server that it leads to, does not give exactly what was
    asked for, StaleInputError if a file is not the one of its commit any more.
    """
    at_once([partial(_fetch, session, *one) for one in wanted])


def fetch_bytes(session: Session, file: RemoteFile, start: int, stop: int) -> bytes:
    """The bytes of a file from ``start`` up to ``stop``; raises as :func:`fetch` does."""
    received = bytearray(stop - start)

    def put(data: bytes, offset: int) -> None:
        received[offset - start : offset - start + len(data)] = data

    _fetch(session, file, (start, stop), lambda: nullcontext(put))
    return bytes(received)


def _pieces(start: int, end: int) -> Iterator[Span]:
    for first in range(start, end, _PIECE):
        yield first, min(first + _PIECE, end)


def _fetch(session: Session, file: RemoteFile, span: Span, opened: Opened) -> None:
    """Fetch one span; after an interruption only what is still missing is asked for."""
    with opened() as put:
        _fetch_to(put, session, file, span)


def _fetch_to(put: Put, session: Session, file: RemoteFile, span: Span) -> None:
    position, stop = span
    before = position

    def attempt() -> None:
        nonlocal position, before
        before = position
        # A whole file is what every server gives, also one that knows no ranges.
        is_whole = (position, stop) == (0, file.size)
        asked = None if is_whole else (position, stop)
        with session.get(_url(session, file), file.path, asked) as answer:
            _check(answer, file, (position, stop), is_whole)
            for chunk in answer.chunks:
                if position + len(chunk) > stop:
                    raise _wrong_range(file, f"{stop - before} bytes", "more than that")
                put(chunk, position)
                position += len(chunk)
        if position < stop:
            error = _wrong_range(file, f"{stop - before} bytes", f"{position - before}")
            raise PassingError(error)

    session.retry(attempt, lambda: position > before)


def _url(session: Session, file: RemoteFile) -> str:
    return f"{session.endpoint}/{file.repository}/resolve/{file.commit}/{quote(file.name)}"


def _check(answer: Answer, file: RemoteFile, span: Span, is_whole: bool) -> None:
    """Raise unless the answer is the span, of the file that was listed, and nothing else."""
    _check_same(answer, file)
    start, stop = span
    wanted = f"bytes {start}-{stop - 1} of {file.size}"
    if answer.status == 416:
        raise _wrong_range(file, wanted, f"416, {answer.headers.get('content-range', 'no range')}")
    if answer.status == 200 and not is_whole:
        raise HubError(
            "no-range-support",
            file.path,
            expected=f"206 with {wanted}",
            got="200 with the whole file",
            hint=f"the server gives no ranges: hf download {file.repository}, then use the files",
        )
    said = answer.headers.get("content-range")
    if said is not None or answer.status == 206:
        found = _CONTENT_RANGE.fullmatch(said or "")
        if found is None or tuple(map(int, found.groups())) != (start, stop - 1, file.size):
            raise _wrong_range(file, wanted, said or "no Content-Range")
    length = answer.headers.get("content-length")
    if length is not None and length != str(stop - start):
        raise _wrong_range(file, f"{stop - start} bytes", f"Content-Length {length}")


def _check_same(answer: Answer, file: RemoteFile) -> None:
    """Raise StaleInputError if the hub speaks of another commit, or of another content."""
    # Another server's etag is its own matter: the hub has said the digest of what it leads to.
    told = answer.on_the_way or {"x-linked-etag": answer.headers.get("etag", ""), **answer.headers}
    commit, etag = told.get("x-repo-commit", ""), _plain(told.get("x-linked-etag", ""))
    if not commit and not etag:
        raise HubError(
            "hub-failed",
            file.path,
            expected="X-Repo-Commit or ETag, which say what is sent",
            got="neither",
            hint="look at HF_ENDPOINT, and at proxies",
        )
    for what, expected, got in (("commit", file.commit, commit), ("etag", file.etag, etag)):
        if expected and got and expected != got:
            raise StaleInputError(
                "input-changed",
                file.path,
                expected=f"{what} {expected}",
                got=got,
                hint="the repository was rewritten meanwhile: run the command again",
            )


def _plain(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _wrong_range(file: RemoteFile, expected: str, got: str) -> HubError:
    return HubError(
        "wrong-range",
        file.path,
        expected=expected,
        got=got,
        hint=f"nothing of it was used; hf download {file.repository} takes whole files",
    )
