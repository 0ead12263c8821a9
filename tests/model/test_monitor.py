"""The watch over ranks, with a real store in one process."""

from __future__ import annotations

from torch import distributed

from vita_ckpt.model.monitor import Monitor


def test_a_rank_that_was_never_heard_is_missing() -> None:
    """One that is killed before it says anything is named too."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    present = [Monitor(store, rank, 3, hosts=None, timeout=60) for rank in (0, 2)]
    for monitor in present:
        monitor.start()
    assert [monitor.missing() for monitor in present] == [1, 1]
    store.add("done", 3)
    for monitor in present:
        monitor.finish()
