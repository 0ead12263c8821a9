"""Training state of which one file is damaged, outside its pickle and in it."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.conftest import GOLDEN
from tests.fuzz import canary
from tests.fuzz.conftest import Explore
from tests.fuzz.damage import Step, damage, damaged
from tests.fuzz.files import rewrite
from vita_ckpt.core.checkpoint import Checkpoint, refs_of
from vita_ckpt.errors import InputError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.training.state import open_training_state
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

TRAINING = GOLDEN.parent / "training"
STATES = {
    "zero 2": (GOLDEN / "T12" / "run", ("*_rank_3_*.pt", "mp_rank*.pt", "latest")),
    "zero 3": (GOLDEN / "T2" / "run", ("*optim_states.pt", "*model_states.pt")),
    "dcp": (TRAINING / "dcp-grid", (".metadata", "*.distcp")),
    "dcp in safetensors": (TRAINING / "dcp-safetensors", (".metadata", "*.distcp")),
    "shards": (TRAINING / "hf-grid", ("*.safetensors",)),
    "dtensors": (TRAINING / "dtensor-grid", ("model*.pt",)),
}
# More than any tensor of these has: a tensor of a damaged pickle is not read further.
_MOST_BYTES = 1 << 22


def _pickle_changed(data: bytes, how: list[Step]) -> bytes:
    """A zip of torch.save whose pickle is damaged, and whose checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            is_pickle = name.endswith("data.pkl")
            new.writestr(name, damaged(content, how) if is_pickle else content)
    return out.getvalue()


def _check_bounds(state: Checkpoint) -> None:
    """Every range of every tensor lies in its file, and is read or refused."""
    with Inputs() as inputs:
        for name, tensor in state.tensors.items():
            for ref in refs_of(tensor):
                assert ref.offset >= 0
                assert ref.offset + ref.span <= ref.source.size
            if tensor.nbytes <= _MOST_BYTES:
                size = sum(map(len, tensor_bytes(tensor, inputs, name)))
                assert size == tensor.nbytes


@pytest.mark.parametrize("kind", STATES)
def test_damaged_state_is_read_within_its_files_or_refused(
    explore: Explore, tmp_path: Path, kind: str
) -> None:
    source, patterns = STATES[kind]
    root = Path(shutil.copytree(source, tmp_path / "state"))
    files = sorted({path for pattern in patterns for path in root.rglob(pattern)})
    sound = {path: path.read_bytes() for path in files}

    def check(path: Path, how: list[Step], *, inside: bool) -> None:
        is_zip = sound[path].startswith(b"PK") and path.suffix == ".pt"
        change = _pickle_changed if inside and is_zip else damaged
        rewrite(path, change(sound[path], how))
        try:
            _check_bounds(open_training_state(root, Stores()))
        except InputError as error:
            assert str(error).isprintable()
        finally:
            rewrite(path, sound[path])
        assert not canary.SPRUNG

    explore(check, sample=12, path=st.sampled_from(files), how=damage, inside=st.booleans())
