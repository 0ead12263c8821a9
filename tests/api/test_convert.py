"""The same model in another form, and back again, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    read_tensors,
    snapshot,
    write_checkpoint,
    write_tower,
)
from tests.builders import as_bins, change, lively
from tests.conftest import BASES, GOLDEN, Cli, assert_one_error
from tests.in_place import files_of, timeless
from tests.mutants import CASES, MUTATIONS, PARTS, errors, mutant, prefix, prefix_part
from vita_ckpt import (
    CastError,
    InputError,
    UsageError,
    apply,
    apply_in_place,
    history,
    load_model,
    load_plan,
    plan_convert,
    save_plan,
    summarize,
    undo,
    validate,
)

NEW = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 6)


def convert(base: Path, out: Path, **options: Any) -> Path:
    return Path(apply(plan_convert(base, **options), out))


def loaded(root: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(root.glob("*.safetensors")):
        tensors |= load_file(file)
    for file in sorted(root.glob("pytorch_model*.bin")):
        tensors |= torch.load(file, weights_only=True)
    return tensors


def bits(root: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {
        name: (
            t.dtype,
            tuple(t.shape),
            t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, t in loaded(root).items()
    }


def config_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "config.json").read_text())
    return found


@pytest.mark.parametrize("case", BASES)
def test_names_there_and_back(tmp_path: Path, case: str) -> None:
    base = GOLDEN / case / "base"
    there = convert(base, tmp_path / "there", names="transformers")
    back = convert(there, tmp_path / "back", names="upstream")
    assert read_tensors(back) == read_tensors(base)
    assert config_of(back) == config_of(base)
    again = convert(back, tmp_path / "again", names="transformers")
    assert read_tensors(again) == read_tensors(there)


def test_dtypes_there_and_back(tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "base", Spec(model_type="vita-mixtral"), dtype="BF16", shards=3
    )
    wide = convert(base, tmp_path / "wide", dtype="f32", names="transformers")
    assert config_of(wide)["torch_dtype"] == "float32"
    assert {t.dtype for t in loaded(wide).values()} == {torch.float32}
    back = convert(wide, tmp_path / "back", dtype="bf16", names="upstream")
    assert read_tensors(back) == read_tensors(base)
    assert config_of(back) == config_of(base)


@pytest.mark.parametrize("target", ["bf16", "f16"])
def test_dtypes_are_torchs(tmp_path: Path, target: str) -> None:
    base = lively(write_checkpoint(tmp_path / "base"))
    out = convert(base, tmp_path / "out", dtype=target, keep=["*norm*"], parts=["language_model"])
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[target]
    before = loaded(base)
    for name, tensor in loaded(out).items():
        is_language = not ("vision_tower" in name or "mm_projector" in name)
        wanted = before[name].to(dtype) if is_language and "norm" not in name else before[name]
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), name
    assert config_of(out)["torch_dtype"] == str(dtype).removeprefix("torch.")
    part = convert(base, tmp_path / "part", dtype=target, parts=["vision_tower"])
    assert config_of(part)["torch_dtype"] == "float32"


def test_shard_sizes_in_any_order(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", Spec(layers=11), shards=4)
    one = convert(base, tmp_path / "one", max_shard_size=0)
    assert not (one / "model.safetensors.index.json").exists()
    small = convert(one, tmp_path / "small", max_shard_size="20KB")
    large = convert(small, tmp_path / "large", max_shard_size="60KB")
    direct = convert(base, tmp_path / "direct", max_shard_size="60KB")
    for root in (one, small, large, direct):
        assert read_tensors(root) == read_tensors(base)
        assert not errors(partial(validate, root))
        (root / "vita_ckpt.json").unlink()
    assert files_of(large) == files_of(direct)
    names = sorted(path.name for path in small.glob("*.safetensors"))
    count = len(names)
    assert count > 4
    assert names == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in loaded(small).values())
    assert set(index["weight_map"].values()) == {*names}


@pytest.mark.parametrize("shards", [1, 3])
def test_formats_there_and_back(tmp_path: Path, shards: int) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="BF16", shards=shards)
    pickled = convert(base, tmp_path / "pickled", format="torch")
    assert not list(pickled.glob("*.safetensors*"))
    stem = "pytorch_model.bin" if shards == 1 else "pytorch_model-00002-of-00003.bin"
    assert (pickled / stem).exists()
    assert bits(pickled) == bits(base)
    assert not errors(lambda: validate(pickled))
    back = convert(pickled, tmp_path / "back")
    assert read_tensors(back) == read_tensors(base)
    assert sorted(p.name for p in back.iterdir()) == sorted(
        ["vita_ckpt.json", *(p.name for p in base.iterdir())]
    )


def test_pickled_shards_become_safetensors(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    before = bits(base)
    out = convert(as_bins(base, shards=2), tmp_path / "out", max_shard_size="1GB")
    assert bits(out) == before
    assert (out / "model.safetensors").exists() and not list(out.glob("*.bin*"))


def test_a_file_without_a_format_gets_one(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base")
    before = bits(base)
    save_file(loaded(base), base / "model.safetensors")
    cli("convert", base, "--in-place")
    data = (base / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    assert bits(base) == before
    state = snapshot(base)
    result = cli("convert", base, "--in-place")
    assert result.code == 0 and result.out == "nothing to change\n"
    assert snapshot(base) == state


def test_a_stale_index(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base", shards=3)
    before = bits(base)
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["no.such.tensor"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    assert_one_error(cli("convert", base, "--out", tmp_path / "o"), 3, "index-mismatch")
    plan = plan_convert(base, ignore_index=True)
    save_plan(plan, tmp_path / "plan.json")
    out = Path(apply(load_plan(tmp_path / "plan.json"), tmp_path / "out"))
    assert bits(out) == before
    assert not errors(lambda: validate(out))
    single = convert(base, tmp_path / "single", ignore_index=True, max_shard_size=0)
    assert sorted(p.name for p in single.glob("model.*")) == ["model.safetensors"]
    (base / "model-00002-of-00003.safetensors").unlink()
    result = cli("convert", base, "--ignore-index", "--dry-run")
    assert result.code == 0 and "2 of 3 shards" in result.err
    refused = cli("convert", base, "--ignore-index", "--names", "upstream", "--dry-run")
    assert_one_error(refused, 3, "weights-do-not-fit")
    apply_in_place(plan_convert(base, ignore_index=True))
    assert set(bits(base)) < set(before)
    undo(base)
    assert json.loads(path.read_text()) == index


def tied(root: Path, head: Callable[[torch.Tensor], torch.Tensor] | None) -> Path:
    base = write_checkpoint(root, Spec(tied=True))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        if head is not None:
            tensors["lm_head.weight"] = head(tensors["model.embed_tokens.weight"])

    change(base, edit)
    return base


def test_a_tied_head(tmp_path: Path, cli: Cli) -> None:
    equal = tied(tmp_path / "equal", lambda table: table.clone())
    assert "lm_head.weight" not in loaded(convert(equal, tmp_path / "1"))
    kept = convert(equal, tmp_path / "2", tie="keep")
    assert "lm_head.weight" in loaded(kept)
    own = convert(equal, tmp_path / "3", tie="untie")
    assert "lm_head.weight" in loaded(own) and config_of(own)["tie_word_embeddings"] is False
    other = tied(tmp_path / "other", lambda table: table + 1)
    result = cli("convert", other, "--names", "upstream", "--out", tmp_path / "4")
    assert result.code == 0 and "lm_head.weight differs" in result.err
    assert "lm_head.weight" in loaded(tmp_path / "4")
    none = tied(tmp_path / "none", None)
    untied = convert(none, tmp_path / "5", tie="untie", names="upstream")
    tensors = loaded(untied)
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert not errors(lambda: validate(untied))
    wrapped = tied(tmp_path / "wrapped", lambda table: table.clone())
    change(wrapped, lambda t: [t.update({f"module.{n}": t.pop(n)}) for n in list(t)])
    assert "lm_head.weight" not in loaded(convert(wrapped, tmp_path / "6", names="upstream"))


def test_what_does_not_fit_into_the_dtype_is_said(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base")
    name = "model.embed_tokens.weight"
    change(base, lambda t: t[name].view(-1)[3].fill_(131008.0))
    for extra in (("--dry-run",), ("--out", tmp_path / "o"), ("--in-place",)):
        state = snapshot(base)
        result = cli("convert", base, "--dtype", "f16", *extra)
        assert_one_error(result, 3, "cast-overflow", name, "131008 at element 3", "2 times")
        assert snapshot(base) == state
        assert not (tmp_path / "o").exists()
    with pytest.raises(CastError):
        convert(base, tmp_path / "o", dtype="f16")
    change(base, lambda t: t[name].view(-1)[3].fill_(1e-9))
    lost = sum(int(((t != 0) & (t.half() == 0)).sum()) for t in loaded(base).values())
    for extra in (("--dry-run",), ("--out", tmp_path / "o"), ("--in-place",)):
        result = cli("convert", base, "--dtype", "f16", *extra)
        assert result.code == 0, result
        assert f"{lost:,} values of " in result.err, result.err


def test_in_place_is_what_a_copy_is_and_can_be_undone(tmp_path: Path) -> None:
    spec = Spec(model_type="vita-mixtral", tower=TowerSpec("clip", image_size=16, patch_size=4))
    wrapped = tmp_path / "wrapped"
    write_checkpoint(wrapped, spec, dtype="BF16")
    change(wrapped, lambda t: [t.update({f"_orig_mod.{n}": t.pop(n)}) for n in list(t)])
    options: tuple[dict[str, Any], ...] = (
        {"names": "upstream"},
        {"names": "transformers", "dtype": "f32"},
        {"dtype": "f16"},
        {"max_shard_size": "4KB"},
        {"format": "torch", "max_shard_size": "9KB"},
    )
    for number, how in enumerate(options):
        base = tmp_path / f"base{number}"
        shutil.copytree(wrapped, base)
        before = files_of(base)
        out = convert(base, tmp_path / f"out{number}", **how)
        summary = summarize(plan_convert(base, **how), in_place=True)
        if number == 0:  # the names get shorter: nothing but the header is written
            assert [f.name for f in summary.patched] == ["model.safetensors"]
            assert summary.bytes_to_write < 20_000
        apply_in_place(plan_convert(base, **how))
        assert bits(base) == bits(out), how
        if number:
            assert timeless(files_of(base)) == timeless(files_of(out)), how
        assert [entry["operation"] for entry in history(base).operations] == ["convert"]
        assert undo(base).operation == "convert"
        assert files_of(base) == before, how


@pytest.mark.parametrize("digest", [True, False])
def test_digests_stay_true(tmp_path: Path, cli: Cli, digest: bool) -> None:
    base = write_checkpoint(
        tmp_path / "base", Spec(model_type="vita-mixtral"), dtype="BF16", shards=2
    )
    flag = ("--digest",) if digest else ()
    assert (
        cli("convert", base, "--dtype", "f32", "--names", "transformers", "--in-place", *flag).code
        == 0
    )
    for how in (
        ("--names", "upstream", "--dtype", "f16"),
        ("--names", "transformers"),
        ("--max-shard-size", "5KB"),
    ):
        assert cli("convert", base, *how, "--in-place").code == 0
        assert "digest-mismatch" not in {f.rule for f in validate(base, deep=True).findings}
    if digest:
        assert_one_error(
            cli("convert", base, "--format", "torch", "--digest", "--out", tmp_path / "o"),
            2,
            "options-exclude-each-other",
        )
        assert cli("convert", base, "--format", "torch", "--in-place").code == 0
        assert not (base / "vita_ckpt.manifest.json").exists()
        undo(base)
        assert (base / "vita_ckpt.manifest.json").exists()


@pytest.mark.parametrize("seed", range(2 * len(MUTATIONS)))
def test_a_mutant_of_names_comes_back_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    cases = [case for case in CASES if case.startswith("A")]
    case = cases[seed % len(cases)]
    base = mutant(case, seed, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    try:
        out = convert(base, tmp_path / "case" / "out", names="upstream")
    except InputError as error:
        assert error.code in ("weights-do-not-fit", "tensor-names-collide"), error
        return
    sound = read_tensors(GOLDEN / case / "base")
    found = read_tensors(out)
    assert sound.items() <= found.items()


@pytest.mark.parametrize("case", ["A1", "A3", "A4", "A6", "U1"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model.", "model."])
def test_a_wrapped_part_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, wrapper: str
) -> None:
    root = tmp_path / "case"
    base = mutant(case, 0, root)
    monkeypatch.chdir(root)

    class Only(random.Random):
        def choice(self, _sequence: Any) -> Any:
            return wrapper

    tensors = {n: t.numpy() for n, t in load_file(base / "model.safetensors").items()}
    for part in PARTS:
        if name := next((n for n in tensors if n.startswith(part)), None):
            (prefix if "mm_projector" in part else prefix_part)(tensors, name, Only())
    save_file(
        {n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}, base / "model.safetensors"
    )
    assert errors(lambda: validate(base))
    out = convert(base, root / "out", names="upstream")
    assert read_tensors(out) == read_tensors(GOLDEN / case / "base")
    assert not errors(lambda: validate(out))


def test_the_names_of_a_tower_of_its_own(tmp_path: Path) -> None:
    for family in ("clip", "siglip", "internvit"):
        base = write_tower(tmp_path / family, TowerSpec(family, image_size=16, patch_size=4))
        new = convert(base, tmp_path / f"{family}-new", names="transformers")
        assert all(not name.startswith("vision_model.") for name in loaded(new))
        back = convert(new, tmp_path / f"{family}-back", names="upstream")
        assert read_tensors(back) == read_tensors(base)


def test_wrong_requests(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    for options, code in (
        ({"names": "vllm"}, "unknown-choice"),
        ({"tie": "x"}, "unknown-choice"),
        ({"format": "gguf"}, "unknown-choice"),
        ({"dtype": "int8"}, "unknown-dtype"),
        ({"parts": ["head"]}, "unknown-part"),
        ({"max_shard_size": "5GiB"}, "invalid-size"),
    ):
        with pytest.raises(UsageError) as caught:
            plan_convert(base, **options)
        assert caught.value.code == code
    config = config_of(base)
    (base / "config.json").write_text(json.dumps({**config, "model_type": "what"}))
    with pytest.raises(InputError, match="names-not-determined"):
        plan_convert(base, names="upstream")
    plan_convert(base, dtype="bf16")
    adapter = tmp_path / "adapter.safetensors"
    save_file({"model.mm_projector.0.weight": torch.zeros(2, 2)}, adapter)
    with pytest.raises(InputError, match="not-a-checkpoint"):
        plan_convert(adapter)


def test_experts_of_two_dtypes_are_not_fused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", Spec(model_type="vita-mixtral"))
    name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    change(base, lambda t: t.update({name: t[name].half()}))
    with pytest.raises(InputError, match="dtypes-differ") as caught:
        plan_convert(base, names="transformers")
    assert "gate_up_proj" in str(caught.value)
    mended = convert(base, tmp_path / "out", dtype="f16", names="upstream")
    convert(mended, tmp_path / "fused", names="transformers")


@pytest.mark.skipif(not NEW, reason="the names are those of transformers 5.6 and newer")
def test_the_library_loads_the_language_model_and_computes_the_same(tmp_path: Path) -> None:
    for case, kind in (("A4", "Mixtral"), ("A1", "Qwen2")):
        out = convert(GOLDEN / case / "base", tmp_path / case, names="transformers")
        config = {k: v for k, v in config_of(out).items() if k != "model_type"}
        settings = getattr(transformers, f"{kind}Config")(**config)
        model = getattr(transformers, f"{kind}ForCausalLM")(settings)
        own = ("model.vision_tower.", "model.mm_projector.", "model.audio_encoder.")
        state = {n: t for n, t in loaded(out).items() if not n.startswith(own)}
        model.load_state_dict(state, strict=True)
        given = load_file(GOLDEN / case / "inputs.safetensors")
        expected = load_file(GOLDEN / case / "expected.safetensors")
        with torch.no_grad():
            logits = model.eval()(given["text_input_ids"]).logits
        assert (logits - expected["text_logits"]).abs().max() < 1e-4


@pytest.mark.skipif(not NEW, reason="the names are those of transformers 5.6 and newer")
def test_the_library_loads_the_tower_and_computes_the_same(tmp_path: Path) -> None:
    case = GOLDEN / "A3"
    out = convert(case / "base", tmp_path / "out", names="transformers")
    prefix = "model.vision_tower.vision_tower."
    state = {n.removeprefix(prefix): t for n, t in loaded(out).items() if n.startswith(prefix)}
    config = transformers.CLIPVisionConfig.from_pretrained(case / "tower-clip")
    model: Any = transformers.CLIPVisionModel(config)
    model.load_state_dict(state, strict=True)
    pixels = load_file(case / "inputs.safetensors")["pixel_values"]
    expected = load_file(case / "expected.safetensors")["tower_features"]
    with torch.no_grad():
        found = model.eval()(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert (found - expected).abs().max() < 1e-5
    tower = convert(case / "tower-clip", tmp_path / "tower", names="transformers")
    library: Any = transformers.CLIPVisionModel
    _, info = library.from_pretrained(tower, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_the_converted_model_runs_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN / "A4")
    there = convert(
        GOLDEN / "A4" / "base", tmp_path / "there", names="transformers", max_shard_size=0
    )
    back = convert(there, tmp_path / "back", names="upstream", max_shard_size="90KB")
    given = load_file(GOLDEN / "A4" / "inputs.safetensors")
    logits = [
        load_model(root)(given["input_ids"], given["pixel_values"]).logits
        for root in (GOLDEN / "A4" / "base", back)
    ]
    assert torch.equal(*logits)
