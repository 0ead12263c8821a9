"""Runs commands in turn and compares them: wall time and peak memory of whole processes."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median


@dataclass
class Runs:
    """Seconds of every run, of processors too, and the largest resident set, in bytes."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def middle(self) -> float:
        """The median of the seconds."""
        return median(self.seconds)

    @property
    def middle_cpu(self) -> float:
        """The median of the seconds of processors."""
        return median(self.cpu)


def in_turn(
    commands: Mapping[str, Sequence[str]],
    runs: int,
    between: Callable[[str], None] | None = None,
    *,
    may_fail: bool = False,
) -> dict[str, Runs]:
    """Every command once as a warm-up, then ``runs`` times each, A B C A B C ….

    ``between`` is called after each run with the name of the command. With ``may_fail`` a command
    may end in any way.
    """
    results = {name: Runs() for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            before = _cpu_of_children()
            seconds, peak = run(command, may_fail=may_fail)
            cpu = _cpu_of_children() - before
            if between is not None:
                between(name)
            if turn:
                results[name].seconds.append(seconds)
                results[name].cpu.append(cpu)
                results[name].peak = max(results[name].peak, peak)
    return results


def run(
    command: Sequence[str], may_find: bool = False, *, may_fail: bool = False
) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a command, which must succeed.

    With ``may_find`` exit code 1, findings, counts as success too; with ``may_fail`` any, and what
    it says about that is not shown.
    """
    started = time.perf_counter()
    errors = subprocess.DEVNULL if may_fail else None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not may_fail and not (may_find and process.returncode == 1):
        raise SystemExit(f"{command} failed")
    return seconds, usage.ru_maxrss * 1024


def _cpu_of_children() -> float:
    """Seconds of processors that all ended children took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> str:
    """Where and with what this was measured."""
    packages = ("click", "tabulate", "numpy", "safetensors", "torch", "transformers", "accelerate")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}, {versions}"
    )


def show(results: Mapping[str, Runs]) -> None:
    """One line per command."""
    for name, runs in results.items():
        spread = f"{min(runs.seconds):.3f}–{max(runs.seconds):.3f}"
        print(
            f"  {name:<34} {runs.middle:8.3f} s  ({spread}, n={len(runs.seconds)})"
            f"  CPU {runs.middle_cpu:7.3f} s  peak {runs.peak / 1e6:7.1f} MB"
        )


def claim(text: str, value: float, limit: float) -> bool:
    """A measured figure beside what it must reach."""
    holds = value <= limit
    print(f"  {'ok  ' if holds else 'MISS'} {text}: {value:.3g} (at most {limit:g})")
    return holds
