"""The replayed loaders do what the installed libraries do: every file has values of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModel, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.conftest import GOLDEN
from vita_ckpt.api.explain import explain
from vita_ckpt.checks.explain.trace import LoaderTrace
from vita_ckpt.core.binding.result import PartSource

OLD = int(transformers.__version__.partition(".")[0]) < 5
PLAIN = "transformers-4.41" if OLD else "transformers-5.6"
PT = {"format": "pt"}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
HEAD, EMBED, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def build() -> Qwen2ForCausalLM:
    sizes: dict[str, Any] = {key: value for key, value in CONFIG.items() if type(value) is int}
    return Qwen2ForCausalLM(Qwen2Config(**sizes))


SHAPES = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
NAMES = sorted(SHAPES)
HALF = NAMES[: len(NAMES) // 2]
REST = NAMES[len(NAMES) // 2 :]


class Directory:
    """A tiny Qwen2 whose files hold 1, 2, 3 …: a value tells which file it came from."""

    def __init__(self, root: Path, config: Mapping[str, Any]) -> None:
        root.mkdir()
        self.root = root
        self.values: dict[str, float] = {}
        said = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
        (root / "config.json").write_text(json.dumps(said))

    def fill(self, file: str, names: list[str] | None = None) -> dict[str, Tensor]:
        self.values[file] = float(len(self.values) + 2)
        return {
            name: torch.full(SHAPES[name], self.values[file], dtype=torch.bfloat16)
            for name in (NAMES if names is None else names)
        }

    def save(
        self, file: str, names: list[str] | None = None, metadata: dict[str, str] | None = PT
    ) -> None:
        save_file(self.fill(file, names), self.root / file, metadata=metadata)

    def pickle(self, file: str, names: list[str] | None = None) -> None:
        torch.save(self.fill(file, names), self.root / file)

    def index(
        self,
        weight_map: Mapping[str, str],
        metadata: dict[str, Any] | None = {},  # noqa: B006 - never changed
        file: str = INDEX,
    ) -> None:
        told = {"weight_map": weight_map} | ({} if metadata is None else {"metadata": metadata})
        (self.root / file).write_text(json.dumps(told))

    def shards(self, *, extra: tuple[str, ...] = (), **more: Any) -> dict[str, str]:
        self.save(ONE, HALF, **more)
        self.save(TWO, [*REST, *extra], **more)
        return dict.fromkeys(HALF, ONE) | dict.fromkeys(REST, TWO)


Build = Callable[[Directory], Any]


def beside_index(directory: Directory) -> None:
    directory.index(directory.shards())
    directory.save("model.safetensors")


def unnamed(directory: Directory) -> None:
    weight_map = directory.shards()
    del weight_map[NORM]
    directory.index(weight_map)


def lacking_shard(directory: Directory) -> None:
    directory.index(directory.shards())
    (directory.root / TWO).unlink()


def pickles_beside_index(directory: Directory) -> None:
    directory.pickle("pytorch_model.bin")
    directory.index(directory.shards())


def pickle_beside_its_index(directory: Directory) -> None:
    directory.pickle("pytorch_model.bin")
    directory.pickle("a.bin")
    directory.index(dict.fromkeys(NAMES, "a.bin"), file="pytorch_model.bin.index.json")


def indexed_pickles(directory: Directory) -> None:
    pickle_beside_its_index(directory)
    (directory.root / "pytorch_model.bin").unlink()


def misshapen(directory: Directory) -> None:
    tensors = directory.fill("model.safetensors")
    tensors[NORM] = torch.ones(8)
    save_file(tensors, directory.root / "model.safetensors", metadata=PT)


def other_head(directory: Directory, *, first: bool) -> None:
    head, rest = (ONE, TWO) if first else (TWO, ONE)
    others = [name for name in NAMES if name != HEAD]
    directory.save(rest, others)
    directory.save(head, [HEAD])
    directory.index(dict.fromkeys(others, rest) | {HEAD: head})


def bare(directory: Directory, names: list[str]) -> None:
    tensors = directory.fill("model.safetensors", names)
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, directory.root / "model.safetensors", metadata=PT)


def below_peft(directory: Directory) -> None:
    tensors = directory.fill("model.safetensors")
    renamed = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, directory.root / "model.safetensors", metadata=PT)


def pointer(directory: Directory) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"
    (directory.root / "model.safetensors").write_text(text)


def named_by_config(directory: Directory) -> None:
    directory.save("model.safetensors")
    directory.save("other.safetensors")


def wide_first(directory: Directory) -> None:
    tensors = directory.fill("model.safetensors")
    tensors[HEAD] = tensors[HEAD].float()
    save_file(tensors, directory.root / "model.safetensors", metadata=PT)


def without(*names: str) -> list[str]:
    return [name for name in NAMES if name not in names]


UNSAID = {"torch_dtype": None}
TIED = {"tie_word_embeddings": True}
DIRECTORIES: dict[str, tuple[Build, dict[str, Any]]] = {
    "one file": (lambda d: d.save("model.safetensors"), {}),
    "shards": (lambda d: d.index(d.shards()), {}),
    "a file beside an index": (beside_index, {}),
    "an index without metadata": (lambda d: d.index(d.shards(), None), {}),
    "a file without a format": (lambda d: d.save("model.safetensors", metadata=None), {}),
    "another format": (lambda d: d.save("model.safetensors", metadata={"format": "np"}), {}),
    "mlx": (lambda d: d.save("model.safetensors", metadata={"format": "mlx"}), {}),
    "shards without a format": (lambda d: d.index(d.shards(metadata=None)), {}),
    "a tensor that the index does not name": (unnamed, {}),
    "a tensor in two shards": (lambda d: d.index(d.shards(extra=(HALF[1],))), {}),
    "a missing shard": (lacking_shard, {}),
    "an empty index": (lambda d: d.index({}), {}),
    "a .bin": (lambda d: d.pickle("pytorch_model.bin"), {}),
    "a .bin beside an index": (pickles_beside_index, {}),
    "a .bin beside its index": (pickle_beside_its_index, {}),
    "an index of .bin": (indexed_pickles, {}),
    "another shape": (misshapen, {}),
    "no norm": (lambda d: d.save("model.safetensors", without(NORM)), {}),
    "no head": (lambda d: d.save("model.safetensors", without(HEAD)), {}),
    "no head, tied": (lambda d: d.save("model.safetensors", without(HEAD)), TIED),
    "another head, tied": (lambda d: other_head(d, first=False), TIED),
    "another head before, tied": (lambda d: other_head(d, first=True), TIED),
    "no model. in names": (lambda d: bare(d, without(HEAD)), {}),
    "no model. in names, with a head": (lambda d: bare(d, NAMES), {}),
    "names of peft": (below_peft, {}),
    "a pointer": (pointer, {}),
    "shards without an index": (lambda d: d.shards(), {}),
    "nothing": (lambda d: None, {}),
    "named by the config": (named_by_config, {"transformers_weights": "other.safetensors"}),
    "no dtype in the config": (lambda d: d.save("model.safetensors"), UNSAID),
    "a wide tensor, no dtype": (wide_first, UNSAID),
    "the new key": (lambda d: d.save("model.safetensors"), {**UNSAID, "dtype": "float16"}),
    "both keys": (lambda d: d.save("model.safetensors"), {"dtype": "float16"}),
    "the index says": (lambda d: d.index(d.shards(), {"dtype": "float16"}), UNSAID),
}


def story_of(path: Path, loader: str) -> LoaderTrace:
    return next(story for story in explain(path).traces if story.loader == loader)


def attempt(load: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """What a library returns, None if it raises whatever it likes."""
    try:
        return load(*arguments, **more)
    except Exception:  # noqa: BLE001 - that it raises is what matters
        return None


def value_of(tensor: Tensor) -> float | None:
    """The value that all elements have, None for drawn ones."""
    low, high = tensor.float().aminmax()
    return float(low) if low == high else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", DIRECTORIES)
def test_a_language_model_in_transformers(tmp_path: Path, what: str) -> None:
    make, config = DIRECTORIES[what]
    directory = Directory(tmp_path / "checkpoint", config)
    make(directory)
    told = story_of(directory.root, PLAIN)
    loaded = attempt(Qwen2ForCausalLM.from_pretrained, directory.root, output_loading_info=True)
    if loaded is None:
        assert told.outcome == "stops"
        return
    model, info = loaded
    assert told.outcome != "stops", told.steps
    assert told.dtype == str(model.dtype).removeprefix("torch.")
    assert set(told.ignored) == set(info["unexpected_keys"])
    state = model.state_dict()
    places = {f"model.{name}" if name not in state else name: f for name, f in told.sources.items()}
    tied = config == TIED
    for name, tensor in state.items():
        if name in told.missing:
            drawn = {None, 0.0, 1.0}
            assert value_of(tensor) in drawn, name
        elif not (tied and name in (HEAD, EMBED)):
            assert value_of(tensor) == directory.values[places[name]], name
    if tied:
        # What the story says the head ends up with is what both, or it alone, hold.
        files = {HEAD: places.get(HEAD), EMBED: places[EMBED]}
        head = told.lm_head.partition(" ")[0] if told.lm_head else ""
        assert value_of(state[HEAD]) == directory.values[str(files[head])]
        if OLD:
            assert torch.equal(state[HEAD], state[EMBED])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", DIRECTORIES)
def test_vitas_way_to_call_transformers(tmp_path: Path, what: str) -> None:
    """float16 and low_cpu_mem_usage, as VITA's loaders ask for, on the version that they pin."""
    make, config = DIRECTORIES[what]
    directory = Directory(tmp_path / "checkpoint", config)
    make(directory)
    told = story_of(directory.root, "vita-1.5")
    model = attempt(
        Qwen2ForCausalLM.from_pretrained,
        directory.root,
        low_cpu_mem_usage=True,
        torch_dtype=torch.float16,
    )
    if model is None:
        assert told.outcome == "stops"
        return
    assert told.outcome != "stops", told.steps
    assert told.dtype == str(model.dtype).removeprefix("torch.")
    state = model.state_dict()
    places = {f"model.{name}" if name not in state else name: f for name, f in told.sources.items()}
    for name, tensor in state.items():
        if name in told.missing:
            assert tensor.is_meta or value_of(tensor) in {None, 0.0, 1.0}
        elif name == HEAD and config == TIED:
            assert torch.equal(tensor, state[EMBED])
        else:
            assert value_of(tensor) == directory.values[places[name]], name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", DIRECTORIES)
