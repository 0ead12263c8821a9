"""Changes by layer and module."""

from __future__ import annotations

from vita_ckpt.checks.change_map import OTHERS, Cell, change_maps
from vita_ckpt.checks.diff import TensorDifference
from vita_ckpt.core.checkpoint import LocalFile, TensorRef
from vita_ckpt.core.distance import Distance

FILE = LocalFile("x", 1 << 20, 0, "")


def changed(name: str, relative: float | None = 0.1, shape: int = 4) -> TensorDifference:
    """A tensor whose values are ``relative`` apart, or have not been compared."""
    distance = None
    if relative is not None:
        distance = Distance(4, 4, max_abs=1.0, delta=relative**2 * 4, before=4.0, after=4.0)
    return TensorDifference(
        name, TensorRef(FILE, 0, "F32", (4,)), TensorRef(FILE, 0, "F32", (shape,)), distance
    )


def relative(cell: Cell) -> float | None:
    return None if cell.distance is None else cell.distance.relative_l2


def test_weight_and_bias_and_all_experts_are_one_place() -> None:
    names = (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.block_sparse_moe.experts.0.w1.weight",
        "model.layers.1.block_sparse_moe.experts.7.w1.weight",
        "model.layers.3.input_layernorm.weight",
        "model.norm.weight",
    )
    (found,) = change_maps([changed(name) for name in names])
    assert found.stack == "model.layers"
    assert found.rows == ("0", "1", "2", "3")
    assert found.columns == ("block_sparse_moe.experts.*.w1", "self_attn.q_proj", "input_layernorm")
    assert {place: cell.changed for place, cell in found.cells.items()} == {
        ("1", "self_attn.q_proj"): 2,
        ("1", "block_sparse_moe.experts.*.w1"): 2,
        ("3", "input_layernorm"): 1,
    }
    assert found.nbytes == 5 * 16


def test_distances_of_a_place_add_up() -> None:
    tensors = [changed("m.layers.0.q.weight", 0.3), changed("m.layers.0.q.bias", 0.1)]
    (found,) = change_maps(tensors)
    apart = relative(found.cells["0", "q"])
    assert apart is not None
    assert abs(apart - ((0.09 + 0.01) / 2) ** 0.5) < 1e-12
    (plain,) = change_maps([changed("m.layers.0.q.weight", None)])
    assert relative(plain.cells["0", "q"]) is None
    assert plain.cells["0", "q"] == Cell(changed=1)
    (other,) = change_maps([changed("m.layers.0.q.weight", None, shape=5)])
    assert other.cells["0", "q"] == Cell(changed=1, unlike=1)


def test_the_number_of_a_layer_is_the_one_behind_its_word() -> None:
    found = change_maps(
        changed(name)
        for name in (
            "model.audio_encoder.enc.1.encoders.23.feed_forward.w_1.weight",
            "model.mm_projector.2.weight",
            "v.blocks.4.attn.qkv.weight",
            "model.layers.99999999999.x.weight",  # no number of a layer
        )
    )
    assert {one.stack for one in found} == {
        "model.audio_encoder.enc.1.encoders",
        "model.mm_projector",
        "v.blocks",
    }


def test_added_and_removed_are_counted() -> None:
    ref = TensorRef(FILE, 0, "F32", (4,))
    tensors = [
        TensorDifference("m.layers.0.a.weight", None, ref),
        TensorDifference("m.layers.0.a.bias", ref, None),
    ]
    (found,) = change_maps(tensors)
    assert found.cells["0", "a"] == Cell(added=1, removed=1)


def test_a_map_is_small_however_many_layers_and_modules_there_are() -> None:
    (deep,) = change_maps(changed(f"m.layers.{n}.q.weight") for n in range(10_000))
    assert len(deep.rows) <= 96
    assert deep.rows[0] == "0–104"
    assert sum(cell.changed for cell in deep.cells.values()) == 10_000
    (wide,) = change_maps(changed(f"m.layers.0.q{n}.weight") for n in range(10_000))
    assert len(wide.columns) == 32
    assert wide.columns[-1] == OTHERS
    assert wide.cells["0", OTHERS].changed == 10_000 - 31
    # Numbers far apart make no rows between them.
    (far,) = change_maps(changed(f"m.layers.{n}.q.weight") for n in (0, 999_999_999))
    assert far.rows == ("0", "999999999")
