"""Images become the pixels that the library's own processors make; hostile ones are refused."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from PIL import __version__ as PILLOW
from safetensors.torch import load_file

from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_tower
from tests.conftest import GOLDEN, golden_cases
from vita_ckpt import InputError, UsageError, open_checkpoint
from vita_ckpt.model.image import Processor, prepare_image, processor_of, read_image

CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"resample": 2, "do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_resize": False, "crop_size": {"height": 6, "width": 7}},
    {"rescale_factor": 0.0039, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 0.3]},
    {"do_center_crop": False, "size": {"height": 31, "width": 50}},
    {"resample": None, "image_mean": None},
)
SHAPES = ((100, 60), (37, 91), (64, 64), (301, 225), (8, 8))


def noise(width: int, height: int) -> Image.Image:
    torch.manual_seed(width)
    data = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return Image.frombytes("RGB", (width, height), bytes(data.flatten().tolist()))


def library(family: str) -> Any:
    """The library's own processor that needs no torchvision: it was renamed."""
    name = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[family]
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("number", range(len(CONFIGS)))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_librarys_processors_bit_for_bit(
    family: str, number: int, shape: tuple[int, int]
) -> None:
    config = CONFIGS[number]
    image = noise(*shape)
    given = {key: value for key, value in config.items() if value is not None}
    expected = library(family)(**given)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Processor.of(family, config).pixels(image), expected.float())


def test_sizes_as_old_configs_write_them() -> None:
    """InternViT's own config has numbers where newer ones have objects."""
    config = {"size": 20, "crop_size": 16, "image_processor_type": "CLIPFeatureExtractor"}
    processor = Processor.of("internvit", config)
    assert (processor.resize, processor.crop) == (20, (16, 16))
    assert Processor.of("siglip", {"size": 20, "do_center_crop": True}).crop is None


def test_pad_is_a_square_of_the_mean_colour() -> None:
    config = {"size": {"height": 6, "width": 6}, "do_normalize": False, "do_rescale": False}
    mean = {"image_mean": [0.25, 0.5, 1.0]}
    processor = Processor.of("siglip", {**config, **mean}, pad=True)
    for size, rows in (((6, 3), True), ((3, 6), False)):
        image = noise(*size)
        pixels = processor.pixels(image)
        assert pixels.shape == (3, 6, 6)
        pixels = pixels if rows else pixels.transpose(1, 2)
        inner = Processor.of("siglip", {**config, "do_resize": False}).pixels(image)
        inner = inner if rows else inner.transpose(1, 2)
        assert torch.equal(pixels[:, 1:4], inner)  # (6 - 3) // 2 before, the rest behind
        colour = torch.tensor([63.0, 127.0, 255.0])[:, None, None]
        assert torch.equal(pixels[:, [0, 4, 5]], colour.expand(3, 3, 6))
    square = noise(6, 6)
    assert torch.equal(
        processor.pixels(square), Processor.of("siglip", {**config, **mean}).pixels(square)
    )


@pytest.mark.parametrize(
    "config",
    [
        {"size": "224"},
        {"size": {"longest_edge": 224}},
        {"size": {"height": 0, "width": 5}},
        {"crop_size": {"height": True, "width": 5}},
        {"resample": 9},
        {"resample": True},
        {"do_resize": 1},
        {"image_mean": [0.5]},
        {"image_mean": 0.5},
        {"image_std": [0.5, 0, 0.5]},
        {"image_std": [0.5, float("nan"), 0.5]},
        {"rescale_factor": "1/255"},
    ],
)
def test_configs_that_mean_nothing(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"unsupported-processor-config.*{next(iter(config))}"):
        Processor.of("clip", config)


def write_config(directory: Path, side: int) -> None:
    config = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (directory / "preprocessor_config.json").write_text(json.dumps(config))


def test_where_the_processor_is_found(tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "tower-internvit", TowerSpec())
    (tower / "preprocessor_config.json").unlink()
    root = write_checkpoint(tmp_path / "c", Spec(config={"image_aspect_ratio": "pad"}))
    with pytest.raises(InputError, match=r"processor-config-unknown.*--tower"):
        processor_of(open_checkpoint(root))
    write_config(tower, 11)
    assert processor_of(open_checkpoint(root)).resize == 11
    assert processor_of(open_checkpoint(root)).pad
    write_config(root, 12)
    assert processor_of(open_checkpoint(root)).resize == 11  # where loaders look
    (tower / "preprocessor_config.json").rename(tmp_path / "preprocessor_config.json")
    assert processor_of(open_checkpoint(root)).resize == 12
    put = {"preprocessor_config.json": '{"size": 14}'}  # of a plan's target
    assert processor_of(replace(open_checkpoint(root), texts=put)).resize == 14
    given = shutil.copytree(tower, tmp_path / "given")
    write_config(given, 13)
    assert processor_of(open_checkpoint(root), given).resize == 13


def test_eva_and_s2() -> None:
    eva = processor_of(open_checkpoint(GOLDEN / "A6" / "base"))
    assert eva == Processor.of("clip", {"size": 56, "crop_size": 56})
    s2 = processor_of(open_checkpoint(GOLDEN / "A5" / "base"))
    assert s2.resize == (84, 84)  # the largest scale
    assert not s2.pad


