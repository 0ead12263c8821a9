"""Call system calls that Python does not wrap, with a fallback where the system lacks them."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_SYNC_FILE_RANGE_WRITE: Final = 2
_FICLONE: Final = 0x40049409
_NOT_SUPPORTED: Final = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EPERM}
)


def sync(descriptor: int) -> None:
    """Wait until the data of a file, or the names in a directory, are on the disk.

    Unlike ``os.fsync`` it never retries. After a failure, memory and disk may differ permanently,
    and a second call would wrongly succeed.
    """
    function = _libc_function("fsync")
    if function is None:
        os.fsync(descriptor)
    elif function(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_directory(path: str) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(descriptor: int) -> None:
    """Ask the kernel to drop its cache of a synced file, so that reads come from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Ask the kernel to start writing a range to the disk: a hint only.

    Does nothing if unsupported.
    """
    function = _libc_function("sync_file_range")
    if function is not None:
        function(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def copy_range(source: int, offset: int, target: int, size: int) -> int:
    """Append up to ``size`` bytes of ``source`` to ``target`` inside the kernel.

    Returns the bytes copied: 0 at the end of ``source``, and where the system does not support it.
    """
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, size, offset_src=offset)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return 0
        raise


def clone(source: int, target: int) -> bool:
    """Make the empty file ``target`` share the blocks of ``source``.

    Returns False where the system does not support it.
    """
    import fcntl  # noqa: PLC0415 - not on every system

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return True


def rename_new(source: str, target: str) -> None:
    """Rename a file or directory in one step. Raises FileExistsError if ``target`` exists.

    Without renameat2 a file is linked and then unlinked, and a directory is renamed. No existing
    file is ever overwritten, but an empty directory that appears at that moment is replaced.
    """
    function = _libc_function("renameat2")
    if function is not None:
        result = function(
            _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
        )
        if result == 0:
            return
        code = ctypes.get_errno()
        if code not in _NOT_SUPPORTED:
            raise OSError(code, os.strerror(code), target)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    if stat.S_ISDIR(os.lstat(source).st_mode):
        os.rename(source, target)
    else:
        os.link(source, target)
        os.unlink(source)


@functools.cache
def _libc_function(name: str) -> Callable[..., int] | None:
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]
