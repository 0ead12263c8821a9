"""build_tower: upstream's features on golden cases, every option against its written-out rule."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import GOLDEN
from vita_ckpt.core.anatomy.families import Features
from vita_ckpt.core.anatomy.towers.detect import stored_names, tower_of_config
from vita_ckpt.core.anatomy.towers.tensors import expected_shapes
from vita_ckpt.errors import InputError
from vita_ckpt.model.projectors import build_projector
from vita_ckpt.model.towers.base import VisionTower
from vita_ckpt.model.towers.build import build_tower

EVA = {
    "width": 48,
    "layers": 3,
    "mlp": 128,
    "heads": 3,
    "patch_size": 14,
    "image_size": 56,
    "head_out": 24,
}


@dataclass(frozen=True)
class Golden:
    """One tower of a golden case; ``prefix`` is of its tensors in inputs and expected."""

    checkpoint: str
    family: str
    tower: str
    prefix: str = ""
    scales: tuple[int, ...] | None = None

    @property
    def case(self) -> Path:
        return GOLDEN / self.checkpoint.split("/")[0]

    def config(self) -> dict[str, Any]:
        if self.family == "eva":
            return dict(EVA)
        config: dict[str, Any] = json.loads((self.case / self.tower / "config.json").read_text())
        return config

    def build(self, attn: str | None = None) -> VisionTower:
        return build_tower(self.family, self.config(), s2_scales=self.scales, attn=attn)

    def pixels(self) -> Tensor:
        tensors = load_file(self.case / "inputs.safetensors")
        return tensors.get(f"{self.prefix}pixel_values", tensors["pixel_values"])

    def expected(self, name: str) -> Tensor:
        return load_file(self.case / "expected.safetensors")[self.prefix + name]

    def tensors(self, below: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for file in (GOLDEN / self.checkpoint).glob("*.safetensors"):
            tensors |= load_file(file)
        return {n.removeprefix(below): t for n, t in tensors.items() if n.startswith(below)}

    def loaded(self, attn: str | None = None) -> VisionTower:
        tower = self.build(attn)
        tower.load_state_dict(own_names(tower, self.tensors("model.vision_tower.")), strict=True)
        return tower


CASES = {
    "A1": Golden("A1/base", "internvit", "tower-internvit"),
    "A2": Golden("A2/base", "siglip", "tower-siglip"),
    "A3": Golden("A3/base", "clip", "tower-clip"),
    "A4": Golden("A4/base", "internvit", "tower-internvit"),
    "A5": Golden("A5/base", "siglip", "tower-siglip", scales=(56, 84, 28)),
    "A6": Golden("A6/base", "eva", "tower-eva"),
    "A7": Golden("A7/base", "internvit", "tower-internvit", prefix="base_"),
    "A8-base": Golden("A8/base", "siglip", "tower-siglip", prefix="base_"),
    "A8-swapped": Golden("A8/swapped_by_upstream", "internvit", "tower-internvit"),
}
ONE_OF_EACH = ["A1", "A2", "A3", "A5", "A6"]


def own_names(tower: VisionTower, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors under the tower's own names; names that it lacks keep their own."""
    by_stored = {tower.checkpoint_name(name): name for name in tower.state_dict()}
    assert len(by_stored) == len(tower.state_dict())
    return {by_stored.get(name, name): tensor for name, tensor in stored.items()}


def randomise(tower: VisionTower) -> VisionTower:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return tower


