"""numpy's products run in one thread while that is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from vita_ckpt.storage.system import blas
from vita_ckpt.storage.tensors.stream import Inputs


def test_products_are_in_one_thread_and_right() -> None:
    library = blas._library()
    if library is None:
        pytest.skip("numpy multiplies with another library than OpenBLAS")
    before = library.get()
    one, other = np.ones((300, 300), np.float32), np.ones((300, 300), np.float32)
    with blas.one_thread():
        assert library.get() == 1
        assert (one @ other == 300).all()
    assert library.get() == before


def test_the_setting_is_put_back_after_an_error() -> None:
    library = blas._library()
    before = None if library is None else library.get()
    with pytest.raises(ValueError, match="stop"), blas.one_thread():
        raise ValueError("stop")
    assert library is None or library.get() == before


def test_inputs_ask_for_it_once_and_until_they_are_closed() -> None:
    library = blas._library()
    before = None if library is None else library.get()
    with Inputs() as inputs:
        inputs.begin_products()
        inputs.begin_products()
        assert library is None or library.get() == 1
    assert library is None or library.get() == before
