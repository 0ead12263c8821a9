"""The exception hierarchy: every error has a kebab-case code, a subject and an exit code."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, TypeVar

_E = TypeVar("_E", bound="VitaCkptError")

_LONGEST = 300
_KEPT = 140

# Characters that move a terminal's cursor, end a line, reverse its direction, or show nothing.
_UNPRINTABLE = {
    *range(0x20),
    *range(0x7F, 0xA0),
    *(0xAD, 0x061C, 0x180E),
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
    *range(0xD800, 0xE000),
    *range(0xE0000, 0xE0080),  # letters that no terminal shows and programs read
}


@cache
def _escapes() -> dict[int, str]:
    return {
        code: f"\\x{code:02x}"
        if code < 1 << 8
        else f"\\u{code:04x}"
        if code < 1 << 16
        else f"\\U{code:08x}"
        for code in _UNPRINTABLE
    }


# What nobody else may read: user and password of a URL, its query, and tokens.
# Compiled when the first text needs them: most commands print none that does.
_USER_OF_URL = (
    r"(?i)(\b[a-z][a-z0-9+.-]{0,20}:/{1,3}|(?<![\w:/])//(?=[^\s/?#'\"<>@:]*:))"
    r"[^\s/?#'\"<>]*@(?=[^\s/])"
)
_SCHEME = r"(?i)\b[a-z][a-z0-9+.-]{0,20}:/{1,3}"
_CREDENTIAL_OF_QUERY = (
    r"(?i)([?&](?:x-(?:amz|goog|ms)-[a-z-]+|sig|signature|[a-z_-]*(?:token|key|secret)|pass(?:word)?"
    r"|policy|key-pair-id)=)[^\s&'\"<>)]+"
)
_CREDENTIAL = (
    r"(?<![A-Za-z0-9])(hf_|api_org_|gh[pousr]_|glpat-)[A-Za-z0-9]{16,}"
    r"|(?<![A-Za-z0-9])(?P<long>github_pat_)[A-Za-z0-9_]{16,}"
    r"|(?i:(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,})"
)
# One of these is in every text that has such a token, in lower case.
_MARKS = (
    *("hf_", "api_org_", "glpat-", "github_pat_", "bearer "),
    *(f"gh{kind}_" for kind in "pousr"),
)
# GitHub and Azure obey ``##[command]`` and ``##vso[command]`` anywhere in a line.
_LOG_COMMAND = re.compile(r"##(?=\[|vso\[)", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return ``text`` without credentials: of URLs, of their queries, and tokens."""
    if "//" in text or ":/" in text:
        text = re.sub(_USER_OF_URL, r"\1…@", text)
    if ":/" in text and "?" in text:
        text = re.sub(r"[^\s'\"<>]+", _without_queries, text)
    if "=" in text:
        text = re.sub(_CREDENTIAL_OF_QUERY, r"\1…", text)
    lowered = text.lower()
    if any(mark in lowered for mark in _MARKS):
        text = re.sub(_CREDENTIAL, lambda match: f"{match[1] or match['long'] or ''}…", text)
    return text


def _without_queries(word: re.Match[str]) -> str:
    """Return a word without the queries of the URLs in it, in a time that grows as it does."""
    text, done = word[0], 0
    kept: list[str] = []
    while (scheme := re.compile(_SCHEME).search(text, done)) is not None:
        start = text.find("?", scheme.end()) + 1
        if not start:
            break
        end = text.find(")", start)
        end = len(text) if end < 0 else end
        kept.append(text[done:start] + ("…" if end > start else ""))
        done = end
    return "".join((*kept, text[done:]))


def escaped(text: str) -> str:
    """Return ``text`` as one line to be printed.

    Control characters and the beginnings of log commands are escaped, credentials left out.
    """
    line = redacted(text)
    if not line.isprintable():  # as none of those is
        line = line.translate(_escapes())
    return _LOG_COMMAND.sub(r"#\\x23", line)


def printable(text: object) -> str:
    """Return ``text`` as one line to be printed, as :func:`escaped`, and bounded."""
    line = escaped(str(text))
    if len(line) > _LONGEST:
        line = f"{line[:_KEPT]}…{line[-_KEPT:]}"
    return line


class VitaCkptError(Exception):
    """Base of every error of this package.

    ``code`` is a stable kebab-case name, ``subject`` what the error is about (a path, a tensor,
    an option), ``expected`` and ``got`` the two sides of the rule that was broken, ``hint`` what
    to do. ``str(error)`` is one printable line.
    """

    exit_code = 3

    def __init__(
        self, code: str, subject: object, *, expected: str = "", got: str = "", hint: str = ""
    ) -> None:
        self.code = code
        self.subject = str(subject)
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(code, self.subject, expected, got, hint)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self)._rebuild, (self.code, self.subject, self.expected, self.got, self.hint)

    @classmethod
    def _rebuild(cls, code: str, subject: str, expected: str, got: str, hint: str) -> VitaCkptError:
        return cls(code, subject, expected=expected, got=got, hint=hint)

    def with_subject(self: _E, subject: object) -> _E:
        """Return a copy of this error that is about ``subject``."""
        return self.replaced(subject=subject)

    def replaced(
        self: _E,
        *,
        subject: object | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> _E:
        """Return a copy of this error with other values for what is given."""
        return type(self)(
            self.code,
            self.subject if subject is None else subject,
            expected=self.expected if expected is None else expected,
            got=self.got,
            hint=self.hint if hint is None else hint,
        )

    def __str__(self) -> str:
        rule = ", ".join(
            part
            for part in (
                f"expected {printable(self.expected)}" if self.expected else "",
                f"got {printable(self.got)}" if self.got else "",
            )
            if part
        )
        line = f"{self.code}: {printable(self.subject)}"
        line += f": {rule}" if rule else ""
        return f"{line} ({printable(self.hint)})" if self.hint else line


class UsageError(VitaCkptError):
    """The call itself is wrong: an option, an output path, two options that exclude each other."""

    exit_code = 2


class InputError(VitaCkptError):
    """An input cannot be read, or is not what it should be."""


class HubError(InputError):
    """The hub refuses, cannot be reached, or answers with what was not asked for."""


class MalformedFileError(InputError):
    """A file breaks a rule of its format."""


class UnsafePickleError(InputError):
    """A pickle asks for more than tensors: it is refused, never executed."""


class AdapterError(InputError):
    """An adapter holds no projector, an ambiguous one, or one that does not fit the base."""


class CastError(InputError):
    """A dtype conversion is not defined or would turn a finite value into infinity."""


class StaleInputError(InputError):
    """An input is not the one that a plan was computed from."""


# Errors that tell nothing about what an input is: it could not be asked, or it changed meanwhile.
INCONCLUSIVE: Final = (HubError, StaleInputError)


class OutputError(VitaCkptError):
    """The output could not be written; nothing of it was left behind."""
