"""Find which globals a pickle names, however it is packed, without executing anything.

Where :mod:`unpickler` reads one kind of pickle and refuses all others, this reads every kind and
understands none. The stack is kept only as far as it holds texts, since names of globals come from
there.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final

from vita_ckpt.core.checkpoint import File, RemoteFile
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.effort import Effort
from vita_ckpt.core.pickle_globals import judge
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.formats.source_stream import SourceStream
from vita_ckpt.storage.formats.torch_zip import read_ends
from vita_ckpt.storage.stores.base import Source

Global = tuple[str, str]

# What is looked through of one file.
_MOST_BYTES: Final = 256 << 20
_LARGEST_READ: Final = 64 << 20
_MOST_REMOTE_BYTES: Final = 1 << 20
_REMOTE_READ: Final = 1 << 18
_MOST_OPCODES: Final = 1 << 20
_LONGEST_HEADER: Final = 1 << 20  # of an array
_LONGEST_NAME: Final = 1 << 12  # of a module, or in it; longer texts are not kept
_MOST_GLOBALS: Final = 1 << 14
_MOST_RECORDS: Final = 1 << 16
_LARGEST_DIRECTORY: Final = 16 << 20
_DEEPEST: Final = 4

_PICKLED: Final = re.compile(
    r".*\.(pkl|pickle|pck|pk|p|dill|cloudpickle|joblib|jbl|npy|pt|pth|ckpt|bin)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLES_OF_LEGACY: Final = 5
_NPY: Final = b"\x93NUMPY"
# The header of an array of numbers or texts, which are no objects, or of a structure of these.
_DTYPE: Final = rb"'[|<>=]?[?bBhHiIlLqQuefdgFDGcSaUVmM][0-9]*(\[[0-9a-zA-Z]+\])?'"
_FIELD: Final = rb"\('[^'\\]*', " + _DTYPE + rb"(, \([0-9, ]*\))?\)"
_NO_OBJECTS: Final = re.compile(
    rb"\{'descr': (" + _DTYPE + rb"|\[(" + _FIELD + rb"(, )?)+\])"
    rb", 'fortran_order': (True|False), 'shape': \([0-9, L]*\),? *\} *\n?"
)
# What protocol 0 writes for an object: a module, a name, and what comes next.
_OLD_GLOBAL: Final = re.compile(
    rb"c([A-Za-z_][\w.]*)\n([A-Za-z_][\w.]*)\n(p[0-9]+\n|q.|r....)?[(){}\]SUVXI]", re.DOTALL
)
# Its argument is a pickle, which it loads.
_LOADER: Final = ("torch.storage", "_load_from_bytes")

_TEXTS: Final = frozenset(
    (
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8",),
    )
)
_MARK: Final = object()
_MALFORMED: Final = (
    *(ValueError, IndexError, TypeError, EOFError, RecursionError, OverflowError, KeyError),
    *(
        struct.error,
        zlib.error,
        lzma.LZMAError,
        OSError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
    ),
    DeprecationWarning,
)


@dataclass(frozen=True, slots=True)
class Scan:
    """The globals that a file's pickles name, and why it was not looked through to its end.

    A global is its module and its name. ``computed`` says of a pickle that it takes a global by a
    name that is not written in it, or by a number.
    """

    globals: frozenset[Global]
    computed: bool = False
    failure: str = ""


class _TooMuchError(Exception):
    """More of a file than is looked through."""


def starts_like_pickle(source: Source) -> bool:
    """Return whether a file starts as a pickle does, or as an archive that may hold some."""
    try:
        with io.BufferedReader(SourceStream(source)) as handle:
            start = handle.read(512)
            if (unpack := _unpacker(start)) is not None:
                handle.seek(0)
                with unpack(handle) as inner:
                    start = inner.read(512)
    except _MALFORMED:
        return False
    if len(start) > 2 and start[0] == 0x80 and start[1] in range(2, 6) and start[2] > 0x20:
        return True
    old = _OLD_GLOBAL.match(start)
    is_old = old is not None and judge(old[1].decode("ascii", "replace"), "") == "runs-code"
    return is_old or start.startswith((b"PK\x03\x04", _NPY))


def scan_pickles(source: Source, effort: Effort | None = None) -> Scan:
    """Return what the pickles in a file name. Raises no InputError for what the file contains."""
    effort = effort or Effort()
    scanner = _Scanner(source.file, effort)
    try:
        # On the hub every read is a request.
        size = _REMOTE_READ if isinstance(source.file, RemoteFile) else io.DEFAULT_BUFFER_SIZE
        with io.BufferedReader(SourceStream(source), size) as handle:
            scanner.scan(handle)
        failure = ""
    except _TooMuchError as error:
        failure = f"more than is looked through ({error})"
    except _MALFORMED as error:
        failure = str(error) or type(error).__name__
    except MemoryError:
        failure = "more than memory holds"
    except INCONCLUSIVE:
        raise
    except InputError as error:
        failure = f"{error.code}: {error.got}"
    effort.bytes_left -= scanner.bytes_taken
    effort.opcodes_left -= scanner.opcodes_taken
    return Scan(scanner.names(), scanner.computed, failure)


class _Scanner:
    def __init__(self, file: File, effort: Effort) -> None:
        self.computed = False
        self.bytes_taken = self.opcodes_taken = 0
        self._found: set[Global] = set()
        # What texts would name if they were pickles of protocol 0.
        self._in_texts: set[Global] = set()
        self._is_remote = isinstance(file, RemoteFile)
        most = _MOST_REMOTE_BYTES if self._is_remote else _MOST_BYTES
        self._most_bytes = min(most, effort.bytes_left)
        self._most_opcodes = min(_MOST_OPCODES, effort.opcodes_left)

    def names(self) -> frozenset[Global]:
        """Return every global that has been found, those in texts where a loader may take them."""
        return frozenset(self._found | (self._in_texts if _LOADER in self._found else set()))

    def scan(self, handle: IO[bytes], depth: int = 0) -> None:
        """Look through one file, or one part of one."""
        if depth > _DEEPEST:
            raise _TooMuchError(f"{_DEEPEST} levels")
        start = handle.read(32)
        handle.seek(0)
        if start.startswith(b"PK\x03\x04"):
            self._zip(handle, depth)
        elif start.startswith(_NPY):
            self._npy(handle, depth)
        elif (unpack := _unpacker(start)) is not None:
            with unpack(handle) as inner:
                self._pickles(inner, None, depth)
        else:
            self._pickles(handle, _PICKLES_OF_LEGACY if start.startswith(_LEGACY) else None, depth)

    def _zip(self, handle: IO[bytes], depth: int) -> None:
        small = _SmallReads(handle)
        with zipfile.ZipFile(small) as archive:
            records = archive.infolist()
            if len(records) > _MOST_RECORDS:
                raise _TooMuchError(f"{len(records)} records")
            for record in records:
                is_named = _PICKLED.fullmatch(record.filename) is not None
                if self._is_remote and not is_named:  # every look is a request
                    continue
                with archive.open(record) as inner:
                    part = io.BufferedReader(_Rewound(inner))
                    # numpy.load takes any record for an array that starts like one.
                    if is_named or part.peek(len(_NPY)).startswith(_NPY):
                        self.scan(part, depth + 1)
        # Other readers may take another directory of records than zipfile does.
        read_ends(handle.seek(0, io.SEEK_END), small.read_at)

    def _npy(self, handle: IO[bytes], depth: int) -> None:
        start = handle.read(12)
        wide = start[6] > 1
        length = struct.unpack_from("<I" if wide else "<H", start, 8)[0]
        if length > _LONGEST_HEADER:
            raise _TooMuchError(f"a header of {length} bytes")
        handle.seek(12 if wide else 10)
        if not _NO_OBJECTS.fullmatch(handle.read(length)):
            self._pickles(handle, 1, depth)

    def _pickles(self, handle: IO[bytes], count: int | None, depth: int) -> None:
        """Look through pickles one after another, to the end or as many as there are."""
        stream = _Counted(handle, self._take)
        while count is None or count > 0:
            first = stream.peek()
            if not first:
                return
            self._pickle(stream, depth)
            count = None if count is None else count - 1

    def _take(self, size: int) -> None:
        self.bytes_taken += size
        if self.bytes_taken > self._most_bytes:
            raise _TooMuchError("bytes")

    def _pickle(self, stream: _Counted, depth: int) -> None:
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            self.opcodes_taken += 1
            if self.opcodes_taken > self._most_opcodes:
                raise _TooMuchError("opcodes")
            name = opcode.name
            if name == "STOP":
                return
            if isinstance(argument, bytes | bytearray | str) and len(argument) > 1:
                self._inner(argument, depth)
            self._step(opcode, argument, stack, memo)
        raise EOFError("the pickle has no end")

    def _step(
        self,
        opcode: pickletools.OpcodeInfo,
        argument: Any,
        stack: list[Any],
        memo: dict[int, Any],
    ) -> None:
        name = opcode.name
        if name in _TEXTS:
            stack.append(argument if len(argument) <= _LONGEST_NAME else None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        else:
            if name in ("GLOBAL", "INST"):
                module, _, attribute = argument.partition(" ")
                self._add(module, attribute)
            elif name == "STACK_GLOBAL":
                self._add(*stack[-2:])
            elif name.startswith("EXT"):
                self.computed = True
            _effect(opcode, stack)

    def _add(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            self.computed = True
            return
        if len(self._found) >= _MOST_GLOBALS:
            raise _TooMuchError("globals")
        self._found.add((module[:200], name[:200]))

    def _inner(self, data: bytes | bytearray | str, depth: int) -> None:
        """Look through bytes in a pickle that are one themselves, such as those of a tensor."""
        if isinstance(data, str):
            try:
                data = data.encode("latin-1")
            except UnicodeEncodeError:
                return
        is_pickle = data[0] == 0x80 and data[1] in range(2, 6)
        if is_pickle or data.startswith(b"PK\x03\x04"):
            with suppress(*_MALFORMED):  # it only looked like one
                self.scan(io.BytesIO(data), depth + 1)
        elif depth < _DEEPEST:
            self._text(data)

    def _text(self, data: bytes | bytearray) -> None:
        """Note what a text names if it is a pickle of protocol 0, which most are not."""
        kept = self._found, self.computed
        self._found = self._in_texts
        try:
            with suppress(*_MALFORMED):
                self._pickle(_Counted(io.BytesIO(data), self._take), _DEEPEST)
        finally:
            self._found, self.computed = kept


def _effect(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """Take from the stack what an opcode takes, and put as many values there as it leaves."""
    before = list(opcode.stack_before)
    if pickletools.markobject in before:
        while stack.pop() is not _MARK:
            pass
        before = before[: before.index(pickletools.markobject)]
    if len(before) > len(stack):
        raise IndexError("the pickle takes more from its stack than it put there")
    del stack[len(stack) - len(before) :]
    stack.extend([None] * len(opcode.stack_after))


def _unpacker(start: bytes) -> Callable[[IO[bytes]], Any] | None:
    """Return what unpacks a file of joblib or a compressed pickle."""
    if start[:1] == b"\x78" and len(start) > 1 and int.from_bytes(start[:2], "big") % 31 == 0:
        return _inflated
    if start.startswith(b"\x1f\x8b"):
        return lambda handle: gzip.GzipFile(fileobj=handle)
    if start.startswith(b"BZh"):
        return bz2.BZ2File
    if start.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        return lzma.LZMAFile
    return None


def _inflated(handle: IO[bytes]) -> io.BufferedReader[Any]:
    return io.BufferedReader(_Inflated(handle))


class _Inflated(io.RawIOBase):
    """A stream of zlib, as joblib writes it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._machine = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        memory = memoryview(buffer)
        data = b""
        while not data and not self._machine.eof:
            packed = self._machine.unconsumed_tail or self._handle.read(1 << 14)
            if not packed:
                raise EOFError("the file is cut off")
            data = self._machine.decompress(packed, len(memory))
        memory[: len(data)] = data
        return len(data)