def test_a_module_in_huggingface_hub(tmp_path: Path, what: str) -> None:
    make, config = DIRECTORIES[what]
    directory = Directory(tmp_path / "checkpoint", {**config, "model_type": "other"})
    make(directory)
    told = story_of(directory.root, "hub-model")
    model = build()
    for tensor in model.state_dict().values():
        tensor.fill_(-1.0)
    if attempt(huggingface_hub.load_torch_model, model, directory.root) is None:
        # Shapes are the module's matter, of which a model type that is unknown says nothing.
        assert told.outcome == "stops" or what == "another shape"
        return
    assert told.outcome != "stops", told.steps
    for name, tensor in model.state_dict().items():
        found = told.sources.get(name)
        if what == "a tensor in two shards" and name == HALF[1]:
            assert value_of(tensor) in directory.values.values()  # in no fixed order
        else:
            assert value_of(tensor) == (directory.values[found] if found else -1.0)


@pytest.mark.parametrize("what", ["one file", "shards", "a file beside an index", "nothing"])
def test_metadata_in_huggingface_hub(tmp_path: Path, what: str) -> None:
    directory = Directory(tmp_path / "checkpoint", {})
    DIRECTORIES[what][0](directory)
    told = story_of(directory.root, "hub-metadata")
    metadata = attempt(huggingface_hub.get_local_safetensors_metadata, directory.root)
    if metadata is None:
        assert told.outcome == "stops"
        return
    assert metadata.weight_map == told.sources


