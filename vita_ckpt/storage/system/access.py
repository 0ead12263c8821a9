"""Tell who may read a file or directory, and open another one to no others."""

from __future__ import annotations

import functools
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from vita_ckpt.core.dataclass import dataclass

_DIRECTORY_OF_OWNER: Final = 0o700
# Linux's extended attributes for POSIX access control lists, and the tags of their entries.
_LIST: Final = "system.posix_acl_access"
_INHERITED: Final = "system.posix_acl_default"
_OWNING_GROUP: Final = 0x04
_MASK: Final = 0x10


@dataclass(frozen=True, slots=True)
class Access:
    """Permission bits (read, write and execute, of owner, group and others), owner and group.

    ``control_list`` is an access control list, which only a file in its place gets. Where there is
    one, the bits of the group are what it leaves to the owning group.
    """

    mode: int
    owner: int
    group: int
    control_list: bytes = b""

    def for_file(self) -> Access:
        """Return the same without the right to execute it."""
        return replace(self, mode=self.mode & 0o666, control_list=b"")

    def within(self, directory: Access) -> Access:
        """Return what is left of the rights to a file for those who may pass its directory."""
        passing = directory.mode & 0o111
        mode = self.mode & (passing | passing << 1 | passing << 2 | 0o700)
        return replace(self, mode=mode, control_list=b"")


def access_of(path: str) -> Access:
    """Return who may do what with a file or directory, at the end of links."""
    return _access(os.stat(path), _attribute(path, _LIST))


def narrowest(accesses: Iterable[Access]) -> Access | None:
    """Return what all of them allow, with the owner and group of the first; None of none."""
    return functools.reduce(_common, accesses, None)


def limit(descriptor: int, access: Access | None, *, is_directory: bool = False) -> None:
    """Open what was made for its owner alone to those who have ``access``, as far as umask allows.

    None is everybody. Where the group of ``access`` cannot be kept, the group it has instead gets
    what others get. An owner may always write into a directory.
    """
    _drop_lists(descriptor)
    mode = (0o777 if is_directory else 0o666) & ~_umask()
    if access is not None:
        mode &= _with_group(descriptor, access).mode
    if is_directory:
        mode |= _DIRECTORY_OF_OWNER
    _change_mode(descriptor, mode)


def keep(descriptor: int, access: Access) -> bool:
    """Give a file the owner, group and mode of ``access``; return whether the owner could be.

    Where the group could not be, the group it has instead gets what others get. An access control
    list is kept too, if owner and group are and the system lets it be set.
    """
    is_kept = True
    _drop_lists(descriptor)
    if os.fstat(descriptor).st_uid != access.owner:
        try:
            os.fchown(descriptor, access.owner, -1)
        except OSError:
            is_kept = False
    with_group = _with_group(descriptor, access)
    _change_mode(descriptor, with_group.mode)
    if is_kept and with_group.control_list:
        with suppress(OSError):
            os.setxattr(descriptor, _LIST, with_group.control_list)
    return is_kept


def make_directory(path: str, access: Access | None, *, keep_owner: bool = False) -> None:
    """Make a directory that is never more open than ``access``, nor than umask allows.

    With ``keep_owner`` it gets owner, group and mode of ``access`` as far as they can be set. Its
    owner may always write into it.
    """
    os.mkdir(path, _DIRECTORY_OF_OWNER)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if keep_owner and access is not None:
            mode = access.mode | _DIRECTORY_OF_OWNER
            keep(descriptor, replace(access, mode=mode, control_list=b""))
        else:
            limit(descriptor, access, is_directory=True)
    finally:
        os.close(descriptor)


def close_directory(path: str, access: Access) -> None:
    """Take from a directory the rights that go beyond ``access``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        mode = _access(os.fstat(descriptor), _attribute(descriptor, _LIST)).mode
        _drop_lists(descriptor)
        _change_mode(descriptor, mode & (access.mode | _DIRECTORY_OF_OWNER))
    finally:
        os.close(descriptor)


def _access(status: os.stat_result, control_list: bytes) -> Access:
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if control_list:  # what stat calls the group's is what anybody named in the list may get
        mode &= 0o707 | _of_owning_group(control_list) << 3
    return Access(mode, status.st_uid, status.st_gid, control_list)


def _of_owning_group(control_list: bytes) -> int:
    """Return what a list leaves to the owning group: ``acl(5)`` and the kernel's encoding of it."""
    unpacked = struct.iter_unpack("<HHI", control_list[4:])
    entries: dict[int, int] = {tag: rights for tag, rights, _ in unpacked}
    return entries.get(_OWNING_GROUP, 0) & entries.get(_MASK, 7)


def _attribute(file: str | int, name: str) -> bytes:
    """Return an extended attribute; empty where there is none, or no such thing."""
    try:
        return os.getxattr(file, name)
    except (OSError, AttributeError):
        return b""


def _drop_lists(descriptor: int) -> None:
    """Take from a new file or directory the lists that it got from the directory it is in."""
    for name in (_LIST, _INHERITED):
        if _attribute(descriptor, name):
            os.removexattr(descriptor, name)


def _common(first: Access | None, second: Access) -> Access:
    if first is None:
        return second
    mode = second.mode
    if second.group != first.group:
        mode = _group_as_others(mode)
    return replace(first, mode=first.mode & mode, control_list=b"")


def _group_as_others(mode: int) -> int:
    """Return the mode with no more for the group than for others."""
    return mode & (0o707 | (mode & 0o007) << 3)


def _with_group(descriptor: int, access: Access) -> Access:
    """Give a file the group of ``access``, or return that with less for the group it has."""
    if os.fstat(descriptor).st_gid == access.group:
        return access
    try:
        os.fchown(descriptor, -1, access.group)
    except OSError:
        return replace(access, mode=_group_as_others(access.mode), control_list=b"")
    return access


def _change_mode(descriptor: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o777 != mode:
        os.fchmod(descriptor, mode)


def _umask() -> int:
    """Return what this process takes from the mode of new files."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    # Other threads make files for their owner alone in between.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
