"""Weights from files: views, rows, slices and casts are the tensors that torch would load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vita_ckpt import StaleInputError, open_checkpoint
from vita_ckpt.core.checkpoint import EMPTY, Cast, Checkpoint
from vita_ckpt.model.weights import Streaming, Weights, load_resident

CPU = torch.device("cpu")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(1000, 64),
        "half": torch.randn(300, 64).bfloat16(),
        "ids": torch.arange(7),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def checkpoint(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(tensors, tmp_path / "x.safetensors")
    return open_checkpoint(tmp_path / "x.safetensors")


def test_views_survive_a_release(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    with Weights(checkpoint) as weights:
        for name, tensor in tensors.items():
            for _ in range(2):
                assert torch.equal(weights.view(name), tensor)
                weights.release(name)


def test_casts_and_strided_views_are_materialised(
    checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"t": tensors["matrix"].t()}, tmp_path / "x.bin")
    strided = open_checkpoint(tmp_path / "x.bin").refs["t"]
    cast = Cast(checkpoint.refs["matrix"], "BF16")
    made = Checkpoint(EMPTY.root, "none", {"cast": cast, "strided": strided})
    with Weights(made) as weights:
        assert torch.equal(weights.view("cast"), tensors["matrix"].bfloat16())
        assert torch.equal(weights.view("strided"), tensors["matrix"].t())
        weights.release("cast")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [7, 64, 1000, 5000])
def test_slices_of_a_matrix_are_the_whole(
    checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], dtype: torch.dtype, rows: int
) -> None:
    seen: list[int] = []
    hidden = torch.randn(2, 3, 64, dtype=dtype)
    with Weights(checkpoint) as weights:
        streaming = Streaming(
            nn.Module(), {}, weights, dtype, CPU, lambda _name, part: seen.append(len(part))
        )
        found = streaming.linear("matrix", hidden, rows)
        gathered = streaming.rows("half", torch.tensor([[0, 299], [5, 5]]))
    wanted = nn.functional.linear(hidden, tensors["matrix"].to(dtype))
    assert torch.allclose(found, wanted, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert sum(seen) == 1000
    assert torch.equal(gathered, tensors["half"][torch.tensor([[0, 299], [5, 5]])].to(dtype))


class Nested(nn.Module):
    """A module with a parameter of its own around another that has one: both are lent at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.inner = nn.Linear(64, 64, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(hidden) * self.scale
        return result


def test_a_module_keeps_its_own_while_its_children_run(tmp_path: Path) -> None:
    stored = {"scale": torch.randn(64).bfloat16(), "inner.weight": torch.randn(64, 64).bfloat16()}
    save_file(stored, tmp_path / "x.safetensors")
    names = {name: name for name in stored}
    resident, streamed = Nested(), Nested()
    hidden = torch.randn(2, 64)
    with Weights(open_checkpoint(tmp_path / "x.safetensors")) as weights, torch.no_grad():
        load_resident(resident, names, weights, {"": CPU})
        Streaming(streamed, names, weights, torch.float32, CPU)
        assert torch.equal(streamed(hidden), resident(hidden))
    assert all(parameter.is_meta for parameter in streamed.parameters())


def test_a_resident_model_can_be_trained_and_its_file_stays(tmp_path: Path) -> None:
    stored = {"scale": torch.randn(64), "inner.weight": torch.randn(64, 64)}
    save_file(stored, tmp_path / "x.safetensors")
    model = Nested()
    with Weights(open_checkpoint(tmp_path / "x.safetensors")) as weights:
        load_resident(model, {name: name for name in stored}, weights, {"": CPU})
    model.requires_grad_(True)
    model(torch.randn(2, 64)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(model.scale, stored["scale"])
    assert torch.equal(load_file(tmp_path / "x.safetensors")["scale"], stored["scale"])


def test_a_file_that_changed_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"other")
    with Weights(checkpoint) as weights, pytest.raises(StaleInputError):
        weights.view("matrix")
