"""Greedy answers: with a cache what they are without, in the words of the own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_tokenizer, write_tower
from tests.builders import lively
from tests.conftest import BASES, GOLDEN
from vita_ckpt import InputError, UsageError, load_model, open_checkpoint, verify
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.model.answer import Question, greedy
from vita_ckpt.model.answer import ask as ask_with
from vita_ckpt.model.tokenizer import TokenizerProcess

STREAM: Any = {"cpu": 0}
MESSAGES = "{% for m in messages %}w5 {{ m.content }} w6{% endfor %}"
TEMPLATE = MESSAGES + "{% if add_generation_prompt %} w7{% endif %}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_tokenizer(lively(write_checkpoint(tmp_path / "c")), 32)


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """One process for all questions of this module: starting one takes a second."""
    with TokenizerProcess() as tokenizer:
        SHARED[:] = [tokenizer]
        yield
    SHARED.clear()


SHARED: list[TokenizerProcess] = []


def ask(checkpoint: Checkpoint, prompt: str, *, with_image: bool) -> Question:
    return ask_with(checkpoint, prompt, with_image=with_image, tokenizer=SHARED[0])


def without_cache(
    model: Any, ids: torch.Tensor, pixels: torch.Tensor | None, count: int
) -> list[int]:
    """The definition: the whole row again for every token."""
    answer: list[int] = []
    for _ in range(count):
        row = torch.cat([ids, torch.tensor(answer, dtype=ids.dtype)])[None]
        answer.append(int(model(input_ids=row, pixel_values=pixels).logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("case", BASES[:6])
@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_the_cache_changes_nothing(case: str, memory: Any) -> None:
    model = load_model(GOLDEN / case / "base", device="cpu", max_memory=memory)
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    ids = inputs["input_ids"][0]
    pixels = inputs["pixel_values"][: int((ids == -200).sum())]
    expected = without_cache(model, ids, pixels, 6)
    assert greedy(model, ids, pixels, max_new_tokens=6) == expected
    assert greedy(model, ids, pixels, max_new_tokens=6, stop={expected[0]}) == []
    text = inputs["text_input_ids"][0]
    expected = without_cache(model, text, None, 6)
    assert greedy(model, text, None, max_new_tokens=6) == expected
    ended = expected.index(expected[3])
    assert greedy(model, text, None, max_new_tokens=6, stop={expected[3]}) == expected[:ended]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", BASES[:6])
def test_a_gpu_answers_as_the_cpu(case: str) -> None:
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    ids = inputs["input_ids"][0]
    pixels = inputs["pixel_values"][: int((ids == -200).sum())]
    base = GOLDEN / case / "base"
    answers = [
        greedy(load_model(base, device=device), ids, pixels, max_new_tokens=6)
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == answers[1]


def test_beyond_the_rotary_table(root: Path) -> None:
    """Old transformers compute it for a number of positions and extend it when it is passed."""
    model = load_model(root, device="cpu")
    ids = torch.arange(1022) % 32
    assert greedy(model, ids, None, max_new_tokens=5) == without_cache(model, ids, None, 5)


def test_a_sliding_window(tmp_path: Path) -> None:
    spec = Spec(model_type="vita-Mistral", config={"sliding_window": 4})
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    model = load_model(lively(write_checkpoint(tmp_path / "c", spec)), device="cpu")
    ids = torch.arange(9)
    assert greedy(model, ids, None, max_new_tokens=8) == without_cache(model, ids, None, 8)


def test_words_become_ids(root: Path) -> None:
    checkpoint = open_checkpoint(root)

    def ids(prompt: str, with_image: bool = False) -> list[int]:
        return [int(i) for i in ask(checkpoint, prompt, with_image=with_image).input_ids]

    assert ids("w3 w4") == [3, 4]
    assert ids("w3 w4", True) == [-200, 1, 3, 4]
    assert ids("w3 <image>w4", True) == [3, -200, 4]
    assert ids("w3<image>", True) == [3, -200]
    write_tokenizer(root, 32, chat_template=TEMPLATE)
    assert ids("w3") == [5, 3, 6, 7]
    assert ids("w3", True) == [5, -200, 1, 3, 6, 7]


def test_a_tokenizers_first_token(root: Path) -> None:
    """It stands before the image; what the tokenizer puts after a text is left out."""
    path = root / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    pieces = [{"SpecialToken": {"id": word, "type_id": 0}} for word in ("w2", "w9")]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]],
        "pair": [],
        "special_tokens": {
            word: {"id": word, "ids": [number], "tokens": [word]}
            for word, number in (("w2", 2), ("w9", 9))
        },
    }
    path.write_text(json.dumps(tokenizer))
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w2", "eos_token": "w9"}
    (root / "tokenizer_config.json").write_text(json.dumps(keys))
    question = ask(open_checkpoint(root), "w3", with_image=True)
    assert question.input_ids.tolist() == [2, -200, 1, 3]


def test_what_ends_an_answer(root: Path) -> None:
    write_tokenizer(root, 32, eos_token="w4")
    config = json.loads((root / "config.json").read_text())
    for in_config, generation, expected in (
        (2, {"eos_token_id": [7, 8]}, {2, 4, 7, 8}),
        ([2, 3], {"eos_token_id": 5}, {2, 3, 4, 5}),
        (None, {}, {4}),
        ("2", {"eos_token_id": [[1], None, True, 6]}, {4, 6}),
    ):
        (root / "config.json").write_text(json.dumps({**config, "eos_token_id": in_config}))
        (root / "generation_config.json").write_text(json.dumps(generation))
        assert ask(open_checkpoint(root), "w1", with_image=False).stop == expected


def test_verify_answers(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    write_processor(root)
    Image.new("RGB", (20, 10), (200, 30, 90)).save(tmp_path / "image.png")
    options: Any = {"device": "cpu", "prompt": "w3 w4", "max_new_tokens": 5}
    model = load_model(root, device="cpu")
    expected = without_cache(model, torch.tensor([3, 4]), None, 5)
    found = verify(root, **options)
    assert found.answer == " ".join(f"w{number}" for number in expected)
    assert found.findings == ()
    pixels = torch.tensor([200, 30, 90])[:, None, None].expand(3, 8, 8) / 127.5 - 1
    expected = without_cache(model, torch.tensor([-200, 1, 3, 4]), pixels[None], 5)
    for memory in (None, STREAM):
        found = verify(root, image=tmp_path / "image.png", max_memory=memory, **options)
        assert found.answer == " ".join(f"w{number}" for number in expected)
    assert verify(root, device="cpu").answer is None


def write_processor(root: Path) -> None:
    config = {
        "size": {"shortest_edge": 8},
        "crop_size": 8,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    tower = root.parent / "tower-internvit"
    (tower / "preprocessor_config.json").write_text(json.dumps(config))


def test_the_image_feeds_the_checks(root: Path, tmp_path: Path) -> None:
    """With or without a prompt it is the first image: another one has other logits."""
    from PIL import Image

    write_processor(root)
    goldens: list[Any] = []
    for number, colour in enumerate(((0, 0, 0), (250, 0, 0), (250, 0, 0))):
        Image.new("RGB", (9, 9), colour).save(tmp_path / "image.png")
        file = tmp_path / f"golden-{number}"
        found = verify(root, device="cpu", image=tmp_path / "image.png", save_golden=file)
        assert (found.findings, found.answer) == ((), None)
        goldens.append(json.loads(file.read_text())["rows"])
    assert goldens[1] == goldens[2]
    assert goldens[0]["image"] != goldens[1]["image"]
    assert goldens[0]["other image"] == goldens[1]["other image"]


def test_where_nothing_can_be_said(root: Path) -> None:
    """A model that cannot be built or that computes NaN has no answer, and its findings."""
    from safetensors.torch import save_file

    tensors = load_file(root / "model.safetensors")
    nan = {**tensors, "model.norm.weight": torch.full((16,), float("nan"))}
    save_file(nan, root / "model.safetensors")
    found = verify(root, device="cpu", prompt="w3")
    assert found.answer is None
    assert "logits-not-finite" in {finding.rule for finding in found.findings}
    del tensors["model.norm.weight"]
    save_file(tensors, root / "model.safetensors")
    found = verify(root, device="cpu", prompt="w3")
    assert found.answer is None
    assert [finding.rule for finding in found.findings] == ["missing-tensor"]


def edit_json(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_tokenizers_that_cannot_be_used(root: Path, tmp_path: Path) -> None:
    def refused(code: str) -> None:
        with pytest.raises(InputError, match=code) as raised:
            ask(open_checkpoint(root), "w3", with_image=False)
        assert raised.value.code == code

    marker = tmp_path / "executed"
    (root / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass T: pass\n")
    auto = {"AutoTokenizer": ["code.T", None], "AutoConfig": "code.T"}
    edit_json(root / "config.json", auto_map=auto)
    assert ask(open_checkpoint(root), "w3", with_image=False).input_ids.tolist() == [3]
    write_tokenizer(root, 32, tokenizer_class="OwnTokenizer", auto_map=auto)
    refused("tokenizer-needs-code")
    assert not marker.exists()
    write_tokenizer(root, 32, tokenizer_file="/dev/stdin")
    refused("path-outside-checkpoint")
    write_tokenizer(root, 32, chat_template="{{ raise_exception('no') }}")
    refused("chat-template-failed")
    write_tokenizer(root, 32, chat_template="{{ ''.__class__.__mro__ }}")
    refused("chat-template-failed")
    write_tokenizer(root, 32, chat_template="<image> {{ messages[0].content }}")
    refused("chat-template-failed")
    write_tokenizer(root, 32, tokenizer_class=["x"])
    refused("tokenizer-unreadable")
    write_tokenizer(root, 32)
    (root / "tokenizer.json").write_text('{"version": "1.0"}')
    refused("tokenizer-unreadable")
    (root / "tokenizer.json").unlink()
    (root / "tokenizer_config.json").write_text("[]")
    refused("invalid-json")
    (root / "tokenizer_config.json").unlink()
    refused("tokenizer-missing")


def test_prompts_that_cannot_be_asked(root: Path) -> None:
    checkpoint = open_checkpoint(root)
    for prompt, with_image, code in (
        ("", False, "empty-prompt"),
        (" \n", True, "empty-prompt"),
        ("\udcff", False, "invalid-prompt"),
        ("w3 <image>", False, "images-do-not-fit-placeholders"),
        ("<image> <image>", True, "images-do-not-fit-placeholders"),
    ):
        with pytest.raises(UsageError, match=code):
            ask(checkpoint, prompt, with_image=with_image)
    write_tokenizer(root, 40)
    with pytest.raises(InputError, match=r"tokenizer-does-not-fit.*below 32.*33 in the prompt"):
        verify(root, device="cpu", prompt="w33")
