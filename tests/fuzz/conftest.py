"""How far a property is explored, and the checkpoints that are damaged."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.builder import (
    Shapes,
    TowerSpec,
    mm_projector,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.fuzz.sandbox import Sandbox
from tests.torture.memory import in_memory

# Examples of one long run; --hypothesis-seed=N makes it another one.
LONG = int(os.environ.get("FUZZ_EXAMPLES", "1000"))

# What one example of a few kilobytes may cost, on a busy machine.
_SECONDS = 10
_KILOBYTES = 512 << 10


class Explore(Protocol):
    """Check a property on ``sample`` examples, or on many."""

    def __call__(
        self, check: Callable[..., None], *, sample: int, **strategies: st.SearchStrategy[Any]
    ) -> None: ...


@pytest.fixture(params=["sample", pytest.param("long", marks=pytest.mark.torture)])
def explore(request: pytest.FixtureRequest) -> Explore:
    """A sample by default, ``LONG`` examples in the long sweeps, each bounded in what it costs."""
    is_long = request.param == "long"

    def run(
        check: Callable[..., None], *, sample: int, **strategies: st.SearchStrategy[Any]
    ) -> None:
        def bounded(**drawn: Any) -> None:
            memory, start = _peak(), time.monotonic()
            check(**drawn)
            assert time.monotonic() - start < _SECONDS
            assert _peak() - memory < _KILOBYTES

        chosen = settings(
            max_examples=LONG if is_long else sample, derandomize=not is_long, database=None
        )
        chosen(given(**strategies)(bounded))()

    return run


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def vita(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A sharded VITA checkpoint with everything beside it that is read."""
    root = write_checkpoint(tmp_path_factory.mktemp("vita") / "c", shards=2)
    tower = write_tower(root.parent / "tower-internvit", TowerSpec())
    (root / "vision_tower_config.json").write_bytes((tower / "config.json").read_bytes())
    (root / "preprocessor_config.json").write_text('{"size": {"height": 8, "width": 8}}')
    (root / "vita_ckpt.json").write_text('{"needs_alignment": false, "operations": [{"a": 1}]}')
    (root / "tokenizer.json").write_text(
        '{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<c>"}]}'
    )
    return Sandbox(root)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, vita: Sandbox) -> Sandbox:
    """A LoRA run with its projector, trained on the VITA checkpoint."""
    root = tmp_path_factory.mktemp("lora") / "run"
    root.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes: Shapes = {f"{module}.lora_A.weight": (4, 16), f"{module}.lora_B.weight": (16, 4)}
    write_adapter(root / "adapter_model.safetensors", shapes, prefix="")
    (root / "adapter_config.json").write_text(
        '{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": {}, '
        f'"base_model_name_or_path": "{vita.root}"}}'
    )
    return Sandbox(root)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A projector run that fits the VITA checkpoint."""
    root = tmp_path_factory.mktemp("adapter")
    write_adapter(root / "mm_projector.safetensors", mm_projector("mlp2x_gelu", 32, 16))
    return Sandbox(root)


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The VITA checkpoint as two files of torch.save, one of them legacy, and their index."""
    import torch
    from safetensors.torch import load_file

    root = write_checkpoint(tmp_path_factory.mktemp("bins") / "c")
    write_tower(root.parent / "tower-internvit", TowerSpec())
    tensors = load_file(root / "model.safetensors")
    (root / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(
            {n: tensors[n] for n in part},
            root / file,
            _use_new_zipfile_serialization=number == 1,
        )
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (root / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return Sandbox(root)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with in_memory(request, tmp_path) as place:
        yield place


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in configs are looked up where the command runs: that is an empty directory."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
