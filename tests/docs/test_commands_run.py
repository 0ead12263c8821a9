"""Every command block of a tutorial or how-to runs, and prints what the page shows of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fixtures.builder import write_tokenizer
from tests.conftest import GOLDEN, Cli
from tests.docs.blocks import DOCS, ROOT, Block, blocks, execute, indented, run
from vita_ckpt import apply, plan_merge_projector

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
TASKS = blocks(DOCS / "how-to" / "tasks.md")
SYMPTOMS = blocks(DOCS / "how-to" / "symptoms.md")
Tensors = dict[str, torch.Tensor]


def sections(found: list[Block]) -> list[str]:
    return list(dict.fromkeys(block.section for block in found))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_in_a_clone(cli: Cli, here: Path, page: Path) -> None:
    (here / "fixtures").symlink_to(ROOT / "fixtures")
    found = blocks(page)
    assert found[0].commands[0] == "mkdir try"
    assert found[0].commands[-1] == "cd try"
    run(cli, found)


def lay_out(here: Path, **places: str) -> None:
    for name, source in places.items():
        shutil.copytree(GOLDEN / source, here / name.replace("_", "-"))


@pytest.mark.parametrize("section", sections(TASKS))
def test_a_task_is_done(cli: Cli, here: Path, section: str) -> None:
    lay_out(
        here,
        CKPT="A7/base",
        OTHER="A1/base",
        RUN="A7/mm_projector_fp32",
        tower_internvit="A7/tower-internvit",
        siglip_384="A2/tower-siglip",
    )
    run(cli, [block for block in TASKS if block.section == section])


def change(root: Path, edit: Callable[[Tensors], Tensors]) -> None:
    file = root / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def wide(here: Path) -> None:
    lay_out(here, CKPT="A7/base", tower_internvit="A7/tower-internvit")
    reconfigure(here / "CKPT", mm_hidden_size=64)


def reconfigure(root: Path, **values: object) -> None:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, **values}))


def siglip(here: Path) -> None:
    lay_out(here, CKPT="A2/base", GOOD="A2/base", tower_siglip="A2/tower-siglip")


def wrapped(here: Path) -> None:
    siglip(here)
    own, wrapper = "model.mm_projector.", "model.mm_projector._orig_mod."
    change(here / "CKPT", lambda tensors: {n.replace(own, wrapper): t for n, t in tensors.items()})


def unsaved(here: Path) -> None:
    lay_out(here, RUN="T2/run")


def with_nan(here: Path) -> None:
    siglip(here)

    def spoil(tensors: Tensors) -> Tensors:
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
        return tensors

    change(here / "CKPT", spoil)


def nonsense(here: Path) -> None:
    siglip(here)
    torch.manual_seed(0)
    change(
        here / "CKPT",
        lambda tensors: {
            n: torch.randn_like(t) if "mm_projector" in n else t for n, t in tensors.items()
        },
    )


def moved(here: Path) -> None:
    siglip(here)
    reconfigure(here / "CKPT", mm_vision_tower="somewhere/siglip")


CAUSES = {
    "": siglip,
    '"size mismatch for mm_projector"': wide,
    '"Some weights were newly initialized"': wrapped,
    "No `mm_projector.bin`": unsaved,
    "NaN answers": with_nan,
    "It loads but talks nonsense": nonsense,
    "It works here, and not on the other machine": moved,
    "A surgery was killed": siglip,
}


def test_every_symptom_has_a_cause() -> None:
    assert sections(SYMPTOMS) == list(CAUSES)


@pytest.mark.parametrize("section", CAUSES)
def test_a_symptom_is_mended(cli: Cli, here: Path, section: str) -> None:
    CAUSES[section](here)
    run(cli, [block for block in SYMPTOMS if block.section == section])


# What stands in the commands of the guides for something of the reader's.
PLACES = {
    "path/to/checkpoint": "CKPT",
    "path/to/base": "CKPT",
    "path/to/merged": "merged",
    "path/to/adapter": "RUN",
    "--base … --adapter … --out …": "--base CKPT --adapter RUN --out verified",
}


@pytest.mark.parametrize("name", ["surgery", "checking", "ci"])
def test_a_guides_commands_run(cli: Cli, here: Path, name: str) -> None:
    """What the guide to the hub shows needs a hub: the tests of the hub run it."""
    lay_out(
        here,
        CKPT="A7/base",
        RUN="A7/mm_projector_fp32",
        tower_internvit="A7/tower-internvit",
    )
    if name == "surgery":
        state = here / "run" / "checkpoint-500"
        shutil.copytree(GOLDEN / "T2" / "run", state)
        (state / "global_step3").rename(state / "global_step500")
        (state / "latest").write_text("global_step500")
        shutil.copy(GOLDEN / "A7" / "base" / "config.json", state)
    elif name == "checking":
        (here / "runs").mkdir()
        shutil.copytree(here / "RUN", here / "runs" / "first")
        write_tokenizer(here / "CKPT", 192)
        apply(plan_merge_projector("CKPT", "RUN"), "merged")
        Image.new("RGB", (30, 20), "red").save(here / "photo.jpg")
    else:
        (here / "checkpoints").mkdir()
        (here / "CKPT").rename(here / "checkpoints" / "vita")
    commands = indented(DOCS / f"{name}.md")
    assert commands
    for command in commands:
        for place, real in PLACES.items():
            command = command.replace(place, real)  # noqa: PLW2901 - one after the other
        execute(cli, command)


def test_a_block_that_prints_something_else_is_noticed(cli: Cli, here: Path) -> None:
    siglip(here)
    for command, printed in (("vita-ckpt validate CKPT", "1 error"), ("vita-ckpt nonsense", "")):
        with pytest.raises(AssertionError):
            run(cli, [Block("", (command,), (printed,))])
