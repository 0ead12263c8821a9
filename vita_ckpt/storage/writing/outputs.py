"""Files on their way to the disk: created, streamed into by two threads, synced all together."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import IO, Final

from vita_ckpt.core.options import Link
from vita_ckpt.errors import UsageError
from vita_ckpt.storage.formats.torch_writer import Entry, check_writable, write_state_dict
from vita_ckpt.storage.system.access import limit, make_directory
from vita_ckpt.storage.system.os_errors import require_space
from vita_ckpt.storage.system.syscalls import clone, sync, sync_directory
from vita_ckpt.storage.tensors.stream import Inputs, Progress, Writer, tensor_bytes, write_tensor
from vita_ckpt.storage.writing.layout import CarriedFile, WrittenShard, WrittenText
from vita_ckpt.storage.writing.limits import Limits, sources_of

# Files that are written but not yet synced are kept open, so that no error of theirs is missed.
_MOST_OPEN: Final = 128


Job = Callable[[], None]

# From the digests, in hex, of the tensors that were written: the files that say what was done.
Finish = Callable[[Mapping[str, str]], tuple[WrittenText, ...]]


class _StoppedError(Exception):
    """The other thread has failed, and says why."""


class Outputs:
    """Files below a directory of their own, or at its place; ``stage`` is its path.

    Two threads write, because copying costs as much processor time as disk time: one copies while
    the other waits for the disk. ``left`` is how many bytes are still to be written; ``digested``
    are the names of the tensors whose digests are wanted: ``digests`` has them, in hex. Files and
    directories are no more open than ``limits`` say; without any they are for their owner alone.
    """

    def __init__(
        self,
        stage: str,
        progress: Progress,
        left: int,
        *,
        digested: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self.digests: dict[str, str] = {}
        self._stage = stage
        self._progress = progress
        self._left = left
        self._digested = digested
        self._limits = limits
        self._lock = Lock()
        self._helping = Lock()
        self._stopped = Event()
        self._unsynced: list[int] = []
        self._directories = {stage: None}

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._unsynced:
            os.close(self._unsynced.pop())

    def require(self, size: int) -> None:
        """Raise OSError(ENOSPC) before they are written if ``size`` bytes do not fit."""
        require_space(os.path.dirname(self._stage), size)

    def run(self, jobs: Iterable[Job]) -> None:
        """Do all the jobs, or stop them all with the first error or interrupt.

        On return, however it comes about, the helper does nothing any more and will do nothing:
        it works only while it holds its lock, and looks for a stop each time it has taken it.
        """
        waiting = deque(jobs)
        errors: list[BaseException] = []
        helper = Thread(target=self._help, args=(waiting, errors), daemon=True)
        try:
            helper.start()
            with suppress(_StoppedError):
                while (job := _next(waiting)) is not None:
                    job()
            with self._helping:
                pass
        except BaseException:
            self._stopped.set()
            with self._helping:
                pass
            raise
        if errors:
            raise errors[0]

    def _help(self, waiting: deque[Job], errors: list[BaseException]) -> None:
        while True:
            with self._helping:
                job = None if self._stopped.is_set() else _next(waiting)
                if job is None:
                    return
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 - raised again by run()
                    errors.append(error)
                    self._stopped.set()

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file of these bytes."""
        with self._file(name) as target:
            writer = Writer(target, self._step)
            for piece in pieces:
                writer.write(piece)

    def carry(self, file: CarriedFile, link: Link = "auto") -> None:
        """Write a file with the bytes of an input, copied or shared as ``link`` says.

        ``auto`` shares blocks where the file system can and copies where it cannot. Raises
        UsageError where a link that was asked for cannot be made.
        """
        if link in ("hardlink", "symlink"):
            self._link(file, link)
            return
        # Its own inputs: a checkpoint may carry more files than a process may open.
        with Inputs() as inputs, self._file(file.name) as target:
            source = inputs.descriptor(file.source)
            if link != "copy" and clone(source, target):
                self._step(file.source.size)
                return
            if link == "reflink":
                raise _impossible(file, link, "no file system that shares blocks between files")
            self.require(self._left)
            Writer(target, self._step).copy(source, 0, file.source.size, file.source.path)

    def write_shard(self, shard: WrittenShard, inputs: Inputs) -> None:
        """Write a safetensors file, or one as of torch.save."""
        if shard.format == "torch":
            described = [(name, tensor.dtype, tensor.shape) for name, tensor in shard.entries]
            self._write_torch(shard, described, inputs)
            return
        header, size = shard.header()
        self.require(len(header) + size)
        sources = sources_of(tensor for _, tensor in shard.entries)
        with self._file(shard.name, sources) as target:
            writer = Writer(target, self._step)
            writer.write(header)
            for name, tensor in shard.entries:
                digest = hashlib.sha256() if name in self._digested else None
                write_tensor(tensor, inputs, name, writer, digest)
                if digest is not None:
                    self.digests[name] = digest.hexdigest()

    def _write_torch(self, shard: WrittenShard, described: Sequence[Entry], inputs: Inputs) -> None:
        check_writable(described, shard.name)
        self.require(shard.nbytes)
        with self._file(shard.name, sources_of(tensor for _, tensor in shard.entries)) as target:

            def write(index: int, sink: IO[bytes]) -> None:
                name, tensor = shard.entries[index]
                digest = hashlib.sha256()
                for data in tensor_bytes(tensor, inputs, name):
                    if name in self._digested:
                        digest.update(data)
                    sink.write(data)
                    self._step(len(data))
                if name in self._digested:
                    self.digests[name] = digest.hexdigest()

            with open(target, "wb", closefd=False) as handle:
                write_state_dict(handle, described, write)

    def sync(self) -> None:
        """Everything written so far is on the disk, as far as the disk tells the truth."""
        while self._unsynced:
            self._sync_oldest()
        for directory in reversed(self._directories):
            if os.path.isdir(directory):
                sync_directory(directory)

    def _link(self, file: CarriedFile, link: Link) -> None:
        with self._lock:
            path = self._place(file.name)
        # What a link of the input leads to is what counts, not the link.
        origin = os.path.realpath(file.source.path)
        try:
            if link == "symlink":
                os.symlink(origin, path)
            else:
                os.link(origin, path)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise _impossible(file, link, os.strerror(error.errno).lower()) from error
            raise
        self._sync_later(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._step(file.source.size)

    def _step(self, count: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._left -= count
            self._progress(count)

    @contextmanager
    def _file(self, name: str, sources: Collection[str] = ()) -> Iterator[int]:
        """Open a new file for bytes of ``sources``. It stays open until it is synced."""
        with self._lock:
            path = self._place(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        access = self._limits.of_file(name, sources) if self._limits is not None else None
        descriptor = os.open(path, flags, 0o600 if access is None else access.mode & 0o600)
        try:
            if self._limits is not None:
                limit(descriptor, access)
            yield descriptor
        except BaseException:
            os.close(descriptor)
            raise
        self._sync_later(descriptor)

    def _sync_later(self, descriptor: int) -> None:
        with self._lock:
            self._unsynced.append(descriptor)
            if len(self._unsynced) > _MOST_OPEN:
                self._sync_oldest()

    def _place(self, name: str) -> str:
        """Return the path of a file below the stage, and make its directory."""
        path = os.path.join(self._stage, name) if name else self._stage
        self._make_directories(os.path.dirname(path))
        return path

    def _make_directories(self, directory: str) -> None:
        if len(directory) > len(self._stage) and directory not in self._directories:
            self._make_directories(os.path.dirname(directory))
            name = os.path.relpath(directory, self._stage)
            if self._limits is None:
                os.mkdir(directory, 0o700)
            else:
                make_directory(directory, self._limits.of_directory(name))
            self._directories[directory] = None

    def _sync_oldest(self) -> None:
        descriptor = self._unsynced.pop(0)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def _next(waiting: deque[Job]) -> Job | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _impossible(file: CarriedFile, link: Link, got: str) -> UsageError:
    return UsageError(
        "link-not-possible",
        file.source.path,
        expected=f"a file system that makes a {link} of it where the output is",
        got=got,
        hint="--link auto shares blocks where it can, and copies where it cannot",
    )
