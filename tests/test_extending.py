"""The recipes of CONTRIBUTING.md for families, towers and projectors, followed on a copy."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.builder import (
    Spec,
    TowerSpec,
    checkpoint_config,
    language_model,
    mm_projector,
    random_fill,
    typed,
    write_checkpoint,
    write_model,
    write_safetensors,
    write_tokenizer,
    write_tower,
)
from tests.forker import Forker
from vita_ckpt.core.anatomy import projectors, towers

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SCHEMA = "vita_ckpt/schemas/inspect-v1.json"

FAMILY = '''"""Describe a family that no model has."""

from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.shapes import mlp, read_sizes

_DEFAULTS = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "image_size": 8,
    "patch_size": 2,
    "intermediate_size": 16,
}


def _expected_shapes(config):
    sizes = read_sizes(config, _DEFAULTS)
    shapes = {
        "stem.weight": (sizes.width, 3, sizes.patch_size, sizes.patch_size),
        "stem.bias": (sizes.width,),
        "positions": (1, sizes.grid**2, sizes.width),
    }
    for layer in range(sizes.layers):
        shapes |= mlp(f"layers.{layer}", sizes.width, sizes.mlp)
    return shapes


TOY = Family(
    name="toy",
    label="Toy",
    word="toy",
    tower_class="ToyVisionTower",
    patches="stem.weight",
    present=("layers.0.mlp.fc1.weight",),
    positions="positions",
    layers="layers.",
    expected_shapes=_expected_shapes,
    model_types=("toy_vision_model",),
    config_defaults=_DEFAULTS,
)
'''

FAMILY_MODULE = '''"""A family that no model has, in torch."""

from torch import nn
from torch.nn import functional

from vita_ckpt.core.anatomy.towers.families.toy import TOY
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.model.towers.base import VisionTower, empty_parameter


class ToyTower(VisionTower):
    def __init__(self, config, attn):
        width, layers, patch, image = (
            config.get(key, TOY.config_defaults[key])
            for key in ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
        )
        super().__init__(Tower(TOY.name, width, layers, patch, image))
        mlp = config.get("intermediate_size", TOY.config_defaults["intermediate_size"])
        self.vision_tower = Toy(width, layers, mlp, patch, image // patch)

    def features(self, pixel_values):
        return self.vision_tower(pixel_values)


class Toy(nn.Module):
    def __init__(self, width, layers, mlp, patch, grid):
        super().__init__()
        self.stem = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = empty_parameter(1, grid**2, width)
        self.layers = nn.ModuleList(Layer(width, mlp) for _ in range(layers))

    def forward(self, pixel_values):
        hidden = self.stem(pixel_values).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return hidden


class Layer(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, hidden):
        return self.mlp["fc2"](functional.gelu(self.mlp["fc1"](hidden)))


TOWER = ToyTower
'''

PROJECTOR = """_TOY: Final = ProjectorType(
    name="toy",
    spellings=("toy",),
    layers=_named("toy"),
    shapes=lambda wide, out, _layers: _linear("toy.", 2 * wide, out),
    tokens=lambda tokens: tokens // 2 if tokens % 2 == 0 else None,
    types_of_tensors=_always("toy"),
    weight="toy.weight",
    together=2,
)

