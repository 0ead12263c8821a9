"""A directory as a file system holds it: inodes, entries, and each effect of a trace on them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from tests.torture.operations import (
    Allocate,
    Chdir,
    Clone,
    Close,
    Copy,
    Duplicate,
    Hint,
    Link,
    Mkdir,
    Open,
    OpenOther,
    Operation,
    Place,
    Read,
    Rename,
    Seek,
    Symlink,
    Sync,
    Traced,
    Truncate,
    UnknownCallError,
    Unlink,
    Write,
)

# What a tree is compared by: the bytes of a file, "-> target" of a link, None for a directory.
Tree = dict[str, bytes | str | None]

_MOST_LINKS: Final = 40
_INHERITED: Final = frozenset({0, 1, 2})


@dataclass(frozen=True, slots=True)
class File:
    """A regular file; ``mtime`` in ns as long as nothing has written to it."""

    content: bytes = b""
    mtime: int | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """The inodes of its entries by name."""

    entries: dict[bytes, int]


@dataclass(frozen=True, slots=True)
class Symbolic:
    """A symbolic link."""

    target: bytes


Node = File | Directory | Symbolic


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a file: lasting once the file is synced."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Size:
    """A file cut or grown: lasting once the file is synced."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Bind:
    """A name for an inode: lasting once the directory is synced."""

    directory: int
    name: bytes
    node: int


@dataclass(frozen=True, slots=True)
class Unbind:
    """A name taken from an inode: lasting once the directory is synced."""

    directory: int
    name: bytes
    node: int


