"""``vita-ckpt history`` as a person types it."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from safetensors import safe_open

from fixtures.builder import TowerSpec, mm_projector, write_adapter, write_tower
from tests.conftest import Cli


def test_history_as_json(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    schema = json.loads(
        resources.files("vita_ckpt.schemas").joinpath("history-v1.json").read_text()
    )
    empty = json.loads(cli("history", base, "--json").out)
    jsonschema.validate(empty, schema)
    assert (empty["operations"], empty["undoable"]) == ([], None)
    assert "no surgery is known" in cli("history", base).out
    out = tmp_path / "out"
    clip = write_tower(tmp_path / "tower-clip", TowerSpec("clip"))
    call = ("--base", base, "--tower", clip, "--projector", "reinit", "--seed", 3)
    assert cli("swap-tower", *call, "--out", out).code == 0
    projector = write_adapter(tmp_path / "p.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    merge = ("merge-projector", "--base", out, "--adapter", projector, "--in-place")
    assert cli(*merge, "--digest").code == 0
    assert cli("set", out, f"mm_vision_tower={tmp_path}/clip", "--in-place").code == 0
    found = json.loads(cli("history", out, "--json").out)
    jsonschema.validate(found, schema)
    first, second, third = found["operations"]
    assert first["seed"] == 3
    assert first["needs_alignment"] is True
    assert second["inputs"]["adapter"]["name"] == "p.safetensors"
    assert third["arguments"] == {"mm_vision_tower": "clip"}
    assert found["needs_alignment"] is False
    assert found["has_manifest"] is True
    assert found["undoable"]["operation"] == "set"
    assert str(tmp_path) not in json.dumps(found["operations"])
    for name, digest in second["written"]["tensors"].items():
        with safe_open(projector, "np") as file:
            stored = file.get_tensor(name)
        assert stored.dtype == "float32"
        shard = next(
            path for path in out.glob("*.safetensors") if name.encode() in path.read_bytes()
        )
        data = shard.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        begin, end = json.loads(data[8:start])[name]["data_offsets"]
        piece = data[start + begin : start + end]
        assert digest == f"sha256:{hashlib.sha256(piece).hexdigest()}"


@pytest.mark.parametrize("text", ["{", "[]", '{"operations": 3}', '{"operations": [1, {"x": []}]}'])
def test_a_history_that_somebody_else_wrote(cli: Cli, base: Path, text: str) -> None:
    (base / "vita_ckpt.json").write_text(text)
    assert cli("history", base).code == 0
    assert json.loads(cli("history", base, "--json").out)["undoable"] is None
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    assert cli("history", base).out.count("image_aspect_ratio=pad") == 1


def test_one_file_is_one_file(cli: Cli, base: Path) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    assert "1 file\n" in cli("history", base).out
