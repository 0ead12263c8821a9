"""Files that are written thousands of times."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32


def rewrite(path: Path, data: bytes | bytearray) -> None:
    """Put another file in the place of one: what is truncated and written again, ext4 flushes."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def stored(entries: Mapping[str, bytes]) -> bytes:
    """A zip of these entries, as zipfile writes one without compression, in a tenth of the time."""
    files, directory = bytearray(), bytearray()
    for name, data in entries.items():
        size, words = len(data), name.encode()
        # Version, flags, method, time and date.
        shared = struct.pack("<5H3I2H", 20, 0, 0, 0, 0x21, crc32(data), size, size, len(words), 0)
        place = struct.pack("<3H2I", 0, 0, 0, 0o600 << 16, len(files))
        directory += b"PK\x01\x02" + struct.pack("<H", 0x0314) + shared + place + words
        files += b"PK\x03\x04" + shared + words + data
    count = len(entries)
    end = struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(files), 0)
    return bytes(files + directory + b"PK\x05\x06" + end)
