"""Calls in threads: in order, a bounded number ahead, ended by an error or by who takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import active_count

import pytest

from vita_ckpt.storage.system.threads import in_order


def _late(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number


def test_results_come_in_order() -> None:
    assert list(in_order((partial(_late, n) for n in range(40)), 4)) == list(range(40))
    assert list(in_order((), 4)) == []


def test_no_more_than_so_many_are_ahead() -> None:
    started: list[int] = []

    def calls() -> Iterator[Callable[[], int]]:
        for number in range(20):
            started.append(number)
            yield partial(_late, number)

    results = in_order(calls(), 3)
    for taken in range(1, 21):
        next(results)
        assert len(started) <= taken + 3


def test_an_error_ends_them() -> None:
    threads = active_count()
    done: list[int] = []

    def call(number: int) -> int:
        if number == 5:
            raise ValueError(number)
        done.append(number)
        return number

    results = in_order((partial(call, n) for n in range(100)), 2)
    with pytest.raises(ValueError, match="5"):
        list(results)
    assert max(done) <= 8
    assert active_count() == threads


def test_who_stops_taking_ends_them() -> None:
    threads = active_count()
    results = in_order((partial(_late, n) for n in range(1000)), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert active_count() == threads