def run(tower: VisionTower, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = tower(pixels)
    return result


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attn", [None, "eager", "sdpa"])
def test_golden_features(name: str, attn: str | None) -> None:
    golden = CASES[name]
    tower = golden.loaded(attn)
    got, expected = run(tower, golden.pixels()), golden.expected("tower_features")
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-5
    assert tower.family == golden.family
    assert tower.image_size == golden.pixels().shape[-1]
    assert (tower.tokens, tower.hidden_size) == tuple(got.shape[1:])
    assert not tower.training


@pytest.mark.parametrize("name", CASES)
def test_golden_images_through_tower_and_projector(name: str) -> None:
    golden = CASES[name]
    config = json.loads((GOLDEN / golden.checkpoint / "config.json").read_text())
    tower = golden.loaded()
    assert tower.hidden_size == config["mm_hidden_size"]
    projector = build_projector(
        config["mm_projector_type"], tower.hidden_size, config["hidden_size"]
    )
    projector.load_state_dict(golden.tensors("model.mm_projector."), strict=True)
    with torch.no_grad():
        got = projector(run(tower, golden.pixels()))
    assert (got - golden.expected("image_features")).abs().max() < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_golden_names_and_shapes(name: str) -> None:
    golden = CASES[name]
    tower = golden.build()
    got = {tower.checkpoint_name(n): t.shape for n, t in tower.state_dict().items()}
    stored = golden.tensors("model.vision_tower.")
    assert got == {n: t.shape for n, t in stored.items()}
    config = tower_of_config(golden.config())
    if config is not None:
        assert tower.hidden_size == config.output_width(len(golden.scales or (1,)))
        assert tower.tokens == config.tokens()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_features_have_the_dtype_of_the_pixels(name: str) -> None:
    golden = CASES[name]
    tower = golden.loaded().to(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        got = run(tower, golden.pixels().to(dtype))
        assert got.dtype == dtype
        wanted = golden.expected("tower_features")
        assert (got.float() - wanted).abs().mean() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_weights_can_flow_through_it_module_by_module(name: str) -> None:
    """From the meta device, each owner of parameters filled just for its own forward."""
    golden = CASES[name]
    pixels = golden.pixels()
    with init_empty_weights(include_buffers=False):
        tower = golden.build()
    assert all(parameter.is_meta for parameter in tower.parameters())
    assert not any(buffer.is_meta for buffer in tower.buffers())
    weights = own_names(tower, golden.tensors("model.vision_tower."))
    # The rotary tables belong to the checkpoint too, and are real already.
    tower.load_state_dict(
        {n: weights[n] for n, _ in tower.named_buffers() if n in weights}, strict=False
    )
    used: set[str] = set()

    def stream(module: nn.Module, prefix: str) -> None:
        names = [name for name, _ in module.named_parameters(recurse=False)]
        empty = {name: getattr(module, name) for name in names}

        def fill(module: nn.Module, _: Any) -> None:
            for name in names:
                used.add(prefix + name)
                setattr(module, name, nn.Parameter(weights[prefix + name]))

        def drain(module: nn.Module, *_: Any) -> None:
            for name in names:
                setattr(module, name, empty[name])

        if names:
            module.register_forward_pre_hook(fill)
            module.register_forward_hook(drain)

    for path, module in tower.named_modules():
        stream(module, f"{path}." if path else "")
    assert torch.equal(run(tower, pixels), run(golden.loaded(), pixels))
    assert all(parameter.is_meta for parameter in tower.parameters())

    unused = {tower.checkpoint_name(n) for n, _ in tower.named_parameters()} - {
        tower.checkpoint_name(n) for n in used
    }
    level = {"eva": "model.", "internvit": ""}.get(golden.family, "vision_model.")
    last = {"eva": "blocks.2.", "internvit": "-"}.get(golden.family, "encoder.layers.2.")
    allowed = tuple(f"vision_tower.{level}{n}" for n in (last, "post_layernorm.", "head.", "norm."))
    assert all(name.startswith(allowed) for name in unused), unused
    assert bool(unused) == (golden.family != "internvit")


@pytest.mark.parametrize("name", ["A1", "A2", "A3"])
def test_a_parent_config_is_looked_through(name: str) -> None:
    golden = CASES[name]
    parent = {"model_type": "parent", "hidden_size": 8, "vision_config": golden.config()}
    tower = build_tower(golden.family, parent)
    assert (tower.hidden_size, tower.tokens) == (golden.build().hidden_size, golden.build().tokens)


@pytest.mark.parametrize(
    ("family", "width", "tokens"),
    [("siglip", 768, 196), ("clip", 768, 49), ("internvit", 12800, 64), ("eva", 1024, 576)],
)
def test_keys_left_out_have_their_defaults(family: str, width: int, tokens: int) -> None:
    with init_empty_weights(include_buffers=False):
        tower = build_tower(family, {"num_hidden_layers": 1, "layers": 1})
    assert (tower.hidden_size, tower.tokens) == (width, tokens)


def test_eva_has_upstreams_sizes_by_default() -> None:
    with init_empty_weights(include_buffers=False):
        shapes = {n: tuple(t.shape) for n, t in build_tower("eva", {}).state_dict().items()}
    at = "vision_tower.model."
    assert len(shapes) == 24 * 23 + 10
    assert shapes[f"{at}blocks.23.mlp.w1.weight"] == (int(1024 * 2.6667), 1024)
    assert shapes[f"{at}blocks.23.attn.rope.freqs_cos"] == (576, 64)
    assert shapes[f"{at}pos_embed"] == (1, 577, 1024)
    assert shapes[f"{at}head.weight"] == (768, 1024)


def test_eva_computes_upstreams_rotary_tables_and_takes_the_stored_ones() -> None:
    golden = CASES["A6"]
    stored = golden.tensors("model.vision_tower.")
    for name, table in golden.build().named_buffers():
        assert (table - stored[name]).abs().max() < 1e-6, name
    tower = golden.loaded()
    before = run(tower, golden.pixels())
    for name, table in tower.named_buffers():
        if "blocks.0." in name:
            table.zero_()
    assert not torch.allclose(run(tower, golden.pixels()), before, atol=1e-2)


def test_siglip_without_a_head() -> None:
    config = CASES["A2"].config()
    names = {n.split(".")[-2] for n in build_tower("siglip", config).state_dict() if "head" in n}
    assert names
    headless = build_tower("siglip", config | {"vision_use_head": False})
    assert not any("head" in name for name in headless.state_dict())
    stored = CASES["A2"].tensors("model.vision_tower.")
    kept = {name: tensor for name, tensor in stored.items() if ".head." not in name}
    headless.load_state_dict(own_names(headless, kept), strict=True)
    pixels = CASES["A2"].pixels()
    assert torch.equal(run(headless, pixels), run(CASES["A2"].loaded(), pixels))


# Which hidden states are taken, and CLIP at several scales


def clip_states(pixels: Tensor) -> list[Tensor]:
    """All hidden states of A3's CLIP, as the library itself returns them."""
    model: Any = CASES["A3"].loaded().vision_tower
    with torch.no_grad():
        return list(model(pixels, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layers", [(-2,), (1,), (0,), (-1,), (-2, -3, 3), (-4, 0)])
def test_hidden_states_are_taken_by_their_numbers(
    layers: tuple[int, ...], class_token: bool
) -> None:
    golden = CASES["A3"]
    tower = build_tower("clip", golden.config(), features=Features(layers, class_token))
    tower.load_state_dict(golden.loaded().state_dict())
    states = clip_states(golden.pixels())
    wanted = torch.cat([states[number] for number in layers], dim=-1)
    got = run(tower, golden.pixels())
    assert torch.allclose(got, wanted if class_token else wanted[:, 1:], atol=1e-6)
    assert (tower.tokens, tower.hidden_size) == tuple(got.shape[1:])


def test_the_last_hidden_state_is_before_the_last_norm() -> None:
    golden = CASES["A2"]
    config = golden.config()
    whole = golden.loaded()
    fewer = config | {"num_hidden_layers": config["num_hidden_layers"] - 1}
    cut = build_tower("siglip", fewer | {"vision_use_head": False}, features=Features((-1,)))
    state = {name: whole.state_dict()[name] for name in cut.state_dict()}
    cut.load_state_dict(state, strict=True)
    assert torch.equal(run(cut, golden.pixels()), run(whole, golden.pixels()))


@pytest.mark.parametrize("layers", [(-5,), (4,), (-2, 9)])
def test_hidden_states_that_there_are_not(layers: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="mm_vision_select_layer"):
        build_tower("clip", CASES["A3"].config(), features=Features(layers))


def test_clip_at_several_scales() -> None:
    golden = CASES["A3"]
    scales = (42, 84)
    tower = build_tower("clip", golden.config(), s2_scales=scales, s2_towers=("clip",))
    one = golden.loaded()
    tower.load_state_dict(one.state_dict())
    pixels = images(2, 3, 84, 84)
    small = functional.interpolate(pixels, (42, 42), mode="bicubic", align_corners=False)
    tiles = [run(one, pixels[:, :, y : y + 42, x : x + 42]) for y in (0, 42) for x in (0, 42)]
    side = one.grid
    maps = [tile.transpose(1, 2).reshape(2, -1, side, side) for tile in tiles]
    whole = torch.cat([torch.cat(maps[:2], 3), torch.cat(maps[2:], 3)], 2)
    pooled = functional.interpolate(whole, (side, side), mode="area").flatten(2).transpose(1, 2)
    got = run(tower, pixels)
    assert torch.allclose(got, torch.cat([run(one, small), pooled], -1), atol=1e-6)
    assert (tower.image_size, tower.tile_size) == (84, 42)
    with pytest.raises(InputError, match="s2-needs-siglip"):
        build_tower("clip", golden.config(), s2_scales=scales)


# InternViT


def internvit(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 8,
        "patch_size": 2,
        "layer_norm_eps": 1e-5,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        **options,
    }


def reference_internvit(tower: VisionTower, config: dict[str, Any], pixels: Tensor) -> Tensor:
    """The rules of UPSTREAM §3 written out, head by head and token by token."""
    weights = {
        name.removeprefix("vision_tower."): tensor for name, tensor in tower.state_dict().items()
    }
    width, heads, side = config["hidden_size"], config["num_attention_heads"], config["patch_size"]

    def norm(x: Tensor, at: str, rms: bool) -> Tensor:
        centred = x if rms else x - x.mean(-1, keepdim=True)
        eps = config["layer_norm_eps"]
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        bias = torch.zeros(1) if rms else weights[f"{at}.bias"]
        return torch.addcmul(bias, scaled, weights[f"{at}.weight"])

    def linear(x: Tensor, at: str) -> Tensor:
        return functional.linear(x, weights[f"{at}.weight"], weights.get(f"{at}.bias"))

    rms = config["norm_type"] == "rms_norm"
    grid, table = pixels.shape[-1] // side, config["image_size"] // side
    kernel = weights["embeddings.patch_embedding.weight"].flatten(1)
    patches = functional.unfold(pixels, side, stride=side).transpose(1, 2) @ kernel.T
    patches = patches + weights["embeddings.patch_embedding.bias"]
    positions = weights["embeddings.position_embedding"]
    square = positions[0, 1:].reshape(table, table, width).permute(2, 0, 1)[None]
    stretched = functional.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
    hidden = torch.cat(
        [
            (weights["embeddings.class_embedding"] + positions[:, :1]).expand(
                len(pixels), 1, width
            ),
            patches + stretched[0].permute(1, 2, 0).reshape(1, grid * grid, width),
        ],
        dim=1,
    )
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{layer}"
        qkv = linear(norm(hidden, f"{at}.norm1", rms), f"{at}.attn.qkv")
        q, k, v = qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]
        if config["qk_normalization"]:
            q, k = norm(q, f"{at}.attn.q_norm", True), norm(k, f"{at}.attn.k_norm", True)
        mixed = []
        for head in range(heads):
            cut = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[..., cut] @ k[..., cut].transpose(1, 2) / (width / heads) ** 0.5
            mixed.append(scores.softmax(-1) @ v[..., cut])
        attended = linear(torch.cat(mixed, -1), f"{at}.attn.proj")
        hidden = hidden + attended * weights[f"{at}.ls1"]
        inner = linear(norm(hidden, f"{at}.norm2", rms), f"{at}.mlp.fc1")
        if config.get("hidden_act") == "quick_gelu":
            inner = inner * torch.sigmoid(1.702 * inner)
        else:
            inner = functional.gelu(inner)
        hidden = hidden + linear(inner, f"{at}.mlp.fc2") * weights[f"{at}.ls2"]
    rows = hidden[:, 1:].reshape(-1, grid, grid, width) * 0.5
    corners = [rows[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(corners, dim=-1).reshape(len(pixels), grid * grid // 4, 4 * width)


@pytest.mark.parametrize(
    ("bias", "qk_norm", "norm_type"),
    list(itertools.product([False, True], [False, True], ["layer_norm", "rms_norm"])),
)
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_internvit_options(bias: bool, qk_norm: bool, norm_type: str, act: str) -> None:
    config = internvit(qkv_bias=bias, qk_normalization=qk_norm, norm_type=norm_type, hidden_act=act)
    tower = randomise(build_tower("internvit", config))
    names = set(tower.state_dict())
    at = "vision_tower.encoder.layers.1"
    assert (f"{at}.attn.qkv.bias" in names) == bias
    assert (f"{at}.attn.q_norm.weight" in names) == qk_norm
    assert (f"{at}.attn.k_norm.weight" in names) == qk_norm
    assert (f"{at}.norm1.bias" in names) == (norm_type == "layer_norm")
    if qk_norm:
        assert tower.state_dict()[f"{at}.attn.q_norm.weight"].shape == (12,)
    pixels = images(2, 3, 8, 8)
    expected = reference_internvit(tower, config, pixels)
    assert (run(tower, pixels) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("side", [4, 12, 16])
def test_internvit_stretches_its_positions_to_the_image(side: int) -> None:
    tower = randomise(build_tower("internvit", internvit()))
    pixels = images(1, 3, side, side)
    got = run(tower, pixels)
    assert got.shape == (1, side * side // 16, 48)
    assert (got - reference_internvit(tower, internvit(), pixels)).abs().max() < 1e-5


@pytest.mark.parametrize("image_size", [6, 10, 15])
def test_odd_grids_cannot_be_shuffled(image_size: int) -> None:
    with pytest.raises(InputError) as caught:
        build_tower("internvit", internvit(image_size=image_size))
    assert caught.value.code == "odd-patch-grid"
    assert caught.value.subject == "image_size"
    tower = build_tower("internvit", internvit())
    with pytest.raises(InputError) as caught:
        tower(images(1, 3, image_size, image_size))
    assert caught.value.code == "odd-patch-grid"
    assert caught.value.subject == "pixel_values"
    assert caught.value.got == str(image_size // 2)


# S2


def siglip(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 6,
        "patch_size": 2,
        **options,
    }


@pytest.mark.parametrize("scales", [(6,), (6, 12), (6, 12, 18), (6, 18), (24, 6, 12, 18)])
def test_s2_puts_scales_side_by_side(scales: tuple[int, ...]) -> None:
    tower = randomise(build_tower("siglip", siglip(), s2_scales=scales))
    plain = build_tower("siglip", siglip())
    plain.load_state_dict(tower.state_dict(), strict=True)
    assert tower.hidden_size == 8 * len(scales)
    assert tower.tokens == plain.tokens == 9
    assert tower.image_size == max(scales)

    pixels = images(2, 3, 12, 12)
    got = run(tower, pixels)
    assert got.shape == (2, 9, 8 * len(scales))
    for place, scale in enumerate(sorted(scales)):
        resized = functional.interpolate(pixels, (scale, scale), mode="bicubic")
        rows = []
        for top in range(0, scale, 6):
            row = [
                run(plain, resized[:, :, top : top + 6, left : left + 6]).reshape(2, 3, 3, 8)
                for left in range(0, scale, 6)
            ]
            rows.append(torch.cat(row, dim=2))
        whole, boards = torch.cat(rows, dim=1), scale // 6
        pooled = whole.reshape(2, 3, boards, 3, boards, 8).mean((2, 4)).reshape(2, 9, 8)
        assert (got[..., 8 * place : 8 * place + 8] - pooled).abs().max() < 1e-5


def test_s2_tiles_may_be_cut_within_the_last_patch() -> None:
    """SigLIP's 384 pixels are 27 patches of 14 and six pixels that it never sees."""
    tower = randomise(build_tower("siglip", siglip(image_size=7), s2_scales=(6, 12)))
    assert run(tower, images(1, 3, 7, 7)).shape == (1, 9, 16)


@pytest.mark.parametrize("scales", [(), (12, 24), (6, 16), (6, 9), (0, 6), (-6, 6)])
def test_s2_scales_that_no_tile_fits(scales: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        build_tower("siglip", siglip(), s2_scales=scales)
    assert caught.value.code == "s2-scales-do-not-fit-tower"


@pytest.mark.parametrize("name", ["A1", "A3", "A6"])
def test_only_siglip_has_s2(name: str) -> None:
    with pytest.raises(InputError) as caught:
        build_tower(CASES[name].family, CASES[name].config(), s2_scales=(56, 112))
    assert caught.value.code == "s2-needs-siglip"
    assert "\n" not in str(caught.value)


# What cannot be built or run


def test_unknown_family() -> None:
    with pytest.raises(InputError) as caught:
        build_tower("dinov2", {})
    assert caught.value.code == "unknown-tower-family"
    assert "internvit" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("siglip", "hidden_size", "768"),
        ("siglip", "image_size", [384, 384]),
        ("siglip", "num_hidden_layers", 0),
        ("siglip", "num_attention_heads", 7),
        ("siglip", "vision_use_head", 1),
        ("clip", "hidden_act", "swoosh"),
        ("clip", "patch_size", None),
        ("clip", "patch_size", 500),
        ("clip", "num_attention_heads", True),
        ("clip", "num_attention_heads", 7),
        ("internvit", "norm_type", "batch_norm"),
        ("internvit", "hidden_act", "swoosh"),
        ("internvit", "layer_norm_eps", "1e-6"),
        ("internvit", "num_attention_heads", 7),
        ("eva", "width", -1),
        ("eva", "heads", 5),
    ],
)
def test_configs_that_nothing_can_be_built_from(family: str, key: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        build_tower(family, {key: value})
    assert caught.value.code == "unsupported-tower-config"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [("A1", (56, 28)), ("A1", (7, 7)), ("A2", (28, 28)), ("A3", (56, 42)), ("A6", (42, 42))],
)
def test_pixels_of_another_size(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(InputError) as caught:
        CASES[name].build()(images(1, 3, *size))
    assert caught.value.code == "pixels-do-not-fit-tower"
    assert str(list(size))[1:-1] in caught.value.got


@pytest.mark.parametrize(
    "config",
    [
        *(
            {
                "model_type": "intern_vit_6b",
                "norm_type": norm_type,
                "qk_normalization": qk,
                "qkv_bias": bias,
            }
            for norm_type in ("layer_norm", "rms_norm")
            for qk in (True, False)
            for bias in (True, False)
        ),
        {"model_type": "siglip_vision_model"},
        {"model_type": "siglip_vision_model", "vision_use_head": False},
        {"model_type": "clip_vision_model"},
        {"model_type": "clip", "vision_config": {"model_type": "clip_vision_model"}},
    ],
)
def test_the_table_of_tensors_is_what_is_built(config: dict[str, Any]) -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    if "vision_config" in config:
        config = {**config, "vision_config": {**config["vision_config"], **sizes}}
    else:
        config = {**config, **sizes}
    described = tower_of_config(config)
    assert described is not None
    tower = build_tower(described.family, config)
    built = {tower.checkpoint_name(n): tuple(t.shape) for n, t in tower.state_dict().items()}
    wanted = expected_shapes(config)
    stored = stored_names(wanted)
    assert {stored[name]: shape for name, shape in wanted.items()} == built
