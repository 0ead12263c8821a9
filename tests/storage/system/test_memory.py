"""What is free is less than what there is."""

from __future__ import annotations

import os

from vita_ckpt.storage.system.memory import free_memory


def test_some_of_the_memory_is_free() -> None:
    assert 0 < free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