@dataclass(frozen=True, slots=True)
class Move:
    """An inode's name changed in one step, over whatever had the new one: both directories'."""

    directory: int
    name: bytes
    to_directory: int
    to_name: bytes
    node: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two names change their inodes in one step."""

    directory: int
    name: bytes
    node: int
    to_directory: int
    to_name: bytes
    to_node: int


@dataclass(frozen=True, slots=True)
class Synced:
    """Of an inode, or with None of all, the first ``covers`` effects are on the disk."""

    node: int | None
    covers: int


Effect = Data | Size | Bind | Unbind | Move | Exchange | Synced


def syncs_needed(effect: Effect) -> frozenset[int]:
    """The inodes that must be synced for an effect to last."""
    if isinstance(effect, Data | Size):
        return frozenset({effect.node})
    if isinstance(effect, Move | Exchange):
        return frozenset({effect.directory, effect.to_directory})
    if isinstance(effect, Bind | Unbind):
        return frozenset({effect.directory})
    return frozenset()


@dataclass(slots=True)
class Nodes:
    """Inodes by number, the root's among them; effects are applied one by one, in any subset."""

    root: int
    nodes: dict[int, Node]

    @classmethod
    def load(cls, path: str) -> Nodes:
        """What a directory on this disk holds; hard links stay one inode."""
        nodes: dict[int, Node] = {}

        def add(place: str) -> int:
            status = os.lstat(place)
            number = status.st_ino
            if stat.S_ISDIR(status.st_mode):
                entries = {os.fsencode(n): add(os.path.join(place, n)) for n in os.listdir(place)}
                nodes[number] = Directory(entries)
            elif stat.S_ISLNK(status.st_mode):
                nodes[number] = Symbolic(os.fsencode(os.readlink(place)))
            else:
                with open(place, "rb") as file:
                    nodes[number] = File(file.read(), status.st_mtime_ns)
            return number

        return cls(add(path), nodes)

    def copy(self) -> Nodes:
        """The same inodes, to be changed apart."""
        return Nodes(
            self.root,
            {
                number: Directory(dict(node.entries)) if isinstance(node, Directory) else node
                for number, node in self.nodes.items()
            },
        )

    def apply(self, effect: Effect) -> None:
        """Let an effect come about; an entry's names its inode, whatever else was lost."""
        if isinstance(effect, Data):
            old = self._file(effect.node)
            padded = old.ljust(effect.offset, b"\0")
            after = padded[effect.offset + len(effect.data) :]
            self.nodes[effect.node] = File(padded[: effect.offset] + effect.data + after)
        elif isinstance(effect, Size):
            old = self._file(effect.node)
            self.nodes[effect.node] = File(old[: effect.size].ljust(effect.size, b"\0"))
        elif isinstance(effect, Bind):
            self._entries(effect.directory)[effect.name] = effect.node
        elif isinstance(effect, Unbind):
            self._take(effect.directory, effect.name, effect.node)
        elif isinstance(effect, Move):
            self._take(effect.directory, effect.name, effect.node)
            self._entries(effect.to_directory)[effect.to_name] = effect.node
        elif isinstance(effect, Exchange):
            self._entries(effect.directory)[effect.name] = effect.to_node
            self._entries(effect.to_directory)[effect.to_name] = effect.node

    def below(self, number: int, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every path below an inode, with the inode it leads to; directories before theirs."""
        node = self.nodes[number]
        if isinstance(node, Directory):
            for name, child in sorted(node.entries.items()):
                path = prefix + os.fsdecode(name)
                yield path, child
                yield from self.below(child, f"{path}/")

    def is_directory(self, number: int) -> bool:
        """Whether an inode is one."""
        return isinstance(self.nodes[number], Directory)

    def tree(self) -> Tree:
        """What can be reached from the root."""
        found: Tree = {}
        for path, number in self.below(self.root):
            node = self.nodes[number]
            if isinstance(node, File):
                found[path] = node.content
            else:
                found[path] = (
                    f"-> {os.fsdecode(node.target)}" if isinstance(node, Symbolic) else None
                )
        return found

    def write(self, path: str) -> None:
        """Make an empty directory hold this, hard links and times of untouched files included."""
        made: dict[int, str] = {}
        for name, number in self.below(self.root):
            node, place = self.nodes[number], os.path.join(path, name)
            if isinstance(node, Directory):
                os.mkdir(place)
            elif isinstance(node, Symbolic):
                os.symlink(node.target, os.fsencode(place))
            elif number in made:
                os.link(made[number], place)
            else:
                with open(place, "xb") as file:
                    file.write(node.content)
                if node.mtime is not None:
                    os.utime(place, ns=(node.mtime, node.mtime))
                made[number] = place

    def _file(self, number: int) -> bytes:
        node = self.nodes[number]
        assert isinstance(node, File), node
        return node.content

    def _entries(self, number: int) -> dict[bytes, int]:
        node = self.nodes[number]
        assert isinstance(node, Directory), node
        return node.entries

    def _take(self, directory: int, name: bytes, number: int) -> None:
        """Remove an entry, if it still leads to this inode: else it was replaced or never came."""
        entries = self._entries(directory)
        if entries.get(name) == number:
            del entries[name]


def identity(path: str) -> dict[str, tuple[object, ...]]:
    """All by which a directory that was left alone can be told from one that was not.

    Inodes, modes, links, contents, and times of change but those of directories: an entry that came
    and went again changes these.
    """
    found: dict[str, tuple[object, ...]] = {}

    def add(place: str) -> None:
        status = os.lstat(place)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            for name in sorted(os.listdir(place)):
                add(os.path.join(place, name))
        elif stat.S_ISLNK(status.st_mode):
            content = status.st_mtime_ns, os.readlink(place)
        else:
            with open(place, "rb") as file:
                content = status.st_mtime_ns, file.read()
        found[place] = status.st_ino, status.st_mode, status.st_nlink, content

    add(path)
    return found


@dataclass(slots=True)
class _Opened:
    """An open file description: descriptors that are duplicates share it."""

    node: int | None
    position: int = 0
    append: bool = False
    lasting: bool = False


@dataclass(slots=True)
class Disk:
    """A directory, the trace of a program that works in it, and what that did, as effects.

    ``root`` is the directory's path, ``cwd`` where the program started. What lies outside ``root``
    does not count, unless the program brings something of it in: that is refused.
    """

    root: str
    cwd: str
    start: Nodes = field(init=False)
    now: Nodes = field(init=False)
    effects: list[Effect] = field(default_factory=list)
    concerned: list[Traced] = field(default_factory=list)
    _after: list[int] = field(default_factory=list)
    _opened: dict[int, _Opened] = field(default_factory=dict)
    _next: int = -1

    def __post_init__(self) -> None:
        self.root, self.cwd = os.path.realpath(self.root), os.path.realpath(self.cwd)
        self.start = Nodes.load(self.root)
        self.now = self.start.copy()
        self._opened = {number: _Opened(None) for number in _INHERITED}

    def replay(self, trace: Iterable[Traced]) -> Disk:
        """Let a whole trace happen; ``concerned`` are then its calls that change what is below.

        Raises UnknownCallError for a call whose effect cannot be known.
        """
        for traced in trace:
            if self._happens(traced):
                self.concerned.append(traced)
            self._after.append(len(self.effects))
        return self

    def _happens(self, traced: Traced) -> bool:
        operation, failed = traced.operation, bool(traced.error)
        if isinstance(operation, Open):
            return self._open(operation, failed)
        if isinstance(operation, Mkdir | Rename | Link | Symlink | Unlink):
            return self._entry(operation, failed)
        if isinstance(operation, Write | Copy | Clone | Truncate | Allocate):
            return self._content(operation, failed)
        if isinstance(operation, Sync):
            return self._sync(operation, traced.started, failed)
        if not failed:
            self._bookkeeping(operation)
        return False

    # Descriptors.

    def _bookkeeping(self, operation: Operation) -> None:
        if isinstance(operation, OpenOther):
            self._opened |= {number: _Opened(None) for number in operation.descriptors}
        elif isinstance(operation, Close):
            if operation.first == operation.last:
                self._opened.pop(operation.first, None)
            else:
                for number in list(self._opened):
                    if operation.first <= number <= operation.last:
                        del self._opened[number]
        elif isinstance(operation, Duplicate):
            self._opened[operation.new] = self._descriptor(operation.old)
        elif isinstance(operation, Seek):
            self._descriptor(operation.descriptor).position = operation.position
        elif isinstance(operation, Read):
            if operation.descriptor in self._opened:
                self._opened[operation.descriptor].position += operation.count
        elif isinstance(operation, Chdir):
            if not isinstance(operation.place, Place) or operation.place.at is not None:
                raise UnknownCallError("fchdir")
            self.cwd = os.path.normpath(os.path.join(self.cwd, os.fsdecode(operation.place.path)))
        else:
            assert isinstance(operation, Hint), operation

    def _descriptor(self, number: int) -> _Opened:
        if number not in self._opened:
            raise UnknownCallError(f"descriptor {number}, which nobody opened")
        return self._opened[number]

    def _open(self, operation: Open, failed: bool) -> bool:
        where = self._resolve(operation.place, follow="O_NOFOLLOW" not in operation.flags)
        changing = bool(operation.flags & {"O_CREAT", "O_TRUNC"})
        if where is None:
            if not failed:
                self._opened[operation.descriptor] = _Opened(None)
            return False
        if failed:
            return changing
        directory, name = where
        number = self._lookup(directory, name)
        created = number is None
        if number is None:
            number = self._new(File())
            self._effect(Bind(directory, name, number))
        elif "O_TRUNC" in operation.flags and self.now._file(number):
            self._effect(Size(number, 0))
        self._opened[operation.descriptor] = _Opened(
            number,
            append="O_APPEND" in operation.flags,
            lasting=bool(operation.flags & {"O_SYNC", "O_DSYNC"}),
        )
        return created or "O_TRUNC" in operation.flags

    # Content.

    def _content(self, operation: Write | Copy | Clone | Truncate | Allocate, failed: bool) -> bool:
        if isinstance(operation, Truncate):
            number = self._target(operation.file)
            if number is not None and not failed:
                self._effect(Size(number, operation.size))
            return number is not None
        descriptor = (
            operation.descriptor if isinstance(operation, Write | Allocate) else operation.target
        )
        opened = self._descriptor(descriptor)
        if opened.node is None:
            return False
        if failed:
            return True
        if isinstance(operation, Write):
            self._write(opened, operation.data, operation.offset)
        elif isinstance(operation, Allocate):
            if operation.size > len(self.now._file(opened.node)):
                self._effect(Size(opened.node, operation.size))
        elif isinstance(operation, Clone):
            content = self._source(operation.source)
            self._effect(Size(opened.node, len(content)))
            self._effect(Data(opened.node, 0, content))
        else:
            self._copy(operation, opened)
        return True

    def _copy(self, operation: Copy, target: _Opened) -> None:
        source = self._descriptor(operation.source)
        offset = operation.source_offset
        if offset is None:
            offset = source.position
            source.position += operation.count
        data = self._source(operation.source)[offset : offset + operation.count]
        if len(data) != operation.count:
            raise UnknownCallError(f"a copy of {operation.count} bytes where {len(data)} are known")
        self._write(target, data, operation.target_offset)

    def _source(self, descriptor: int) -> bytes:
        """The content that is copied; from outside of the directory it cannot be known."""
        number = self._descriptor(descriptor).node
        if number is None:
            raise UnknownCallError("a copy from outside of the directory")
        return self.now._file(number)

    def _write(self, opened: _Opened, data: bytes, offset: int | None) -> None:
        assert opened.node is not None
        if offset is None:
            offset = len(self.now._file(opened.node)) if opened.append else opened.position
            opened.position = offset + len(data)
        if data:
            self._effect(Data(opened.node, offset, data))
        if opened.lasting:
            self._effect(Synced(opened.node, len(self.effects)))

    def _target(self, file: int | Place) -> int | None:
        if isinstance(file, int):
            return self._descriptor(file).node
        where = self._resolve(file, follow=True)
        return None if where is None else self._lookup(*where)

    # Entries.

    def _entry(self, operation: Mkdir | Rename | Link | Symlink | Unlink, failed: bool) -> bool:
        if isinstance(operation, Rename | Link):
            return self._two_places(operation, failed)
        where = self._resolve(operation.place, follow=False)
        if where is None or failed:
            return where is not None
        directory, name = where
        if isinstance(operation, Unlink):
            number = self._lookup(directory, name)
            assert number is not None, name
            self._effect(Unbind(directory, name, number))
        else:
            node = Directory({}) if isinstance(operation, Mkdir) else Symbolic(operation.target)
            self._effect(Bind(directory, name, self._new(node)))
        return True

    def _two_places(self, operation: Rename | Link, failed: bool) -> bool:
        old = self._resolve(operation.old, follow=False)
        new = self._resolve(operation.new, follow=False)
        if failed or (old is None and new is None):
            return not (old is None and new is None)
        if old is None or new is None:
            raise UnknownCallError(f"{operation} over the border of the directory")
        number = self._lookup(*old)
        assert number is not None, operation
        if isinstance(operation, Link):
            self._effect(Bind(*new, number))
        elif operation.exchange:
            other = self._lookup(*new)
            assert other is not None, operation
            self._effect(Exchange(*old, number, *new, other))
        elif self._lookup(*new) != number:  # two names of one file: rename does nothing
            self._effect(Move(*old, *new, number))
        return True

    def _sync(self, operation: Sync, started: int, failed: bool) -> bool:
        covers = self._after[started - 1] if started else 0
        if operation.descriptor is None:
            if not failed:
                self.effects.append(Synced(None, covers))
            return False
        number = self._descriptor(operation.descriptor).node
        if number is None:
            return False
        if not failed:
            self.effects.append(Synced(number, covers))
        return True

    def _effect(self, effect: Effect) -> None:
        self.now.apply(effect)
        self.effects.append(effect)

    def _new(self, node: Node) -> int:
        """An inode that is in no directory yet, in the beginning and now."""
        number, self._next = self._next, self._next - 1
        self.now.nodes[number] = node
        self.start.nodes[number] = Directory({}) if isinstance(node, Directory) else replace(node)
        return number

    # Paths.

    def _lookup(self, directory: int, name: bytes) -> int | None:
        node = self.now.nodes[directory]
        assert isinstance(node, Directory), name
        return directory if name == b"." else node.entries.get(name)

    def _resolve(self, place: Place, *, follow: bool) -> tuple[int, bytes] | None:
        """The inode of the directory and the name in it; None for what lies outside."""
        if place.at is not None and not place.path.startswith(b"/"):
            base = self._descriptor(place.at).node
            return None if base is None else self._walk(base, place.path, follow)
        path = os.fsdecode(place.path)
        if path.startswith("/proc/"):
            if "/fd/" in path:
                raise UnknownCallError(path)
            return None
        return self._from_outside(os.path.join(self.cwd, path), follow)

    def _from_outside(self, path: str, follow: bool) -> tuple[int, bytes] | None:
        """An absolute path: links above the directory are the real disk's."""
        head, tail = os.path.split(os.path.normpath(path))
        parts = [tail]
        while head not in (self.root, "/"):
            if os.path.realpath(head) == self.root:
                break
            head, tail = os.path.split(head)
            parts.insert(0, tail)
        if os.path.realpath(head) != self.root:
            if os.path.normpath(path) == self.root:
                return self.now.root, b"."
            return None
        return self._walk(self.now.root, os.fsencode("/".join(parts)), follow)

    def _walk(
        self, start: int, path: bytes, follow: bool, links: int = 0
    ) -> tuple[int, bytes] | None:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if not parts:
            return start, b"."
        current = start
        for index, part in enumerate(parts):
            if part == b"..":
                raise UnknownCallError(f"a path with '..': {path!r}")
            last = index == len(parts) - 1
            number = self._lookup(current, part)
            node = None if number is None else self.now.nodes[number]
            if isinstance(node, Symbolic) and (follow or not last):
                if links > _MOST_LINKS:
                    return None
                return self._through(current, node, parts[index + 1 :], follow, links)
            if last:
                return current, part
            if not isinstance(node, Directory) or number is None:
                return None
            current = number
        raise AssertionError(path)

    def _through(
        self, directory: int, link: Symbolic, rest: list[bytes], follow: bool, links: int
    ) -> tuple[int, bytes] | None:
        """On through a symbolic link."""
        if link.target.startswith(b"/"):
            return self._from_outside(os.fsdecode(b"/".join((link.target, *rest))), follow)
        where = next(
            (path for path, number in self.now.below(self.now.root) if number == directory), ""
        )
        whole = os.path.normpath(os.path.join(where, os.fsdecode(b"/".join((link.target, *rest)))))
        if whole.startswith(".."):
            return self._from_outside(os.path.join(self.root, whole), follow)
        return self._walk(self.now.root, os.fsencode(whole), follow, links + 1)