# What a library of this environment does not do is compared in the other one.
if OLD:
    del test_a_module_in_huggingface_hub, test_metadata_in_huggingface_hub
else:
    del test_vitas_way_to_call_transformers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["A1", "A2", "A3", "A4"])
def test_a_golden_in_transformers(case: str) -> None:
    base = GOLDEN / case / "base"
    told = story_of(base, PLAIN)
    with pytest.raises(ValueError, match="vita-"):
        transformers.AutoModelForCausalLM.from_pretrained(base)
    kind: Any = MixtralForCausalLM if case == "A4" else Qwen2ForCausalLM
    model, info = kind.from_pretrained(base, output_loading_info=True)
    assert told.model_class == type(model).__name__
    assert told.dtype == str(model.dtype).removeprefix("torch.")
    assert set(told.missing) == set(info["missing_keys"])
    assert set(told.ignored) == set(info["unexpected_keys"])
    assert bool(told.missing) == (case == "A4" and not OLD)


@pytest.mark.filterwarnings("ignore")
def test_mixtrals_experts_are_fused_under_their_own_model_type(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "A4" / "base", tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    config["model_type"] = "mixtral"
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config))
    told = story_of(tmp_path / "checkpoint", PLAIN)
    loaded = attempt(
        MixtralForCausalLM.from_pretrained, tmp_path / "checkpoint", output_loading_info=True
    )
    info = loaded[1]
    assert not info["missing_keys"]
    assert not told.missing
    assert set(told.ignored) == set(info["unexpected_keys"])
    assert bool(told.renamed) == (not OLD)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("level", [True, False])
def test_a_tower_with_and_without_its_level(tmp_path: Path, level: bool) -> None:
    """CLIP's and SigLIP's names lost ``vision_model.`` in transformers 5.6, which reads both."""
    tower = tmp_path / "tower"
    shutil.copytree(GOLDEN / "A3" / "tower-clip", tower)
    if not level:
        stored = load_file(tower / "model.safetensors")
        renamed = {name.removeprefix("vision_model."): t for name, t in stored.items()}
        save_file(renamed, tower / "model.safetensors", metadata=PT)
    told = story_of(tower, PLAIN)
    info = attempt(CLIPVisionModel.from_pretrained, tower, output_loading_info=True)[1]
    assert set(told.missing) == set(info["missing_keys"])
    assert set(told.ignored) == set(info["unexpected_keys"])
    assert told.tower == (PartSource.RANDOM if OLD and not level else PartSource.CHECKPOINT)
