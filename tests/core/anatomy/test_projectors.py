"""The table of projectors, against real modules and independently written names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import mm_projector
from vita_ckpt.core.anatomy import projectors
from vita_ckpt.core.anatomy.projectors import Projector, candidates, expected_shapes, tokens_out

TYPES = (
    "linear",
    "mlp1x_gelu",
    "mlp2x_gelu",
    "mlp5x_gelu",
    "sppv1",
    "sppv2",
    "sppv3",
    "ldp",
    "vanilla",
    "minigpt",
)
widths = st.integers(1, 300)


@given(kind=st.sampled_from(TYPES), wide=widths, out=widths)
def test_shapes_say_which_projectors_they_can_be(kind: str, wide: int, out: int) -> None:
    shapes = expected_shapes(Projector(kind, wide, out))
    assert shapes == mm_projector(kind, wide, out)
    found = candidates(shapes)
    assert Projector(kind, wide, out) in found
    assert all(projectors.same_tensors(kind, projector.type) for projector in found)
    assert all(expected_shapes(projector) == shapes for projector in found)


@given(kind=st.sampled_from(TYPES), data=st.data())
def test_a_projector_with_a_part_missing_or_odd_is_none(kind: str, data: st.DataObject) -> None:
    shapes = mm_projector(kind, 24, 16)
    name = data.draw(st.sampled_from(sorted(shapes)))
    assert candidates({n: s for n, s in shapes.items() if n != name}) == ()
    assert candidates({**shapes, name: (*shapes[name], 3)}) == ()
    assert candidates({**shapes, "extra": (1,)}) == ()


def test_torch_modules_have_these_names_and_shapes() -> None:
    linear = torch.nn.Linear
    modules = {
        "linear": linear(6, 4),
        "mlp3x_gelu": torch.nn.Sequential(
            linear(6, 4), torch.nn.GELU(), linear(4, 4), torch.nn.GELU(), linear(4, 4)
        ),
        "sppv1": torch.nn.ModuleDict(
            {"linear_0": linear(6, 6), "linear_1": linear(6, 4), "linear_2": linear(4, 4)}
        ),
        "minigpt": torch.nn.ModuleDict({"linear": linear(24, 4)}),
        "identity": torch.nn.Identity(),
    }
    for kind, module in modules.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        assert expected_shapes(Projector(kind, 6, 4)) == shapes


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "mlp0x_gelu",
        "mlp2x_relu",
        "mlpx_gelu",
        "mlp2x_gelu ",
        "spp",
        "sppv4",
        "mlp٢x_gelu",
        "Linear",
    ],
)
def test_types_that_upstream_cannot_run_are_unknown(kind: str) -> None:
    assert not projectors.is_known(kind)
    assert tokens_out(kind, 16) is None
    with pytest.raises(KeyError):
        expected_shapes(Projector(kind, 6, 4))


@pytest.mark.parametrize(
    ("kind", "tokens", "out"),
    [
        ("linear", 25, 25),
        ("mlp2x_gelu", 256, 256),
        ("identity", 7, 7),
        ("sppv1", 576, 144),
        ("sppv2", 729, 169),
        ("ldp", 729, 196),
        ("ldp", 576, 144),
        ("vanilla", 576, 144),
        ("minigpt", 729, None),
        ("spp_v3", 16, 4),
        ("sppv1", 15, None),
    ],
)
def test_tokens_after_each_projector(kind: str, tokens: int, out: int | None) -> None:
    assert tokens_out(kind, tokens) == out
