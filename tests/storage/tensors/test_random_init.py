"""Tensors drawn anew: torch's distributions, the same bits every time."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from vita_ckpt.core.anatomy.projectors import Projector, expected_shapes, initial_values
from vita_ckpt.core.checkpoint import RandomInit
from vita_ckpt.model.projectors import build_projector
from vita_ckpt.storage.tensors.random_init import drawn_bytes

TYPES = ("linear", "mlp3x_gelu", "sppv2", "ldp", "vanilla", "identity")


def values(tensor: RandomInit) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(b"".join(drawn_bytes(tensor)), "<f4")


def test_the_bits_are_these_for_ever() -> None:
    """A plan that was saved by another version draws the same projector."""
    drawn = b"".join(drawn_bytes(RandomInit("F32", (3, 5), 7, "model.mm_projector.0.weight", 0.25)))
    assert hashlib.sha256(drawn).hexdigest() == (
        "fce0c6179ccc13dae413824f143ba27765504c8a2b5d94a02abe439c8932c215"
    )


def test_a_stream_for_each_seed_and_name() -> None:
    one = values(RandomInit("F32", (1000,), 0, "a", 1.0))
    assert np.array_equal(one, values(RandomInit("F32", (10, 100), 0, "a", 1.0)))
    for other in (RandomInit("F32", (1000,), 1, "a", 1.0), RandomInit("F32", (1000,), 0, "b", 1.0)):
        assert abs(np.corrcoef(one, values(other))[0, 1]) < 0.15


def test_long_tensors_are_drawn_in_pieces() -> None:
    tensor = RandomInit("BF16", (1500, 1000), 0, "a", 0.02)
    pieces = list(drawn_bytes(tensor))
    assert len(pieces) > 1
    assert sum(map(len, pieces)) == tensor.nbytes
    assert list(drawn_bytes(RandomInit("F32", (0, 4), 0, "a", 1.0))) == []


def test_other_dtypes_are_the_same_values_rounded() -> None:
    wide = torch.from_numpy(values(RandomInit("F32", (64,), 0, "a", 0.5)).copy())
    for code, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        data = bytearray().join(drawn_bytes(RandomInit(code, (64,), 0, "a", 0.5)))
        assert torch.equal(torch.frombuffer(data, dtype=dtype), wide.to(dtype))


@pytest.mark.parametrize("kind", TYPES)
def test_the_distributions_are_torchs(kind: str) -> None:
    """Bounds and moments of what torch itself draws, tensor by tensor."""
    torch.manual_seed(0)
    projector = Projector(kind, 96, 96)
    built = [build_projector(kind, 96, 96).state_dict() for _ in range(20)]
    for name, (bound, fill) in initial_values(expected_shapes(projector)).items():
        theirs = torch.stack([state[name] for state in built])
        if bound is None:
            assert (theirs == fill).all(), name
            continue
        ours = values(RandomInit("F32", tuple(theirs.shape), 0, name, bound))
        assert ours.min() >= -bound
        assert ours.max() < bound
        assert theirs.abs().max() <= bound * 1.0001
        assert theirs.abs().max() > 0.9 * bound, name
        assert abs(ours.std() / float(theirs.std()) - 1) < 0.1, name
        assert abs(ours.mean()) < 0.1 * bound, name