"""

PROJECTOR_MODULE = """class Toy(nn.Module):
    def __init__(self, _projector_type: str, wide: int, out: int) -> None:
        super().__init__()
        self.toy = nn.Linear(2 * wide, out)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        return self.toy(tokens.reshape(batch, count // 2, 2 * width))


"""

# What is done in each file, by the path that the recipe gives it.
FAMILY_EDITS: dict[str, Callable[[str], str]] = {
    "vita_ckpt/core/anatomy/towers/families/<family>.py": lambda _: FAMILY,
    "vita_ckpt/core/anatomy/towers/families/__init__.py": lambda text: once(
        once(text, "    INTERNVIT,\n)", "    INTERNVIT,\n    TOY,\n)"),
        "from vita_ckpt.core.anatomy.towers.family import",
        "from vita_ckpt.core.anatomy.towers.families.toy import TOY\n"
        "from vita_ckpt.core.anatomy.towers.family import",
    ),
    "vita_ckpt/model/towers/<family>.py": lambda _: FAMILY_MODULE,
    SCHEMA: lambda text: text.replace('"internvit"', '"internvit", "toy"').replace(
        '"InternViTVisionTower"', '"InternViTVisionTower", "ToyVisionTower"'
    ),
}
PROJECTOR_EDITS: dict[str, Callable[[str], str]] = {
    "vita_ckpt/core/anatomy/projectors.py": lambda text: once(
        once(text, "    _IDENTITY,\n)", "    _IDENTITY,\n    _TOY,\n)"),
        "# Every type that VITA and Bunny build",
        PROJECTOR + "# Every type that VITA and Bunny build",
    ),
    "vita_ckpt/model/projectors.py": lambda text: once(
        once(text, '    "identity": _identity,\n', '    "identity": _identity,\n    "toy": Toy,\n'),
        "# The builder of each row",
        PROJECTOR_MODULE + "# The builder of each row",
    ),
}

MODEL_FAMILY = '''"""Describe a family of models that nobody has."""

from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.backbones import Backbone
from vita_ckpt.core.anatomy.families.family import Key, ModelFamily, TowerSource


def _tower_source(config, load):
    if not config.get("toy_trained"):
        return TowerSource.DIRECTORY
    return TowerSource.CHECKPOINT if load.stored else TowerSource.UNINITIALISED


TOY = ModelFamily(
    name="toy",
    label="Toy",
    backbones=(Backbone("toy-llama", "ToyLlamaForCausalLM", "toy", "Llama", "llama"),),
    dispatch=lambda config, exists: towers.dispatch(str(config.get("mm_vision_tower")), False),
    tower_source=_tower_source,
    projector_types=projectors.LLAVA_TYPES,
    default_projector="linear",
    unfreeze_key="toy_trained",
    s2_key="toy_s2",
    default_s2_scales=towers.DEFAULT_S2_SCALES,
    s2_towers=("siglip",),
    keys={
        "mm_vision_tower": Key((str,)),
        "mm_hidden_size": Key((int,)),
        "mm_projector_type": Key((str,), "linear"),
        "use_mm_proj": Key((bool,)),
        "toy_trained": Key((bool,), default=False),
        "tokenizer_model_max_length": Key((int,)),
        "tokenizer_padding_side": Key((str,)),
        "tune_mm_mlp_adapter": Key((bool,)),
        "freeze_mm_mlp_adapter": Key((bool,)),
        "mm_projector_lr": Key((float,)),
        "image_aspect_ratio": Key((str,)),
        "s2_scales": Key((str,)),
    },
    loaders=("toy",),
    runs_on="transformers 4.41",
)
'''
MODEL_FAMILY_EDITS: dict[str, Callable[[str], str]] = {
    "vita_ckpt/core/anatomy/families/<family>.py": lambda _: MODEL_FAMILY,
    "vita_ckpt/core/anatomy/families/__init__.py": lambda text: once(
        once(text, "    LLAVA,\n)", "    LLAVA,\n    TOY,\n)"),
        "from vita_ckpt.core.anatomy.families.vita import VITA\n",
        "from vita_ckpt.core.anatomy.families.toy import TOY\n"
        "from vita_ckpt.core.anatomy.families.vita import VITA\n",
    ),
    SCHEMA: lambda text: (
        text.replace('"llava-checkpoint"', '"llava-checkpoint", "toy-checkpoint"')
        .replace('"qwen2p5_instruct"', '"qwen2p5_instruct", "toy"')
        .replace('"use_pos_skipping"', '"use_pos_skipping", "toy_trained"')
    ),
    "vita_ckpt/schemas/explain-v1.json": lambda text: text.replace('"bunny"', '"bunny", "toy"'),
}

RUN_MODEL_FAMILY = """
import json, sys
from pathlib import Path

import vita_ckpt
assert Path(vita_ckpt.__file__).is_relative_to(sys.argv[1]), vita_ckpt.__file__

from click.testing import CliRunner
from vita_ckpt.cli.main import cli

shown = []
for arguments in (
    ["merge-projector", "--base", "llama", "--adapter", "run", "--out", "made"],
    ["inspect", "made", "--json"],
    ["validate", "made", "--json"],
    ["explain", "made", "--json"],
    ["set", "made", "toy_trained=true", "--out", "trained"],
    ["verify", "trained", "--device", "cpu", "--json"],
    ["swap-tower", "--base", "llama", "--tower", "tower-clip", "--projector", "run"],
):
    result = CliRunner().invoke(cli, arguments)
    shown.append([arguments[0], result.exit_code, result.stdout, str(result.exception)])
print(json.dumps(shown))
"""

RUN = """
import json, sys
from pathlib import Path

import vita_ckpt
assert Path(vita_ckpt.__file__).is_relative_to(sys.argv[1]), vita_ckpt.__file__

from click.testing import CliRunner
from vita_ckpt.cli.main import cli

def run(*arguments):
    result = CliRunner().invoke(cli, arguments)
    shown.append([arguments[0], result.exit_code, result.stdout, str(result.exception)])

shown = []
run("inspect", "tower-toy", "--json")
run("swap-tower", "--base", "base", "--tower", "tower-toy", "--projector", "reinit",
    "--projector-type", "toy", "--out", "swapped")
run("inspect", "swapped", "--json")
run("extract-tower", "--from", "swapped", "--out", "again")
run("validate", "swapped")
run("verify", "swapped", "--device", "cpu", "--json")
run("swap-tower", "--base", "base", "--tower", "tower-toy", "--projector-type", "none", "--dry-run")

# Every row of the tables has its module.
from importlib import import_module
from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.model.projectors import MODULES

assert set(MODULES) == {kind.name for kind in projectors.EVERY_TYPE}
for family in towers.KNOWN:
    module = import_module(f"vita_ckpt.model.towers.{family.name}")
    assert hasattr(module, "TOWER"), family.name
    assert not family.has_s2 or hasattr(module, "S2_TOWER"), family.name
print(json.dumps(shown))
"""


def once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def files_of_recipe(title: str) -> list[str]:
    """The files of the package that a recipe of CONTRIBUTING.md lists."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    recipe = page.split(f"### {title}\n")[1].split("\n### ")[0]
    return re.findall(r"^- `(vita_ckpt/[^`]+)`", recipe, re.MULTILINE)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def follow(root: Path, title: str, edits: dict[str, Callable[[str], str]], name: str) -> None:
    """Do to the copy in ``root`` what the recipe says, and nothing else."""
    listed = files_of_recipe(title)
    assert sorted(listed) == sorted(edits)
    before = contents(root)
    for pattern, edit in edits.items():
        path = root / re.sub("<.*>", name, pattern)
        assert path.exists() == ("<" not in pattern)
        path.write_text(edit(path.read_text() if path.exists() else ""))
    after = contents(root)
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed == {re.sub("<.*>", name, pattern) for pattern in listed}


def enums(schema: Any) -> list[list[Any]]:
    """Every enum of a schema."""
    if isinstance(schema, list):
        return [found for item in schema for found in enums(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["enum"]] if "enum" in schema else []
    return own + [found for value in schema.values() for found in enums(value)]


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """A process with torch, and without the package."""
    with Forker("warm_without_the_package", environment=ENVIRONMENT) as forker:
        yield forker


def run_in_copy(forker: Forker, script: str, copy: Path, work: Path) -> list[Any]:
    """Run a script with the copy of the package; it prints JSON."""
    program = f"import sys; sys.path.insert(0, {str(copy)!r})\n{script}"
    done = forker.run([copy], program=program, cwd=work, environment=ENVIRONMENT)
    assert done.code == 0, done.err
    found: list[Any] = json.loads(done.out)
    return found


def test_the_schemas_list_the_families_of_the_table() -> None:
    names = {family.name for family in towers.KNOWN}
    classes = {family.tower_class for family in towers.KNOWN}
    classes |= {f"{family.tower_class}S2" for family in towers.WITH_S2}
    found = 0
    for path in (ROOT / "vita_ckpt" / "schemas").glob("*.json"):
        for enum in enums(json.loads(path.read_text())):
            for listed in (names, classes):
                if listed & set(enum):
                    # Of classes there are those of model families too, for towers unknown here.
                    extra = set(enum) - {None} - listed
                    assert listed <= set(enum), path
                    assert not extra or listed is classes, path
                    found += 1
    assert found == 4


def test_the_schemas_list_no_projector_type() -> None:
    """A type is a string there: of one kind there are as many as an mlp has layers."""
    spellings = {spelling for kind in projectors.TYPES for spelling in kind.spellings}
    for path in (ROOT / "vita_ckpt" / "schemas").glob("*.json"):
        assert not any(spellings & set(enum) for enum in enums(json.loads(path.read_text())))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    # What is compiled goes along: only the files that are edited are compiled again.
    shutil.copytree(ROOT / "vita_ckpt", root / "vita_ckpt")
    return root


def test_a_tower_family_and_a_projector_type_are_added_by_their_recipes(
    tmp_path: Path, copy: Path, forker: Forker
) -> None:
    assert len(files_of_recipe("A tower family")) <= 4
    assert len(files_of_recipe("A projector type")) <= 2
    follow(copy, "A tower family", FAMILY_EDITS, "toy")
    follow(copy, "A projector type", PROJECTOR_EDITS, "toy")
    work = tmp_path / "work"
    write_inputs(work)
    tower, swap, swapped, extract, validate, verify, refused = run_in_copy(forker, RUN, copy, work)
    for command in (tower, swap, swapped, extract, validate, verify):
        assert command[1] == 0, command
    schema = json.loads((copy / SCHEMA).read_text())
    for found in (json.loads(tower[2]), json.loads(swapped[2])):
        jsonschema_validate(found, schema)
        assert found["tower"]["family"] == "toy"
        assert found["disagreements"] == []
    assert json.loads(swapped[2])["dispatch"] == {
        "family": "toy",
        "tower_class": "ToyVisionTower",
        "reason": '"toy" in the path',
    }
    assert json.loads(swapped[2])["projector"] == {"types": ["toy"], "in_width": 8, "out_width": 16}
    assert json.loads(verify[2])["tokens_per_image"] == json.loads(swapped[2])["tokens_per_image"]
    assert json.loads(swapped[2])["tokens_per_image"] == 8
    assert refused[1] != 0
    assert "minigpt, identity or toy" in refused[3]
    again = (work / "again" / "config.json").read_bytes()
    assert json.loads(again)["model_type"] == "toy_vision_model"


def test_a_model_family_is_added_by_its_recipe(tmp_path: Path, copy: Path, forker: Forker) -> None:
    assert len(files_of_recipe("A model family")) <= 4
    follow(copy, "A model family", MODEL_FAMILY_EDITS, "toy")
    work = tmp_path / "work"
    write_run(work)
    merge, inspected, validated, explained, set_, verify, swap = run_in_copy(
        forker, RUN_MODEL_FAMILY, copy, work
    )
    for command in (merge, inspected, validated, explained, set_, verify):
        assert command[1] == 0, command
    report = json.loads(inspected[2])
    jsonschema_validate(report, json.loads((copy / SCHEMA).read_text()))
    assert (report["kind"], report["family"]) == ("toy-checkpoint", "Toy")
    assert report["disagreements"] == []
    assert report["tower_source"] == "its directory: the one that is stored is not used"
    assert json.loads(validated[2])["reports"][0]["kind"] == "toy-checkpoint"
    found = json.loads(explained[2])
    schema = copy / "vita_ckpt/schemas/explain-v1.json"
    jsonschema_validate(found, json.loads(schema.read_text()))
    (own,) = [one for one in found["loaders"] if one["loader"] == "toy"]
    assert (own["outcome"], own["model_class"]) == ("complete", "ToyLlamaForCausalLM")
    assert swap[1] != 0
    assert "merge-projector" in swap[3]


def jsonschema_validate(report: Any, schema: Any) -> None:
    pytest.importorskip("jsonschema").validate(report, schema)


def write_inputs(root: Path) -> None:
    """A checkpoint with another tower, and a tower of the new family."""
    root.mkdir()
    write_tokenizer(write_checkpoint(root / "base"), 32)
    tower = root / "tower-toy"
    tower.mkdir()
    width, inner = 8, 16
    shapes: dict[str, tuple[int, ...]] = {
        "stem.weight": (width, 3, 2, 2),
        "stem.bias": (width,),
        "positions": (1, 16, width),
    }
    for layer in range(2):
        shapes |= {
            f"layers.{layer}.mlp.fc1.weight": (inner, width),
            f"layers.{layer}.mlp.fc1.bias": (inner,),
            f"layers.{layer}.mlp.fc2.weight": (width, inner),
            f"layers.{layer}.mlp.fc2.bias": (width,),
        }
    tensors = {name: ("F32", shape) for name, shape in shapes.items()}
    write_safetensors(tower / "model.safetensors", tensors, random_fill("F32"))
    (tower / "config.json").write_text('{"model_type": "toy_vision_model"}\n')
    (tower / "preprocessor_config.json").write_text('{"size": 8, "crop_size": 8}\n')


def write_run(root: Path) -> None:
    """A plain Llama, and a projector run on it of a family that nobody has."""
    root.mkdir()
    spec = Spec(model_type="vita-Mistral", tower=TowerSpec("clip"), projector="linear")
    config = checkpoint_config(spec, "F32")
    plain = {key: value for key, value in config.items() if not key.startswith(("mm_", "use_"))}
    llama = {**plain, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    write_model(root / "llama", typed(language_model(spec)), llama)
    write_tokenizer(root / "llama", spec.vocab)
    write_tower(root / "tower-clip", spec.tower)
    run = root / "run"
    run.mkdir()
    shapes = mm_projector("linear", spec.mm_hidden, spec.hidden)
    torch = pytest.importorskip("torch")
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    torch.save(tensors, run / "mm_projector.bin")
    own = {**llama, "model_type": "toy-llama", "mm_vision_tower": "tower-clip"}
    (run / "config.json").write_text(json.dumps({**own, "mm_projector_type": "linear"}))