def test_a_checkpoint_without_a_tower(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    root = write_checkpoint(tmp_path / "c", Spec(config={"mm_vision_tower": None}))
    tensors = load_file(root / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "vision_tower" not in n and "mm_proj" not in n}
    save_file(kept, root / "model.safetensors")
    with pytest.raises(UsageError, match="no-vision-modules"):
        processor_of(open_checkpoint(root))


@pytest.mark.parametrize("format_", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_damaged_files_are_said(tmp_path: Path, format_: str) -> None:
    """Cut off and flipped everywhere: an image or the error that names the file."""
    file = tmp_path / "image"
    noise(9, 7).save(file, format=format_)
    whole = file.read_bytes()
    assert read_image(file).size == (9, 7)
    assert read_image(file).mode == "RGB"
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        for data in (whole[:place], bytes(flipped)):
            file.write_bytes(data)
            try:
                read_image(file)
            except InputError as error:
                refused += 1
                assert error.code in ("unreadable-image", "image-too-large")
    assert refused > 10


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    format_ = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    Image.new(mode, (5, 4)).save(tmp_path / "image", format=format_)
    image = read_image(tmp_path / "image")
    assert (image.mode, image.size) == ("RGB", (5, 4))


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims a size."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data)
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def test_bombs(tmp_path: Path) -> None:
    """A claim of many pixels, and images that only padding or resizing makes large."""
    (tmp_path / "bomb.png").write_bytes(png(1 << 20, 1 << 20))
    with pytest.raises(InputError, match="image-too-large"):
        read_image(tmp_path / "bomb.png")
    long = Image.new("RGB", (20000, 1))
    large = {"size": {"height": 20000, "width": 20000}}
    for processor in (
        Processor.of("siglip", {}, pad=True),
        Processor.of("clip", {}),
        Processor.of("siglip", large),
        Processor.of("clip", {"do_resize": False, "crop_size": 20000}),
    ):
        with pytest.raises(InputError, match="image-too-large"):
            processor.pixels(long)


def test_what_is_no_image(tmp_path: Path) -> None:
    script = tmp_path / "script.eps"  # PIL would start a program to read it
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    text = tmp_path / "text.png"
    text.write_text("no image")
    for file in (script, text):
        with pytest.raises(InputError, match="unreadable-image"):
            read_image(file)
    with pytest.raises(InputError, match="unreadable-file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="not-a-regular-file"):
        read_image(tmp_path)


# A level of grey, as CLIP's and SigLIP's processors spread them: older versions of Pillow round
# some pixels otherwise when they resize.
LEVEL = 0.016
IS_NEW = int(PILLOW.split(".")[0]) >= 11


@pytest.mark.parametrize("case", golden_cases("F3", "F13"), ids=lambda case: case.name)
def test_tiles_are_upstreams_bit_for_bit(case: Path, tmp_path: Path) -> None:
    inputs = load_file(case / "inputs.safetensors")
    counts = inputs["tiles_per_image"].tolist()
    tower = case / (case / "tower").read_text().strip()
    pictures = [name for name in inputs if name.startswith("image_") and name != "image_sizes"]
    assert pictures
    for name in pictures:
        number = int(name.removeprefix("image_"))
        file = tmp_path / f"{name}.png"
        Image.fromarray(inputs[name].numpy()).save(file)
        found = prepare_image(open_checkpoint(case / "base"), file, tower)
        expected = torch.split(inputs["pixel_values"], counts)[number]
        assert list(found.size or ()) == inputs["image_sizes"][number].tolist()
        assert found.pixels.shape == expected.shape
        assert (found.pixels - expected).abs().max() <= (0 if IS_NEW else LEVEL)
        assert found.options == {"tiles_per_image": [counts[number]], "image_sizes": [found.size]}


def next_checkpoint(root: Path, tower: str, **config: Any) -> Path:
    """A checkpoint of LLaVA-NeXT, as far as it decides how images are prepared."""
    checkpoint = write_checkpoint(root / "c", Spec(tower=TowerSpec(tower, image_size=28)))
    file = checkpoint / "config.json"
    own = {
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_select_layer": -2,
        "delay_load": False,
        "mm_vision_tower": f"tower-{tower}",
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | own | config))
    write_tower(root / f"tower-{tower}", TowerSpec(tower, image_size=28))
    return checkpoint


def test_a_way_of_cutting_that_is_not_known(tmp_path: Path) -> None:
    root = next_checkpoint(tmp_path, "clip", image_aspect_ratio="crop_split")
    file = tmp_path / "image.png"
    noise(30, 20).save(file)
    with pytest.raises(InputError, match=r"unsupported-image-aspect-ratio.*crop_split"):
        prepare_image(open_checkpoint(root), file)


def test_siglip_of_next_is_prepared_by_constants(tmp_path: Path) -> None:
    """Its class never looks at what lies in the tower's directory."""
    (case,) = golden_cases("F13")
    tower = tmp_path / "tower-siglip"
    shutil.copytree(case / "tower-siglip", tower)
    other = {"image_mean": [0.1, 0.2, 0.3], "resample": 0, "size": {"height": 14, "width": 14}}
    (tower / "preprocessor_config.json").write_text(json.dumps(other))
    found = processor_of(open_checkpoint(case / "base"), tower)
    assert found == Processor.of("siglip", {"size": {"height": 28, "width": 28}})
