"""What a program asked of a file system: one dataclass per kind of call, nothing resolved yet."""

from __future__ import annotations

from dataclasses import dataclass


class UnknownCallError(Exception):
    """A call whose effect on files nobody has described: it must not pass unseen."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path as a call names it: relative to a directory's descriptor, or to where we are."""

    path: bytes
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """A descriptor of a file, made where ``flags`` hold O_CREAT and it was not there."""

    place: Place
    flags: frozenset[str]
    descriptor: int


@dataclass(frozen=True, slots=True)
class OpenOther:
    """A descriptor of something that is no file: a pipe, a socket."""

    descriptors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Descriptors from ``first`` to ``last`` are gone."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """``new`` is what ``old`` is, one position for both."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Seek:
    """The position of a descriptor becomes ``position``."""

    descriptor: int
    position: int


@dataclass(frozen=True, slots=True)
class Read:
    """The position of a descriptor moves on."""

    descriptor: int
    count: int


@dataclass(frozen=True, slots=True)
class Write:
    """Data at ``offset``, or at the descriptor's position."""

    descriptor: int
    data: bytes
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of one file into another by the kernel; None is a descriptor's position."""

    source: int
    source_offset: int | None
    target: int
    target_offset: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Clone:
    """A file gets the whole content of another."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file, by descriptor or place, is cut or grown to ``size``."""

    file: int | Place
    size: int


@dataclass(frozen=True, slots=True)
class Allocate:
    """A file is at least ``size`` long."""

    descriptor: int
    size: int


@dataclass(frozen=True, slots=True)
class Mkdir:
    """A new directory."""

    place: Place


@dataclass(frozen=True, slots=True)
class Rename:
    """An entry moves, over what was there; with ``exchange`` the two change places."""

    old: Place
    new: Place
    exchange: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """Another name of a file."""

    old: Place
    new: Place


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    target: bytes
    place: Place


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name goes: of a file, or of an empty directory."""

    place: Place


@dataclass(frozen=True, slots=True)
class Sync:
    """The content of a descriptor's file or directory is on the disk; None is everything."""

    descriptor: int | None


@dataclass(frozen=True, slots=True)
class Hint:
    """A call that changes nothing that must last: a hint, a time, a mode."""

    descriptor: int | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Chdir:
    """Where relative paths begin."""

    place: Place | int


Operation = (
    Open
    | OpenOther
    | Close
    | Duplicate
    | Seek
    | Read
    | Write
    | Copy
    | Clone
    | Truncate
    | Allocate
    | Mkdir
    | Rename
    | Link
    | Symlink
    | Unlink
    | Sync
    | Hint
    | Chdir
)


@dataclass(frozen=True, slots=True)
class Traced:
    """One call: the ``number``-th of its ``name`` in its thread, from 1.

    ``error`` is the errno's name where it failed. ``started`` calls of the trace had ended when it
    began: a sync vouches for those alone.
    """

    thread: int
    name: str
    number: int
    started: int
    operation: Operation
    error: str = ""
