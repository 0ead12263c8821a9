"""A process that has imported the tool once and is forked for every run: starting costs nothing.

It reads requests, one JSON object a line, and answers each with one. A run is a forked child that
waits at its gate, so that a tracer can attach to it first, and then is the command line itself, up
to the end of the interpreter. What it says goes to a page of shared memory: no call that a fault is
put into has to do with stdout or stderr.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import json
import mmap
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any, Final

from tests.forked import end
from tests.torture.faults import Fault, install
from tests.torture.injector import Held, Injection, hold

_PAGE: Final = 1 << 18
_PR_SET_PTRACER: Final = 0x59616D61


class Page(io.RawIOBase):
    """A stream into shared memory that outlives the process: its length, then its bytes."""

    def __init__(self, memory: mmap.mmap) -> None:
        super().__init__()
        self._memory = memory

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = bytes(data)
        used = int.from_bytes(self._memory[:8], "little")
        end = min(8 + used + len(written), _PAGE)
        self._memory[8 + used : end] = written[: end - 8 - used]
        self._memory[:8] = (end - 8).to_bytes(8, "little")
        return len(written)

    def text(self) -> str:
        """What has been written so far."""
        used = int.from_bytes(self._memory[:8], "little")
        return self._memory[8 : 8 + used].decode(errors="replace")


class Zygote:
    """The runs that have not been waited for."""

    def __init__(self) -> None:
        # Opened here, since a tracer may have attached to a run before it gets to its gate.
        self._nothing = os.open(os.devnull, os.O_RDWR)
        self._gates: dict[int, int] = {}
        self._pages: dict[int, tuple[Page, Page]] = {}
        self._held: dict[int, Held] = {}

    def serve(self) -> dict[str, Any] | None:
        """Answer requests until there are none; in a forked child the run to be, once it may go."""
        for line in iter(sys.stdin.buffer.readline, b""):
            request = json.loads(line)
            if "argv" in request:
                pid = self._start([Injection(**one) for one in request.get("injections", ())])
                if pid == 0:
                    return dict(request)
                answer: dict[str, Any] = {"pid": pid}
            elif "go" in request:
                for pid in request["go"]:
                    os.close(self._gates.pop(pid))
                answer = {}
            else:
                answer = self._wait(request["wait"], request["seconds"])
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            sys.stdout.buffer.flush()
        return None

    def _start(self, injections: Sequence[Injection]) -> int:
        gate, opens = os.pipe()
        ready, is_ready = socket.socketpair()
        pages = Page(mmap.mmap(-1, _PAGE)), Page(mmap.mmap(-1, _PAGE))
        pid = os.fork()
        if pid:
            os.close(gate)
            is_ready.close()
            # What the child does to become a run is not to be traced.
            _, listeners, _, _ = socket.recv_fds(ready, 1, 1)
            ready.close()
            self._gates[pid], self._pages[pid] = opens, pages
            if listeners:
                self._held[pid] = Held(pid, listeners[0], injections)
            return pid
        ready.close()
        for other in (opens, *self._gates.values()):
            os.close(other)
        _become_quiet(self._nothing, pages)
        listeners = (
            [hold(sorted({injection.name for injection in injections}))] if injections else []
        )
        socket.send_fds(is_ready, [b"."], listeners)
        is_ready.close()
        for other in listeners:
            os.close(other)
        os.read(gate, 1)  # returns when every writer has closed it
        os.close(gate)
        return 0

    def _wait(self, pid: int, seconds: float) -> dict[str, Any]:
        """How a run ended; after ``seconds``, or when it seems to be endless, it is killed."""
        held = self._held.pop(pid, None)
        timed_out = not ends(pid, seconds, held)
        if timed_out:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        out, err = (page.text() for page in self._pages.pop(pid))
        ended = {"code": os.waitstatus_to_exitcode(status), "out": out, "err": err}
        if held is not None:
            os.close(held.listener)
            most = {name: max(counts.values()) for name, counts in held.calls.items()}
            ended |= {"calls": most, "failed": held.failed}
        return ended | {"timed_out": timed_out}


def ends(pid: int, seconds: float, held: Held | None) -> bool:
    """Whether a run ends in time, while its calls are answered."""
    end = time.monotonic() + seconds
    process = os.pidfd_open(pid)
    events = select.poll()
    events.register(process, select.POLLIN)
    if held is not None:
        events.register(held.listener, select.POLLIN)
    try:
        while True:
            found = dict(events.poll(max(0, 1000 * (end - time.monotonic()))))
            if process in found or not found:
                return process in found
            if held is not None and found[held.listener] & select.POLLIN:
                held.answer()
                if held.is_endless:
                    return False
    finally:
        os.close(process)


def _become_quiet(nothing: int, pages: tuple[Page, Page]) -> None:
    """Nothing of the zygote's own streams is left in a run."""
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BufferedWriter(page), "utf-8", write_through=True) for page in pages
    )
    # Where only a parent may trace, strace is not one.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1 & (1 << 64) - 1), 0, 0, 0)


def _import_below(package: str) -> None:
    """A package and all in it, but for what needs torch."""
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if module.name == "vita_ckpt.model":
            continue
        if module.ispkg:
            _import_below(module.name)
        else:
            import_module(module.name)


def _rehearse(checkpoint: str) -> None:
    """Do what Python does once in a process before any run: patterns are compiled, and the like."""
    for argv in (["inspect", checkpoint], ["set", checkpoint, "mm_hidden_size=64", "--dry-run"]):
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            try:
                main(argv)
            except SystemExit as ended:
                assert ended.code == 0, said.getvalue()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert threading.active_count() == 1  # a fork would be without the others


if __name__ == "__main__":
    _import_below("vita_ckpt")
    for also in ("fcntl", "numpy.random", "tabulate", "traceback"):
        import_module(also)
    from vita_ckpt.cli.main import main

    _rehearse(sys.argv[1])
    gc.collect()
    gc.freeze()
    run = Zygote().serve()
    if run is not None:
        os.chdir(run["cwd"])
        if "faults" in run:
            faults = run["faults"]
            fault = Fault(**faults["fault"]) if faults["fault"] else None
            save = install(faults["root"], fault, faults["record"])
            atexit.register(save)
        try:
            main(run["argv"])
        except SystemExit as ended:
            end(ended.code)
