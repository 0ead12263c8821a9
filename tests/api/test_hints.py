"""Each hint is right where it is printed: one change to a checkpoint gives one hint."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Shapes,
    Spec,
    TowerSpec,
    mm_projector,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from vita_ckpt import (
    InputError,
    UsageError,
    VitaCkptError,
    explain,
    inspect,
    open_checkpoint,
    plan_merge_projector,
    validate,
)
from vita_ckpt.api.validate import holds_checkpoints
from vita_ckpt.checks.rules import RULES
from vita_ckpt.core.reading_notes import reading_notes
from vita_ckpt.core.report import Finding

LAST = "model-00003-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "sharded", shards=3)


def only(path: Path, rule: str) -> Finding:
    """The finding of a rule."""
    found = [one for one in validate(path).findings if one.rule == rule]
    assert len(found) == 1, validate(path)
    return found[0]


def whole(root: Path) -> dict[str, torch.Tensor]:
    return {
        n: t
        for file in sorted(root.glob("model*"))
        if file.suffix == ".safetensors"
        for n, t in load_file(file).items()
    }


def put_beside(root: Path, name: str, *, added: float, newer: bool) -> None:
    tensors = whole(root)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + added
    if name.endswith(".bin"):
        torch.save(tensors, root / name)
    else:
        save_file(tensors, root / name, {"format": "pt"})
    moved = 10 if newer else -10
    latest = max(file.stat().st_mtime for file in root.glob("model*"))
    os.utime(root / name, (latest + moved, latest + moved))


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize("added", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("model.safetensors", "ambiguous-weights"),
        ("old.safetensors", "stale-weights"),
        ("pytorch_model.bin", "other-weights"),
    ],
)
def test_two_sets_of_weights_are_compared_and_none_is_to_go(
    sharded: Path, name: str, rule: str, added: float, newer: bool
) -> None:
    put_beside(sharded, name, added=added, newer=newer)
    if name.endswith(".bin") and added:
        rule = "ambiguous-weights"
    found = only(sharded, rule)
    text = f"{found.message} {found.hint}"
    assert ("it is newer" if newer else "it is not newer") in text
    assert ("it differs, in model.norm.weight" in text) == (added > 0)
    assert ("same names are the same" in text) == (added == 0)
    assert "read" in text  # which file is read by whom
    assert not re.search(r"\b(remove|delete)", text)


def test_pickled_weights_that_differ_are_no_left_over(sharded: Path) -> None:
    put_beside(sharded, "pytorch_model.bin", added=1.0, newer=True)
    found = only(sharded, "ambiguous-weights")
    assert "it is newer and it differs" in found.hint
    assert "model-00001" in found.hint


def test_commands_in_hints_take_a_path_with_spaces(sharded: Path) -> None:
    root = sharded.rename(sharded.with_name("a model"))
    (root / INDEX).unlink()
    with pytest.raises(InputError, match="missing-index") as error:
        open_checkpoint(root)
    command = re.search(r"vita-ckpt (.*) --out OUT", str(error.value))
    assert command is not None
    assert shlex.split(command[1]) == ["convert", str(root), "--ignore-index"]


def test_a_directory_without_weights_names_the_last_that_has_some_below(tmp_path: Path) -> None:
    for step in ("checkpoint-500", "checkpoint-1000"):
        (tmp_path / "run" / step).mkdir(parents=True)
        save_file({"x": torch.ones(1)}, tmp_path / "run" / step / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"weights lie in .*checkpoint-1000: name that"):
        open_checkpoint(tmp_path / "run")


def test_weights_without_a_config_are_no_adapter(base: Path) -> None:
    (base / "config.json").unlink()
    file = projector(base.with_name("mm_projector.bin"))
    with pytest.raises(InputError, match=r"no config\.json.*copy config\.json from the model"):
        plan_merge_projector(base, file)


def test_a_surgery_says_which_of_two_sets_of_weights_it_takes(sharded: Path) -> None:
    put_beside(sharded, "pytorch_model.bin", added=1.0, newer=True)
    (note,) = reading_notes(open_checkpoint(sharded))
    assert "is read, not pytorch_model.bin" in note
    assert f"vita-ckpt validate {sharded}" in note


def test_no_hint_tells_to_remove_weights(sharded: Path) -> None:
    """Of all rules about other weights in the directory."""
    for name in ("model.safetensors", "old.safetensors", "pytorch_model.bin", "mm_projector.bin"):
        put_beside(sharded, name, added=1.0, newer=True)
    for one in validate(sharded).findings:
        assert not re.search(r"\b(remove|delete)\b", one.hint), one


def projector(path: Path) -> Path:
    shapes = mm_projector("mlp2x_gelu", 32, 16)
    torch.save({f"model.mm_projector.{n}": torch.randn(s) for n, s in shapes.items()}, path)
    return path


def test_a_trained_projector_beside_a_checkpoint_is_a_note_with_the_command(base: Path) -> None:
    file = projector(base / "mm_projector.bin")
    found = only(base, "trained-beside")
    assert found.severity == "note"
    assert f"vita-ckpt merge-projector --base {base} --adapter {file}" in found.hint
    assert plan_merge_projector(base, file).edits


def test_a_projector_that_was_merged_already_is_told(base: Path) -> None:
    own = {n: t for n, t in whole(base).items() if "mm_projector" in n}
    torch.save(own, base / "mm_projector.bin")
    assert "are the same" in only(base, "trained-beside").message


def test_a_lora_run_beside_a_checkpoint_is_a_note_with_the_command(base: Path) -> None:
    names: Shapes = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 16)}
    write_adapter(base / "adapter_model.safetensors", names, prefix="")
    (base / "adapter_config.json").write_text("{}")
    projector(base / "non_lora_trainables.bin")
    found = only(base, "trained-beside")
    assert (found.severity, found.subject) == ("note", "adapter_model.safetensors")
    assert f"vita-ckpt merge-lora --base {base}" in found.hint


def lost(root: Path, *holders: str) -> None:
    """Give the last shard another name, or put its tensors into a .bin."""
    data = load_file(root / LAST)
    (root / LAST).unlink()
    for name in holders:
        if name.endswith(".bin"):
            torch.save(data, root / name)
        else:
            save_file(data, root / name, {"format": "pt"})


@pytest.mark.parametrize("holder", ["pytorch_model.bin", "model-00009-of-00009.safetensors"])
def test_what_an_index_misses_and_another_file_holds_is_said(sharded: Path, holder: str) -> None:
    lost(sharded, holder)
    (found,) = validate(sharded).findings
    assert found.rule == "missing-shard"
    assert holder in found.hint
    assert f"vita-ckpt convert {sharded} --ignore-index" in found.hint


def test_what_an_index_misses_and_nobody_holds_is_to_be_copied(sharded: Path) -> None:
    lost(sharded)
    assert "download" in only(sharded, "missing-shard").hint
    torch.save({"model.norm.weight": torch.ones(16)}, sharded / "pytorch_model.bin")
    assert "download" in only(sharded, "missing-shard").hint


def lora_step(root: Path) -> Path:
    root.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    names: Shapes = {f"{module}.lora_A.weight": (4, 16), f"{module}.lora_B.weight": (16, 4)}
    write_adapter(root / "adapter_model.safetensors", names, prefix="")
    config = {"r": 4, "lora_alpha": 8, "base_model_name_or_path": "/elsewhere/base"}
    (root / "adapter_config.json").write_text(json.dumps(config))
    return root


def test_a_step_whose_projector_is_in_the_state_of_the_trainer(tmp_path: Path) -> None:
    step = lora_step(tmp_path / "checkpoint-4")
    assert [one.rule for one in validate(step).findings] == ["lora-base-absent"]
    (step / "global_step4").mkdir()
    found = only(step, "trained-in-state")
    assert "global_step4" in found.message
    assert f"vita-ckpt consolidate {step / 'global_step4'} --out" in found.hint
    projector(step / "non_lora_trainables.bin")
    assert [one.rule for one in validate(step).findings] == ["lora-base-absent"]


def test_a_base_that_is_elsewhere_is_a_warning(tmp_path: Path) -> None:
    assert only(lora_step(tmp_path / "run"), "lora-base-absent").severity == "warning"


@pytest.mark.parametrize("metadata", [None, {"made": "by hand"}])
def test_no_format_is_an_error_as_for_the_pinned_loader(
    base: Path, metadata: dict[str, str] | None
) -> None:
    save_file(load_file(base / "model.safetensors"), base / "model.safetensors", metadata)
    assert only(base, "no-format-metadata").severity == "error"


@pytest.mark.parametrize("key", ["mm_vision_tower", "mm_audio_encoder"])
def test_an_unreachable_path_has_a_remedy(tmp_path: Path, key: str) -> None:
    spec = Spec(audio=True, tower=TowerSpec(name="OpenGVLab/InternViT-300M-448px"))
    root = write_checkpoint(tmp_path / "c", spec)
    found = [one for one in validate(root).findings if one.rule == "tower-path-unreachable"]
    (one,) = [one for one in found if one.subject == key]
    assert f"vita-ckpt set {root} {key}=" in one.hint
    assert "repository of the hub" in one.message


def test_base_and_adapter_the_wrong_way_round(base: Path, tmp_path: Path) -> None:
    adapter = projector(tmp_path / "mm_projector.bin")
    with pytest.raises(UsageError, match="base-and-adapter-swapped") as error:
        plan_merge_projector(adapter, base)
    assert f"--base {base} --adapter {adapter}" in str(error.value)
    plan_merge_projector(base, adapter)


STATES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("zero", lambda root: (root / "global_step3").mkdir(), "other-kind", "DeepSpeed"),
    ("script", lambda root: (root / "zero_to_fp32.py").write_text(""), "other-kind", "DeepSpeed"),
    ("fsdp", lambda root: (root / "pytorch_model_fsdp_0").mkdir(), "other-kind", "FSDP"),
    (
        "universal",
        lambda root: (root / "latest_universal").write_text("x"),
        "missing-tag",
        "directory x",
    ),
    ("shards", lambda root: (root / "__0_0.distcp").write_bytes(b"x"), "incomplete-save", "ranks"),
    (
        "ranks",
        lambda root: (root / "model_world_size_2_rank_0.pt").write_bytes(b"x"),
        "missing-rank",
        "2 ranks",
    ),
]


@pytest.mark.parametrize(
    ("name", "make", "rule", "words"), STATES, ids=[name for name, _, _, _ in STATES]
)
def test_what_training_state_lacks_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], object], rule: str, words: str
) -> None:
    make(tmp_path)
    found = only(tmp_path, rule)
    assert words in found.message
    assert found.hint


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "optimiser states"),
        ("__0_0.distcp", "torch.distributed"),
        ("optimizer.pt", "trainer"),
        ("rng_state_0.pth", "trainer"),
    ],
)
def test_a_file_of_training_state_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02cargparse\nNamespace\nq\x00)\x81q\x01.")
    with pytest.raises(InputError, match="other-kind") as error:
        inspect(tmp_path / name)
    assert words in str(error.value)


def test_a_directory_of_several_kinds_is_walked_whole(base: Path, tmp_path: Path) -> None:
    """A checkpoint that holds its tower, a run and training state hides none of them."""
    write_tower(base / "tower-internvit", TowerSpec())
    lora_step(base / "run")
    (base / "checkpoint-9").mkdir()
    projector(base / "checkpoint-9" / "mm_projector.bin")
    names = [os.path.relpath(path, base) for path in holds_checkpoints(str(base))]
    assert names == [".", "checkpoint-9", "run", "tower-internvit"]


def test_every_severity_is_the_rule_s(sharded: Path) -> None:
    put_beside(sharded, "model.safetensors", added=1.0, newer=True)
    for one in validate(sharded).findings:
        assert one.severity == RULES[one.rule].severity


def test_a_web_page_in_place_of_a_file_is_named(sharded: Path) -> None:
    for name in (LAST, "config.json"):
        (sharded / name).write_text("<!DOCTYPE html>\n<html><title>401</title></html>")
    found = validate(sharded).findings
    assert {one.rule for one in found} == {"header-too-large", "invalid-json"}
    assert all("web page" in one.hint for one in found)


def test_weights_that_nobody_could_read_are_not_compared(sharded: Path) -> None:
    tensors = whole(sharded)
    for file in sharded.glob("model-*.safetensors"):
        file.unlink()
    save_file(tensors, sharded / "model.safetensors", metadata={"format": "pt"})
    assert "none of" not in only(sharded, "ambiguous-weights").hint


def test_a_lora_run_is_not_compared_by_names_that_no_model_has(base: Path) -> None:
    names: Shapes = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 16)}
    write_adapter(base / "adapter_model.safetensors", names, prefix="")
    (base / "adapter_config.json").write_text("{}")
    assert "none of" not in only(base, "trained-beside").message


def test_pickled_weights_that_differ_are_said_once(sharded: Path) -> None:
    other = {name: tensor + 1 for name, tensor in whole(sharded).items()}
    torch.save(other, sharded / "pytorch_model.bin")
    assert {one.rule for one in validate(sharded).findings} == {"ambiguous-weights"}


def test_a_wrapped_model_in_one_file_is_no_tower(base: Path, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in whole(base).items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "last.ckpt")
    found = only(tmp_path / "last.ckpt", "other-kind")
    assert "model. before them" in found.message
    assert inspect(tmp_path / "last.ckpt").kind == "unknown"


def test_a_wrapped_projector_is_merged_as_it_is(base: Path, tmp_path: Path) -> None:
    state = {f"module.{n}": t for n, t in whole(base).items() if "mm_projector" in n}
    torch.save(state, tmp_path / "mm_projector.bin")
    found = only(tmp_path / "mm_projector.bin", "other-kind")
    assert "merge-projector takes it" in found.hint
    plan_merge_projector(base, tmp_path / "mm_projector.bin")


def test_an_empty_projector_is_said_once_for_each_tensor(tmp_path: Path) -> None:
    state = {f"model.mm_projector.{n}": torch.empty(0) for n in mm_projector("mlp2x_gelu", 32, 16)}
    torch.save(state, tmp_path / "mm_projector.bin")
    (tmp_path / "config.json").write_text('{"mm_projector_type": "mlp2x_gelu"}')
    assert {one.rule for one in validate(tmp_path).findings} == {"empty-tensor"}


def test_a_misleading_path_is_no_newer_transformers(base: Path) -> None:
    towers = base.parent / "design"
    towers.mkdir()
    (base.parent / "tower-internvit").rename(towers / "InternViT")
    config = json.loads((base / "config.json").read_text())
    config["mm_vision_tower"] = str(towers / "InternViT")
    (base / "config.json").write_text(json.dumps(config))
    assert "foreign-prefix" not in {one.rule for one in validate(base).findings}
    (trace,) = (t for t in explain(base).traces if t.loader == "vita-1.5")
    assert not any("5.6" in step.detail for step in trace.steps)


def test_a_wrapped_projector_in_a_checkpoint_is_one_finding(base: Path) -> None:
    tensors = {
        n.replace("mm_projector.", "mm_projector._orig_mod."): t for n, t in whole(base).items()
    }
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (found,) = validate(base).findings
    assert found.rule == "foreign-prefix"


def test_a_config_without_weights_says_what_is_lacking(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mm_projector_type": "mlp2x_gelu"}')
    with pytest.raises(InputError, match="not saved, or not copied") as caught:
        validate(tmp_path)
    assert "mm_projector.bin" in caught.value.hint


def test_a_base_that_peft_did_not_merge_is_merged_not_renamed(base: Path) -> None:
    tensors = {f"base_model.model.{n}": t for n, t in whole(base).items()}
    module = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors[f"{module}base_layer.weight"] = tensors.pop(f"{module}weight")
    tensors[f"{module}lora_A.default.weight"] = torch.ones(2, 16)
    tensors[f"{module}lora_B.default.weight"] = torch.ones(16, 2)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VitaCkptError) as caught:
        plan_merge_projector(base, projector(base.parent / "mm_projector.bin"))
    assert "vita-ckpt merge-lora" in caught.value.hint
    assert "convert" not in caught.value.hint


def test_shards_without_an_index_are_not_sent_from_one_refusal_to_the_next(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    found = only(sharded, "missing-index")
    assert f"vita-ckpt convert {sharded} --ignore-index" in found.hint
    assert "name one of" not in found.hint


def said(path: Path) -> str:
    """Message and hint of the one error, whether it is raised or found."""
    try:
        (found,) = (one for one in validate(path).findings if one.severity == "error")
    except InputError as error:
        return str(error)
    return f"{found.message} ({found.hint})"


CONTENTS = {
    "web page": (b"<!DOCTYPE html><html></html>", "a web page was saved"),
    "json": (b'{"error":"Invalid username or password."}', "the error of a server was saved"),
    "xml": (b"<?xml version='1.0'?><Error/>", "the error of a server was saved"),
    "text": (b"404: Not Found", "the error of a server was saved"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_an_answer_of_a_server_in_place_of_a_file(base: Path, tmp_path: Path, what: str) -> None:
    content, words = CONTENTS[what]
    for path in (base / "model.safetensors", tmp_path / "mm_projector.bin"):
        path.write_bytes(content)
        assert words in said(path), path


CONFIGS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "a byte order mark": (lambda text: b"\xef\xbb\xbf" + text.encode(), "byte order mark"),
    "utf-16": (lambda text: text.encode("utf-16"), "save it as UTF-8"),
    "a comma": (lambda text: text.rstrip()[:-1].encode() + b",}", "no comma after a last"),
    "single quotes": (lambda text: text.replace('"', "'").encode(), "double quotes only"),
    "Python": (lambda text: text.replace("false", "False").encode(), "true, false and null"),
    "a comment": (lambda text: b"// edited\n" + text.encode(), "no comments"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_an_editor_broke(base: Path, what: str) -> None:
    change, words = CONFIGS[what]
    config = base / "config.json"
    config.write_bytes(change(config.read_text()))
    assert words in said(base)


def test_links_into_a_cache_that_was_cleaned(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("../../blobs/deadbeef")
    assert "a link to ../../blobs/deadbeef, where nothing is" in said(base)
    assert "cp -rL" in said(base)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "where nothing is" in said(tmp_path / "link")


def test_archives_are_to_be_unpacked(base: Path, tmp_path: Path) -> None:
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "model"), kind, base)
        assert "unpack it" in said(Path(archive))


def test_weights_that_lie_further_down(base: Path, tmp_path: Path) -> None:
    for place in ("models--org--vita/snapshots/abc", "above/vita"):
        shutil.copytree(base, tmp_path / place)
        top = tmp_path / place.partition("/")[0]
        with pytest.raises(InputError, match=f"weights lie in .*{place}: name that"):
            open_checkpoint(top)


def test_a_lora_run_whose_adapter_is_no_file(base: Path, tmp_path: Path) -> None:
    """The cause is said, not that there are no deltas; a run without one is none."""
    run = tmp_path / "lora-run"
    run.mkdir()
    (run / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    (run / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    names = {f"base_model.model.{name}": t for name, t in whole(base).items() if "proj" in name}
    torch.save(names, run / "non_lora_trainables.bin")
    errors = {one.rule for one in validate(run).findings if one.severity == "error"}
    assert errors == {"git-lfs-pointer"}
    (run / "adapter_model.safetensors").unlink()
    (run / "adapter_config.json").unlink()
    found = only(run, "lora-config-missing")
    assert "merge-projector takes the projector" in found.hint
