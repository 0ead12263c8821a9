"""Training state that is whole, broken in one place, or hostile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from vita_ckpt import validate
from vita_ckpt.core.checkpoint import Checkpoint, TensorRef, refs_of
from vita_ckpt.errors import InputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.shards import check_unchanged
from vita_ckpt.storage.reading.training.state import open_training_state
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

_TRAINING = GOLDEN.parent / "training"
_ZERO_2 = GOLDEN / "T12" / "run"
_ZERO_3 = GOLDEN / "T2" / "run"
_DCP = GOLDEN / "T9" / "run" / "pytorch_model_fsdp_0"

Copy = Callable[[Path], Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    def copied(state: Path) -> Path:
        return Path(shutil.copytree(state, tmp_path / "state"))

    return copied


def _open(path: Path, **asked: str) -> Checkpoint:
    return open_training_state(path, Stores(), **asked)  # type: ignore[arg-type]


def _content(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with Inputs() as inputs:
        return {
            name: (t.dtype, t.shape, b"".join(tensor_bytes(t, inputs, name)))
            for name, t in checkpoint.tensors.items()
        }


def _expected() -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with LOCAL.open(str(_TRAINING / "expected.safetensors")) as source:
        refs = read_safetensors(source).tensors
        return {n: (r.dtype, r.shape, source.read(r.nbytes, r.offset)) for n, r in refs.items()}


@pytest.mark.parametrize(
    "name",
    [path.name for path in sorted(_TRAINING.iterdir()) if path.is_dir()],
)
def test_every_division_of_one_state_dict(name: str) -> None:
    checkpoint = _open(_TRAINING / name)
    assert _content(checkpoint) == _expected()
    check_unchanged(checkpoint.fingerprint)
    assert checkpoint.training is not None
    assert checkpoint.training.ranks == 4


def test_what_a_state_says_of_itself() -> None:
    state = open_checkpoint(_ZERO_2, Stores())
    training = state.training
    assert state.layout == "state"
    assert state.root == str(_ZERO_2 / "global_step3")
    assert training is not None
    assert list(training.summary()) == ["deepspeed", "0.19.8", "stage 2", "step 3", "11 ranks"]
    assert (training.dtype, len(training.trained), len(training.frozen)) == ("BF16", 8, 2)
    assert len(training.buffers) == 3
    assert training.master_bytes == sum(state.tensors[n].nbytes for n in training.trained)
    assert training.moment_bytes > 2 * training.master_bytes


def test_only_the_ranges_of_a_tensor_are_read() -> None:
    state = _open(_ZERO_2)
    whole = state.tensors["model.vision_tower.vision_tower.embeddings.position_embedding"]
    refs = refs_of(whole)
    assert len(refs) > 1
    assert len({ref.source for ref in refs}) == len(refs)
    assert sum(ref.nbytes for ref in refs) == whole.nbytes


def test_copies_have_the_dtype_of_training() -> None:
    copies = _open(_ZERO_2, weights="copies")
    training = copies.training
    assert training is not None
    assert {copies.tensors[name].dtype for name in training.trained} == {"BF16"}
    assert copies.tensors["model.audio_encoder.norm.num_batches_tracked"].dtype == "I64"
    for state in (_ZERO_3, _DCP):
        with pytest.raises(InputError, match="no-copies"):
            _open(state, weights="copies")


def _says(path: Path, code: str, *words: str) -> None:
    """Opening and validating both say what is wrong, in one error or finding."""
    with pytest.raises(InputError) as caught:
        _open(path)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    assert code in {found.rule for found in validate(path).findings}


def test_a_missing_rank(copy: Copy) -> None:
    run = copy(_ZERO_2)
    (run / "global_step3" / "bf16_zero_pp_rank_7_mp_rank_00_optim_states.pt").unlink()
    _says(run, "missing-rank", "11 ranks", "rank 7", "got 10 files")


def test_missing_model_states(copy: Copy) -> None:
    run = copy(_ZERO_2)
    (run / "global_step3" / "mp_rank_00_model_states.pt").unlink()
    _says(run, "missing-rank", "mp_rank_00_model_states.pt")


def test_a_missing_rank_of_stage_3(copy: Copy) -> None:
    run = copy(_ZERO_3)
    (run / "global_step3" / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    _says(run, "missing-rank", "model states of 2 ranks, rank 1 among them")


def test_a_rank_that_a_larger_run_left(copy: Copy) -> None:
    run = copy(_ZERO_3)
    state = run / "global_step3"
    one = state / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shutil.copy(one, state / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt")
    _says(run, "left-over-rank", "rank_2", "2 ranks")


def test_files_of_two_runs(copy: Copy) -> None:
    run = copy(_ZERO_3)
    name = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    other = GOLDEN / "T5" / "run" / "checkpoint-4" / "global_step4" / name
    shutil.copy(other, run / "global_step3" / name)
    _says(run, "ranks-disagree", name)


def test_a_master_that_is_not_its_copy(copy: Copy) -> None:
    run = copy(_ZERO_2)
    ref = refs_of(_open(run).tensors["model.norm.weight"])[0]
    path = Path(ref.source.path)
    data = bytearray(path.read_bytes())
    data[ref.offset + 3] ^= 0x40
    path.write_bytes(data)
    _says(run, "masters-differ", "model.norm.weight", "element 0")
    assert _open(run, weights="copies").tensors["model.norm.weight"].dtype == "BF16"


@pytest.mark.parametrize(
    "tag", ["../T2", "/etc", "..", "", ".hidden", "a/b", "a\0b", "a" * 300, "global_step3/.."]
)
def test_latest_is_followed_to_a_plain_name_only(copy: Copy, tag: str) -> None:
    run = copy(_ZERO_2)
    (run / "latest").write_text(tag)
    _says(run, "latest-leads-out")


def test_latest_leads_over_no_link(copy: Copy, tmp_path: Path) -> None:
    run = copy(_ZERO_2)
    (run / "global_step3").rename(tmp_path / "elsewhere")
    (run / "global_step3").symlink_to(tmp_path / "elsewhere")
    _says(run, "latest-leads-out")


def test_latest_names_what_is_not_there(copy: Copy) -> None:
    run = copy(_ZERO_2)
    (run / "latest").write_text("global_step9\n")
    _says(run, "missing-tag", "global_step9")
    assert _open(run, tag="global_step3").tensors


def test_several_states_need_a_tag(copy: Copy) -> None:
    run = copy(_ZERO_2)
    shutil.copytree(run / "global_step3", run / "global_step2")
    assert _open(run).root.endswith("global_step3")
    (run / "latest").unlink()
    _says(run, "several-states", "--tag")
    assert _open(run, tag="global_step2").root.endswith("global_step2")
    for tag in ("global_step7", "../state/global_step2"):
        with pytest.raises(Exception, match="unknown-tag"):
            _open(run, tag=tag)


def test_a_save_that_was_interrupted(copy: Copy) -> None:
    state = copy(_DCP)
    (state / ".metadata").unlink()
    _says(state, "incomplete-save", ".metadata")


def test_a_chunk_that_is_cut_off(copy: Copy) -> None:
    state = copy(_DCP)
    file = state / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"truncated-file: .*__1_0\.distcp"):
        _open(state)


def test_a_file_of_chunks_that_is_missing(copy: Copy) -> None:
    state = copy(_DCP)
    (state / "__1_0.distcp").unlink()
    _says(state, "missing-rank", "__1_0.distcp")


def test_names_of_files_do_not_lead_out(copy: Copy) -> None:
    state = copy(_DCP)
    metadata = state / ".metadata"
    for there in ("../__1.distcp", "/tmp/_.distcp"):
        metadata.write_bytes(
            (_DCP / ".metadata").read_bytes().replace(b"__1_0.distcp", there.encode()[:12])
        )
        with pytest.raises(InputError, match=r"path-outside-checkpoint|missing-rank"):
            _open(state)


@pytest.mark.parametrize(
    "name",
    [
        "layer_01-model_00-model_states.pt",
        "bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt",
        "expert_0_mp_rank_00_model_states.pt",
    ],
)
def test_parts_of_other_parallelism_are_refused(copy: Copy, name: str) -> None:
    run = copy(_ZERO_2)
    (run / "global_step3" / name).write_bytes(b"")
    with pytest.raises(InputError, match="parallel-training-state"):
        _open(run)


def test_shards_of_ranks_that_are_missing(copy: Copy) -> None:
    state = copy(GOLDEN / "T6" / "run")
    (state / "shard-00002-model-00001-of-00001.safetensors").unlink()
    _says(state, "missing-rank", "2 among them")


def test_the_last_shard_of_ranks_missing(copy: Copy) -> None:
    state = copy(GOLDEN / "T6" / "run")
    (state / "shard-00003-model-00001-of-00001.safetensors").unlink()
    # Nothing says how many ranks there were; fewer rows than another tensor's are no sign either.
    assert _open(state).training.ranks == 2  # type: ignore[union-attr]


def test_a_rank_of_dtensors_missing(copy: Copy) -> None:
    state = copy(_TRAINING / "dtensor")
    (state / "model_world_size_4_rank_3.pt").unlink()
    _says(state, "missing-rank", "4 ranks")


def test_an_ordinary_checkpoint_is_no_state() -> None:
    with pytest.raises(InputError, match="not-a-training-state"):
        _open(GOLDEN / "A1" / "base")


def test_a_file_of_a_state_leads_to_all_of_it() -> None:
    for state, name in (
        (_ZERO_3 / "global_step3", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
        (_TRAINING / "dtensor", "model_world_size_4_rank_2.pt"),
    ):
        assert _content(_open(state / name)) == _content(_open(state))


def test_a_step_of_a_run_says_where_its_projector_is() -> None:
    step = GOLDEN / "T5" / "run" / "checkpoint-4"
    (found,) = [f for f in validate(step).findings if f.rule == "trained-in-state"]
    assert "consolidate" in found.hint
    assert open_checkpoint(step, Stores()).layout == "lora"


def test_stage_3_explains_its_shapes() -> None:
    assert "stage-3-shapes" in {found.rule for found in validate(_ZERO_3).findings}
    assert all(0 not in t.shape for t in _open(_ZERO_3).tensors.values())


def test_a_tensor_in_one_place_stays_a_reference() -> None:
    state = _open(GOLDEN / "T5" / "run")
    held = [t for t in state.tensors.values() if isinstance(t, TensorRef)]
    assert held
