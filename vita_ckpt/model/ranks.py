"""Join the processes of a launcher with torch.distributed, and let them talk."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from vita_ckpt.core.launch import Launch
from vita_ckpt.errors import InputError, VitaCkptError
from vita_ckpt.model.monitor import Failure, Monitor

# How long a rank waits for the others to come, in seconds.
RENDEZVOUS: Final = 60.0
# The monitor ends what hangs; torch's own limit must not come before it.
_NO_LIMIT: Final = timedelta(days=30)

T = TypeVar("T")


class Ranks:
    """The processes of one run, seen from one of them: ``rank`` of ``size``.

    ``speaks`` says whether this is the rank that prints the outcome. Every method that talks to
    the others raises InputError ``rank-lost`` if one of them is gone. ``neighbours`` is how many
    of them are on this machine.
    """

    def __init__(self, launch: Launch, monitor: Monitor) -> None:
        self.rank = launch.rank
        self.size = launch.size
        self.speaks = launch.rank == 0
        self.neighbours = 1
        self.monitor = monitor
        self._local_rank = launch.local_rank
        self._agreed: BaseException | None = None
        self._failure: Failure | None = None
        self._data: Any = None
        # How many ranks share this one's device.
        self.sharers = 1
        self.leader_on_gpu = False

    @classmethod
    def join(cls, launch: Launch, timeout: float) -> Ranks:
        """Find the other processes of a launch; see :func:`~vita_ckpt.api.ranks.join_ranks`."""
        where = f"{launch.address}:{launch.port}"
        limit = timedelta(seconds=RENDEZVOUS)
        hosts = None if launch.served else 0
        try:
            # A connection of its own for the monitor: one of them waits while the other works.
            stores = [
                PrefixStore(
                    f"vita-ckpt/{launch.attempt}",
                    TCPStore(
                        *(launch.address, launch.port),
                        is_master=hosts == launch.rank and host,
                        timeout=limit,
                        wait_for_workers=False,
                    ),
                )
                for host in (True, False)
            ]
            store = stores[0]
            store.set(f"here/{launch.rank}", "")
            store.wait([f"here/{rank}" for rank in range(launch.size)], limit)
        except RuntimeError as error:
            raise InputError(
                "rendezvous-failed",
                where,
                expected=f"{launch.size} processes within {RENDEZVOUS:g} s",
                got=str(error).partition("\n")[0],
                hint="--single runs without the launcher's other processes",
            ) from error
        monitor = Monitor(stores[1], launch.rank, launch.size, hosts=hosts, timeout=timeout)
        monitor.start()
        dist.init_process_group(
            "gloo",
            store=PrefixStore("group", store),
            rank=launch.rank,
            world_size=launch.size,
            timeout=_NO_LIMIT,
        )
        ranks = cls(launch, monitor)
        host = socket.gethostname()
        ranks.neighbours = ranks.gather(host).count(host)
        return ranks

    @property
    def is_last(self) -> bool:
        """Whether this rank has the last stage."""
        return self.rank == self.size - 1

    @property
    def ended(self) -> bool:
        """Whether the run ends with an error."""
        return self._failure is not None

    def place(self, device: str) -> str:
        """Return the device of this rank where ``device`` was asked for; every rank calls it.

        Each rank of a machine gets a GPU of its own as long as there are enough. Tensors travel by
        NCCL if every rank has a GPU of its own, else by gloo, through the CPU.
        """
        count = torch.cuda.device_count()
        if device == "auto":
            device = "cuda" if count else "cpu"
        if device == "cuda" and count:
            device = f"cuda:{self._local_rank % count}"
        places = self.gather((socket.gethostname(), device))
        self.leader_on_gpu = places[0][1].startswith("cuda")
        self.sharers = places.count(places[self.rank])
        alone = len(set(places)) == self.size
        if (
            alone
            and all(name.startswith("cuda") for _, name in places)
            and dist.is_nccl_available()
        ):
            with self._talking(None):
                torch.cuda.set_device(device)
                self._data = dist.new_group(backend="nccl", timeout=_NO_LIMIT)
        return device

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Run the body on every rank; if it fails on any, raise the first error on all alike."""
        error: VitaCkptError | None = None
        cause: BaseException | None = None
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - whatever it is, the others wait for it
            error, cause = self._described(raised), raised
        errors = self.gather(error)
        failed = [rank for rank, one in enumerate(errors) if one is not None]
        if not failed:
            return
        first: VitaCkptError = errors[failed[0]]  # type: ignore[assignment]
        if len(failed) < self.size:
            first = first.with_subject(f"{first.subject} (rank {failed[0]})")
        self._agreed = first
        raise first from cause

    def agree(self, value: object, what: str) -> None:
        """Raise InputError ``ranks-disagree`` on every rank unless all have an equal value."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                self._agreed = InputError(
                    "ranks-disagree",
                    what,
                    expected="the same on every rank",
                    got=f"another on rank {rank} than on rank 0",
                    hint="every machine needs the same files and the same versions",
                )
                raise self._agreed

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank, on each of them."""
        values: list[Any] = [None] * self.size
        with self._talking(None):
            dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """Return the value of rank 0 on each rank."""
        values: list[Any] = [value]
        with self._talking(0 if self.rank else None):
            dist.broadcast_object_list(values, src=0)
        shared: T = values[0]
        return shared

    def send(self, tensor: Tensor, rank: int) -> None:
        """Send a tensor; small ones of integers, which say what comes, always travel by gloo."""
        with self._talking(rank):
            if self._data is not None and tensor.is_floating_point():
                dist.send(tensor.contiguous(), rank, group=self._data)
            else:
                dist.send(tensor.cpu().contiguous(), rank)

    def receive(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rank: int
    ) -> Tensor:
        """Return what ``rank`` sent, of a known shape and dtype, on ``device``."""
        by_nccl = self._data is not None and dtype.is_floating_point
        tensor = torch.empty(shape, dtype=dtype, device=device if by_nccl else "cpu")
        with self._talking(rank):
            dist.recv(tensor, rank, group=self._data if by_nccl else None)
        return tensor.to(device)

    def failed(self, error: BaseException) -> VitaCkptError:
        """Tell the others of an error that they do not know of; return what the run ends with."""
        if error is self._agreed:
            return self._agreed  # type: ignore[return-value]
        gone = None
        if isinstance(error, _LostError):
            gone = self.monitor.missing() if error.gone is None else error.gone
            error = _lost(gone)
        self._failure = self.monitor.fail(self._described(error), gone=gone)
        self.speaks = self._failure.speaker == self.rank
        return self._failure.error

    def leave(self) -> None:
        """Wait until every rank is done, and the outcome of the run is printed."""
        if self._failure is not None:
            self.monitor.farewell(self._failure)
            return
        self.monitor.finish()
        dist.destroy_process_group()

    @contextmanager
    def _talking(self, rank: int | None) -> Iterator[None]:
        with self.monitor.waiting():
            try:
                yield
            except RuntimeError as error:
                raise _lost(rank) from error

    def _described(self, error: BaseException) -> VitaCkptError:
        if isinstance(error, VitaCkptError):
            return error
        return InputError(
            "rank-failed", f"rank {self.rank}", got=f"{type(error).__name__}: {error}"
        )


class _LostError(InputError):
    """The connection to a rank broke: ``gone``, if it is known which."""

    gone: int | None = None


def _lost(rank: int | None) -> _LostError:
    subject = "a rank" if rank is None else f"rank {rank}"
    error = _LostError("rank-lost", subject, got="it ended")
    error.gone = rank
    return error