class _Rewound(io.RawIOBase):
    """A record of a zip that can be read from its start again."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readinto(self, buffer: Any, /) -> int:
        data = self._inner.read(len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)


class _SmallReads:
    """A file for zipfile, which reads as much as the file itself tells it to."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.seek, self.tell = handle.seek, handle.tell

    def seekable(self) -> bool:
        return True

    def read_at(self, size: int, offset: int) -> bytes:
        self.seek(offset)
        return self.read(size)

    def read(self, size: int = -1, /) -> bytes:
        if size > _LARGEST_DIRECTORY:
            raise _TooMuchError(f"a read of {size} bytes")
        data = self._handle.read(_LARGEST_DIRECTORY + 1 if size < 0 else size)
        if len(data) > _LARGEST_DIRECTORY:
            raise _TooMuchError(f"a read of {len(data)} bytes")
        return data


class _Counted:
    """Reads for a pickle: counted, and large ones refused before anything is allocated."""

    def __init__(self, handle: IO[bytes], take: Callable[[int], None]) -> None:
        self._handle = handle
        self._take = take
        self._first = b""

    def peek(self) -> bytes:
        self._first = self._first or self._handle.read(1)
        return self._first

    def read(self, size: int, /) -> bytes:
        if size > _LARGEST_READ:
            raise _TooMuchError(f"a value of {size} bytes")
        self._take(size)
        first, self._first = self._first[:size], self._first[size:]
        return first + self._handle.read(size - len(first))

    def readline(self) -> bytes:
        first, self._first = self._first, b""
        line = first if first == b"\n" else first + self._handle.readline(1 << 16)
        self._take(len(line))
        return line
