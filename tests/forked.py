"""The process that is forked for every command line: see :mod:`tests.forker`."""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

LONGEST = 180  # seconds
_PAUSE = 0.002  # seconds


def serve(warm: Callable[[], None]) -> None:
    """Fork for every request to start a command line, and wait for those that are to be awaited."""
    warm()
    gc.collect()
    gc.freeze()  # a fork has no need to look at all that again
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"], request["seconds"])
        else:
            answer = os.fork()
            if answer == 0:
                _become(**request)
        os.write(1, json.dumps(answer).encode() + b"\n")


def _wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(_PAUSE)


def _become(
    arguments: list[str],
    program: str | None,
    cwd: str,
    environment: dict[str, str],
    out: str,
    err: str,
) -> None:
    signal.alarm(LONGEST)
    if _told(environment) != _told(os.environ):
        # What it is made of stays; it is imported anew, with the environment of this run.
        for name in [n for n in sys.modules if n.split(".")[0] == "huggingface_hub"]:
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None  # an import may have set it
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    words = [os.fsdecode(bytes.fromhex(argument)) for argument in arguments]
    try:
        if program is None:
            from vita_ckpt.cli.main import main

            main(words)
        sys.argv[:] = ["-c", *words]
        exec(program or "", {"__name__": "__main__"})
        sys.exit(0)
    except SystemExit as ended:
        end(ended.code)


def end(code: object) -> NoReturn:
    """End as the interpreter does, but take nothing apart: that copies every page of a fork."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # one that is closed or full
            stream.flush()
    if not isinstance(code, int):
        sys.exit(code)  # type: ignore[arg-type]
    os._exit(code)


def _told(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what huggingface_hub may read when it is imported."""
    return {
        name: value
        for name, value in environment.items()
        if name not in ("HF_TOKEN", "PYTEST_CURRENT_TEST", "TMPDIR")
    }


def warm() -> None:
    """Import what the commands import that need neither torch nor a hub."""
    for also in ("html", "tabulate", "stringprep", "encodings.idna"):
        import_module(also)
    for package in (
        "core",
        "storage",
        "surgery",
        "checks",
        "api",
        "cli",
        "cli.commands",
        "cli.formats",
    ):
        for module in pkgutil.iter_modules(import_module(f"vita_ckpt.{package}").__path__):
            import_module(f"vita_ckpt.{package}.{module.name}")


def warm_for_the_hub() -> None:
    """Import what commands on a hub import too."""
    import huggingface_hub  # noqa: F401
    from huggingface_hub import HfApi, hf_hub_download, utils  # noqa: F401

    warm()
    for module in pkgutil.iter_modules(import_module("vita_ckpt.storage.hub").__path__):
        import_module(f"vita_ckpt.storage.hub.{module.name}")


def warm_for_torch() -> None:
    """Import what verify imports too, and what lets several processes talk."""
    warm()
    for module in ("vita_ckpt.model.verification.verify", "torch.distributed"):
        import_module(module)


def warm_without_the_package() -> None:
    """Import what verify imports of others."""
    for module in ("click.testing", "torch", "transformers.modeling_utils", "PIL.Image"):
        import_module(module)


def warm_for_both() -> None:
    """Import what commands on a hub import that verify."""
    warm_for_the_hub()
    warm_for_torch()
