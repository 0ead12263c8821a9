"""``vita-ckpt verify`` and ``merge-projector --verify`` as a person types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    mm_projector,
    write_audio_encoder,
    write_checkpoint,
    write_tokenizer,
    write_tower,
)
from tests.conftest import GOLDEN, Cli, assert_one_error, golden_cases

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "verify-v1.json").read_text())
SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base", Spec(audio=True))


def test_it_works(cli: Cli, base: Path) -> None:
    result = cli("verify", base, "--device", "cpu")
    assert result.code == 0
    assert result.out.endswith("it works\n")
    assert "float32 on cpu, resident" in result.out
    assert "one image is 4 tokens" in result.out
    assert result.err == (
        "39 audio tensors are not run: their train.yaml is not reachable from here "
        "(--audio-encoder DIR)\n"
    )
    heard = write_audio_encoder(base.parent / "heard")
    result = cli("verify", base, "--device", "cpu", "--audio-encoder", heard)
    assert "a recording of 400 frames is 50 tokens" in result.out
    assert result.err == ""
    streamed = cli(
        "verify", base, "--device", "cpu", "--max-memory", "cpu=0", "--dtype", "bfloat16"
    )
    assert "bfloat16 on cpu, streamed" in streamed.out


def test_json(cli: Cli, base: Path) -> None:
    result = cli("verify", base, "--json", "--device", "cpu")
    report = json.loads(result.out)
    jsonschema.validate(report, SCHEMA)
    assert (report["ok"], report["findings"]) == (True, [])


def dead_adapter(path: Path) -> Path:
    torch.save({f"model.mm_projector.{n}": torch.zeros(s) for n, s in MLP.items()}, path)
    return path


def test_merge_verifies_before_it_writes(cli: Cli, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapter = dead_adapter(tmp_path / "dead.bin")
    merge = ["merge-projector", "--base", base, "--out", out, "--verify", "--allow-bad-values"]
    result = cli(*merge, "--adapter", adapter)
    assert result.code == 1
    assert "error image-ignored: logits: the image does not matter" in result.err
    assert result.err.splitlines()[-1] == "error: verification-failed: nothing was written"
    assert result.out == ""
    assert not out.exists()
    good = {f"model.mm_projector.{n}": torch.randn(s) for n, s in MLP.items()}
    torch.save(good, tmp_path / "good.bin")
    result = cli(*merge, "--adapter", tmp_path / "good.bin")
    assert result.code == 0
    assert "it works" in result.err
    assert out.exists()
    assert cli("verify", out, "--device", "cpu", "--against", base).code == 0


def test_findings_are_exit_1(cli: Cli, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapter = dead_adapter(tmp_path / "dead.bin")
    merge = ["merge-projector", "--base", base, "--out", out, "--adapter", adapter]
    assert "bad-adapter-values" in cli(*merge).err
    assert cli(*merge, "--allow-bad-values").code == 0
    result = cli("verify", out, "--device", "cpu")
    assert result.code == 1
    assert "error image-ignored: " in result.out
    assert result.out.endswith("it does not work\n")
    report = json.loads(cli("verify", out, "--device", "cpu", "--json").out)
    jsonschema.validate(report, SCHEMA)
    assert [f["rule"] for f in report["findings"]] == ["image-ignored"]


def test_an_image_in_tiles_and_a_prompt_about_it(cli: Cli, tmp_path: Path) -> None:
    (case,) = golden_cases("F13")
    base = tmp_path / "base"
    base.mkdir()
    for file in (case / "base").iterdir():
        (base / file.name).symlink_to(file)
    write_tokenizer(base, json.loads((base / "config.json").read_text())["vocab_size"])
    pictures = load_file(case / "inputs.safetensors")
    Image.fromarray(pictures["image_1"].numpy()).save(tmp_path / "image.png")
    options = ["--tower", case / "tower-siglip", "--device", "cpu"]
    result = cli("verify", base, *options, "--image", tmp_path / "image.png", "--prompt", "w3 w4")
    assert (result.code, result.err) == (0, "")
    lengths = load_file(case / "expected.safetensors")["merged_lengths"]
    assert f"one image is {lengths[1]} tokens" in result.out
    answer = result.out.splitlines()[-1].split()
    assert len(answer) == 16
    assert all(word.startswith("w") for word in answer)


def test_a_tower_that_is_only_in_its_directory(cli: Cli, tmp_path: Path) -> None:
    (case,) = golden_cases("F16")
    copy = tmp_path / "base"
    copy.mkdir()
    for file in (case / "base").iterdir():
        (copy / file.name).symlink_to(file)
    assert_one_error(cli("verify", copy, "--device", "cpu"), 3, "tower-path-unreachable", "--tower")
    result = cli("verify", copy, "--device", "cpu", "--tower", case / "tower-clip")
    assert result.code == 0
    assert "one image is 16 tokens" in result.out


def test_wrong_calls_are_one_line(cli: Cli, base: Path, tmp_path: Path) -> None:
    for arguments, code, word in (
        (["--device", "tpux"], 2, "unknown-device"),
        (["--device", "cuda:99"], 2, "no-such-device"),
        (["--device", "cpu", "--dtype", "int4"], 2, "unknown-dtype"),
        (["--device", "cpu", "--max-memory", "cpu"], 2, "invalid-max-memory"),
        (["--device", "cpu", "--max-memory", "cpu=lots"], 2, "invalid-max-memory"),
        (["--device", "cpu", "--golden", tmp_path / "nowhere"], 3, "nowhere"),
        (["--device", "cpu", "--against", tmp_path / "nowhere"], 3, "nowhere"),
        (["--device", "cpu", "--tower", tmp_path / "nowhere"], 3, "nowhere"),
    ):
        assert_one_error(cli("-q", "verify", base, *arguments), code, word)
    for path in (GOLDEN / "A7" / "mm_projector_fp32", GOLDEN / "A1" / "tower-internvit"):
        assert_one_error(cli("-q", "verify", path, "--device", "cpu"), 3, "error: ")


def test_an_answer_to_a_prompt_about_an_image(cli: Cli, base: Path, tmp_path: Path) -> None:
    write_tokenizer(base, 32)
    (base / "preprocessor_config.json").write_text('{"size": 8, "crop_size": 8}')
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photo.jpg")
    asked = ["verify", base, "--device", "cpu", "--prompt", "w3 w4", "--image"]
    asked.append(tmp_path / "photo.jpg")
    result = cli("-q", *asked, "--max-new-tokens", 3)
    assert (result.code, result.err) == (0, "")
    report, _, answer = result.out.partition("it works\n\n")
    assert "one image is 4 tokens" in report
    words = answer.removesuffix("\n").split(" ")
    assert len(words) == 3
    assert all(word.startswith("w") for word in words)
    said = json.loads(cli("-q", *asked, "--json").out)
    jsonschema.validate(said, SCHEMA)
    assert said["answer"].split(" ")[:3] == words
    assert len(said["answer"].split(" ")) == 16
    assert json.loads(cli("verify", base, "--device", "cpu", "--json").out)["answer"] is None


def test_an_answer_is_safe_on_a_terminal(cli: Cli, base: Path) -> None:
    """Its words come from a file: lines stay lines, the rest is escaped, nothing is cut."""
    write_tokenizer(base, 32)
    path = base / "tokenizer.json"
    words = {f"a{chr(27)}[2J\nb{number}{'x' * 400}": number for number in range(1, 31)}
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {"w0": 0, "w3": 31, **words}
    path.write_text(json.dumps(tokenizer))
    result = cli("-q", "verify", base, "--device", "cpu", "--prompt", "w3", "--max-new-tokens", 1)
    answer = result.out.partition("it works\n\n")[2]
    assert answer.startswith("a\\x1b[2J\nb")
    assert answer.endswith("x" * 400 + "\n")


def test_wrong_prompts_and_images_are_one_line(cli: Cli, base: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (3, 3)).save(image)
    tower = (tmp_path / "tower-internvit").rename(tmp_path / "elsewhere")
    shutil.copy(tower / "config.json", base / "vision_tower_config.json")
    for arguments, code, word in (
        (["--prompt", "w3"], 3, "tokenizer-unreadable"),
        (["--image", image], 3, "processor-config-unknown"),
        (["--max-new-tokens", 3], 2, "max-new-tokens-without-prompt"),
        (["--prompt", "w3", "--max-new-tokens", 0], 2, "invalid-max-new-tokens"),
        (["--prompt", "w3", "--max-new-tokens", "many"], 2, "many"),
        (["--prompt", ""], 2, "empty-prompt"),
        (["--prompt", "<image>"], 2, "images-do-not-fit-placeholders"),
    ):
        assert_one_error(cli("-q", "verify", base, "--device", "cpu", *arguments), code, word)
    (base / "preprocessor_config.json").write_text("{}")
    for arguments, code, word in (
        (["--image", tmp_path / "nowhere.png"], 3, "nowhere.png"),
        (["--image", base / "config.json"], 3, "WEBP), got none of these"),
        (["--attn", "nonsense"], 2, "unknown-attention: nonsense"),
        (["--save-golden", image], 2, "output-exists"),
    ):
        assert_one_error(cli("-q", "verify", base, "--device", "cpu", *arguments), code, word)
    result = cli("verify", base, "--device", "cpu", "--image", image)  # at 224 pixels, not 8
    assert result.code == 1
    assert "error image-token-count: " in result.out


WITHOUT_A_PACKAGE = """
import sys
from importlib import util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name == sys.argv[2] else find(name, *rest)
from vita_ckpt.cli.main import main
main(["verify", sys.argv[1]])
"""


@pytest.mark.parametrize("package", ["torch", "PIL"])
def test_without_the_extra_it_says_how_to_get_it(base: Path, package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_PACKAGE, str(base), package],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: model-extra-missing: {package}: expected torch, transformers, accelerate and PIL "
        "(Pillow) (in the clone of vita-ckpt: pip install -e '.[model]')\n"
    )


LIMITED = """
import resource, sys
import torch, transformers
import vita_ckpt.model.verification.verify
from vita_ckpt.cli.main import main
with open("/proc/self/statm") as statm:
    pages = int(statm.read().split()[5])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
main(["verify", sys.argv[1], "--device", "cpu"])
"""


def test_memory_that_runs_out_is_one_line(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    root = write_checkpoint(tmp_path / "large", Spec(vocab=400_000, hidden=64))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(root)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"error: out-of-memory: {root}: got ")
    assert len(done.stderr.splitlines()) == 1
