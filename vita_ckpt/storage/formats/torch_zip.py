"""The zip archives of ``torch.save``: as strict as torch's own reader, and stricter in places.

torch reads archives with miniz, Python's ``zipfile`` would accept more. Whatever an archive says
twice has to agree here: end records, central headers and the local headers of every record that is
read. Tensors are not read, so nothing is said about their checksums.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn
from zlib import crc32

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import MalformedFileError
from vita_ckpt.storage.stores.base import Range, Source

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END64: Final = struct.Struct("<4sQ2H2I4Q")

# A central directory of this size lists a hundred thousand storages.
_LARGEST_DIRECTORY: Final = 16 << 20
_LONGEST_NAME: Final = 512
_HIGHEST_VERSION: Final = 45  # of the zip format: 4.5 has zip64
_DIRECTORY: Final = 0x10  # in the attributes of a record, as MS-DOS has them
_DESCRIPTOR: Final = 0x8  # in the flags: checksum and sizes follow the data
_UTF8: Final = 0x800
_STORED: Final = 0
_ZIP64: Final = 1
_MAX16: Final = 0xFFFF
_MAX32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Record:
    """A record of an archive: its name, where its local header is, and the size of its data.

    ``limit`` is the first byte after it that belongs to something else. ``checksum`` is 0 if none
    was computed.
    """

    name: str
    header: int
    size: int
    checksum: int
    limit: int
    flags: int
    time: int
    raw: bytes

    @property
    def local_header(self) -> Range:
        """Offset and size of the local header with the name."""
        return self.header, _LOCAL.size + len(self.raw)

    @property
    def whole(self) -> Range:
        """Offset and size of everything up to the end of the data, however it is padded."""
        longest = _LOCAL.size + len(self.raw) + _MAX16 + self.size
        return self.header, min(self.limit - self.header, longest)


class Archive:
    """A zip archive of ``torch.save``, read down to its central directory."""

    def __init__(self, source: Source) -> None:
        """Read the central directory. Raises MalformedFileError where torch's reader fails."""
        self._source = source
        self._path = source.file.path
        self._records = self._read_directory()
        self.prefix = next(iter(self._records)).partition("/")[0] + "/"
        for name in self._records:
            if not name.startswith(self.prefix):
                self._fail(f"a record outside the folder {self.prefix}", name)

    def __contains__(self, name: str) -> bool:
        """Return whether there is a record of this name in the archive's folder."""
        return self.prefix + name in self._records

    def expect(self, names: Iterable[str]) -> None:
        """Announce that the local headers of records will be read."""
        there = [self._records[self.prefix + name] for name in names if name in self]
        self._source.expect(record.local_header for record in there)

    def locate(self, name: str) -> Range:
        """Return the offset and size of a record's data.

        Raises MalformedFileError if the local header and the central directory disagree.
        """
        record = self._records[self.prefix + name]
        offset, size = record.local_header
        return self._data(record, self._source.read(size, offset)), record.size

    def read(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """Return the data of the records among ``limits`` that are there, checksums compared.

        Raises MalformedFileError for a record that is larger than its limit.
        """
        there = {n: self._records[self.prefix + n] for n in limits if n in self}
        for name, record in there.items():
            if record.size > limits[name]:
                raise MalformedFileError(
                    "pickle-too-large",
                    f"{self._path}: {record.name}",
                    expected=f"at most {limits[name]} bytes",
                    got=f"{record.size} bytes",
                )
        self._source.expect(record.whole for record in there.values())
        return {name: self._read(record) for name, record in there.items()}

    def _read(self, record: Record) -> bytes:
        offset, size = record.whole
        whole = self._source.read(size, offset)
        start = self._data(record, whole) - offset
        data = whole[start : start + record.size]
        # torch.serialization.set_crc32_options(False) leaves the checksums out.
        if record.checksum not in (0, crc32(data)):
            self._fail("data that do not match their checksum", record.name)
        return data

    def _data(self, record: Record, header: bytes) -> int:
        """Return where the data of a record start, after a look at its local header."""
        magic, _, flags, method, time, date, checksum, packed, size, length, extra = (
            _LOCAL.unpack_from(header)
        )
        if magic != b"PK\x03\x04":
            self._fail("no local header", record.name)
        name = header[_LOCAL.size : _LOCAL.size + length]
        said = (flags, method, time | date << 16, name)
        if said != (record.flags, _STORED, record.time, record.raw):
            self._fail("a local header that differs from the central directory", record.name)
        numbers = (checksum, packed, size)
        later = flags & _DESCRIPTOR and numbers == (0, 0, 0)
        sizes = ((record.size, record.size), (_MAX32, _MAX32))
        if not later and (checksum != record.checksum or (packed, size) not in sizes):
            self._fail("a local header that differs from the central directory", record.name)
        start: int = record.header + _LOCAL.size + length + extra
        if start + record.size > record.limit:
            self._fail("a record that reaches into the next one", record.name)
        return start

    def _read_directory(self) -> dict[str, Record]:
        try:
            count, size, start = read_ends(self._source.file.size, self._source.read)
        except ValueError as error:
            self._fail(str(error))
        if size > _LARGEST_DIRECTORY:
            self._fail(f"a directory of {size} bytes, more than tensors need")
        if not count:
            self._fail("no records")
        if count * _CENTRAL.size > size:
            self._fail(f"{count} records in a directory of {size} bytes")
        data = self._source.read(size, start)
        found: list[Record] = []
        position = 0
        for _ in range(count):
            if position + _CENTRAL.size > size:
                self._fail(f"fewer than {count} records")
            record, position = self._central(data, position, start)
            found.append(record)
        if position != size:
            self._fail(f"more than {count} records")
        return self._by_name(found, start)

    def _central(self, data: bytes, position: int, directory: int) -> tuple[Record, int]:
        """Return the record whose central header is at ``position``, and where the next is."""
        fixed = _CENTRAL.unpack_from(data, position)
        magic, _, version, flags, method, time, date, checksum, packed, size = fixed[:10]
        length, extra, comment, disk, _, attributes, header = fixed[10:]
        position += _CENTRAL.size
        raw = data[position : position + length]
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self._fail("a name that is not UTF-8", repr(raw))
        if magic != b"PK\x01\x02":
            self._fail("no central header")
        if method != _STORED or flags & ~(_DESCRIPTOR | _UTF8):
            raise MalformedFileError(
                "compressed-zip-entry",
                f"{self._path}: {name}",
                expected="entries stored as they are",
                got="a compressed or encrypted one",
                hint="torch.save compresses nothing: unpack it, and name the file or the directory "
                "in it",
            )
        fields = data[position + length : position + length + extra]
        position += length + extra
        if position > len(data) or comment or disk or version > _HIGHEST_VERSION:
            self._fail("a central header that torch.save does not write", name)
        size, packed, header = self._zip64(name, fields, (size, packed, header))
        if size != packed:
            self._fail("two sizes that differ", name)
        self._check_name(name, raw)
        if (attributes & _DIRECTORY or name.endswith("/")) and (
            size or not name.endswith("/") or not attributes & _DIRECTORY
        ):
            self._fail("a record that calls itself a directory: torch would not read it", name)
        when = time | date << 16
        record = Record(name, header, size, checksum, directory, flags, when, raw)
        return record, position

    def _zip64(
        self, name: str, fields: bytes, numbers: tuple[int, int, int]
    ) -> tuple[int, int, int]:
        """Return size, packed size and offset, from the extra field where they are too large."""
        found: bytes | None = None
        position = 0
        while position < len(fields):
            kind, length = struct.unpack_from("<2H", fields.ljust(position + 4, b"\0"), position)
            position += 4
            if position + length > len(fields) or (kind == _ZIP64 and found is not None):
                self._fail("extra fields that are damaged", name)
            if kind == _ZIP64:
                found = fields[position : position + length]
            position += length
        large = [number == _MAX32 for number in numbers]
        if found is None:
            return numbers
        if len(found) != 8 * sum(large):
            self._fail("a zip64 field that does not fit its record", name)
        wide = iter(struct.unpack(f"<{sum(large)}Q", found))
        size, packed, header = (
            next(wide) if is_large else number
            for number, is_large in zip(numbers, large, strict=True)
        )
        return size, packed, header

    def _check_name(self, name: str, raw: bytes) -> None:
        if len(raw) > _LONGEST_NAME or "/" not in name or re.search(r"[\x00-\x1f\\]", name):
            self._fail("a name that torch.save does not write", name)

    def _by_name(self, found: list[Record], directory: int) -> dict[str, Record]:
        """Return records by name, each with its limit; no two share a name or a byte."""
        seen: set[str] = set()
        for record in found:
            if record.name.lower() in seen:  # torch finds them whatever the case
                raise MalformedFileError("duplicate-zip-entry", f"{self._path}: {record.name}")
            seen.add(record.name.lower())
        limits: dict[int, int] = {}
        limit = directory
        for record in sorted(found, key=lambda record: record.header, reverse=True):
            if sum(record.local_header) + record.size > limit:
                self._fail("a record that reaches into the next one", record.name)
            limits[record.header] = limit
            limit = record.header
        return {
            r.name: Record(
                *(r.name, r.header, r.size, r.checksum, limits[r.header]),
                *(r.flags, r.time, r.raw),
            )
            for r in found
        }

    def _fail(self, got: str, name: str = "") -> NoReturn:
        raise MalformedFileError(
            "invalid-zip",
            f"{self._path}: {name}" if name else self._path,
            expected="a zip as torch.save writes it",
            got=got,
            hint="the file is cut off or damaged: copy or download it again",
        )


def read_ends(size: int, read: Callable[[int, int], bytes]) -> tuple[int, int, int]:
    """Return the number of records of a zip, and the size and offset of its central directory.

    ``size`` is that of the file, ``read`` returns so many bytes at an offset. Raises ValueError
    where readers disagree about where the directory is.
    """
    if size < _END.size:
        raise ValueError("no end of a zip")
    tail_size = min(size, _END64.size + _LOCATOR.size + _END.size)
    tail = read(tail_size, size - tail_size)
    magic, disk, first, here, count, length, start, comment = _END.unpack_from(
        tail, tail_size - _END.size
    )
    if magic != b"PK\x05\x06" or comment:
        raise ValueError("no end of a zip")
    if disk or first or here != count:
        raise ValueError("a part of a zip on several disks")
    end = size - _END.size
    if tail_size >= _END64.size + _LOCATOR.size + _END.size:
        magic, disk, where, disks = _LOCATOR.unpack_from(tail, _END64.size)
        if magic == b"PK\x06\x07":
            end -= _LOCATOR.size + _END64.size
            if (disk, where, disks) != (0, end, 1):
                raise ValueError("a locator that does not lead to the end record")
            count, length, start = _end64(tail, (count, length, start))
    if start + length != end:
        raise ValueError("a directory that does not end where its end record starts")
    return count, length, start


def _end64(tail: bytes, said: tuple[int, int, int]) -> tuple[int, int, int]:
    magic, rest, _, needed, disk, first, here, count, length, start = _END64.unpack_from(tail)
    if magic != b"PK\x06\x06" or rest != _END64.size - 12 or needed > _HIGHEST_VERSION:
        raise ValueError("no end record of a zip64")
    if disk or first or here != count:
        raise ValueError("a part of a zip on several disks")
    found = (count, length, start)
    for small, number, most in zip(said, found, (_MAX16, _MAX32, _MAX32), strict=True):
        if small not in (number, most):
            raise ValueError("two end records that differ")
    return found
