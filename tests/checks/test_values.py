"""Values of pieces of tensors are what torch says of the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.checks.values import Tally, Values, check_tensor, values_of
from vita_ckpt.core.checkpoint import LocalFile, Shape, TensorRef

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "C64": torch.complex64,
}
# Zero, subnormals, one, two and its neighbour, around 65504, the largest, infinity, NaN payloads.
PATTERNS = {
    "F64": [
        *(0x0, 0x1, 0x000F_FFFF_FFFF_FFFF, 0x3FF0 << 48, 0x3FFF_FFFF_FFFF_FFFF, 0x4000 << 48),
        *(0x40EF_FC00_0000_0000, 0x40EF_FC00_0000_0001, 0x40EF_FC20_0000_0000),
        *(0x7FEF_FFFF_FFFF_FFFF, 0x7FF0 << 48, 0x7FF0_0000_0000_0001, 0x7FFF_FFFF_FFFF_FFFF),
    ],
    "F32": [
        *(0x0, 0x1, 0x007F_FFFF, 0x3F80_0000, 0x3FFF_FFFF, 0x4000_0000, 0x477F_E000),
        *(0x477F_E001, 0x477F_E100, 0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0x7FFF_FFFF),
    ],
    "BF16": [0x0, 0x1, 0x7F, 0x3F80, 0x3FFF, 0x4000, 0x477F, 0x4780, 0x7F7F, 0x7F80, 0x7F81],
    "F16": [0x0, 0x1, 0x3FF, 0x3C00, 0x3FFF, 0x4000, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF],
    "F8_E5M2": [0x0, 0x1, 0x3C, 0x3F, 0x40, 0x7B, 0x7C, 0x7D, 0x7E, 0x7F],
    "F8_E4M3": [0x0, 0x1, 0x38, 0x3F, 0x40, 0x7E, 0x7F],
}
NAN, INF = float("nan"), float("inf")
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E5M2": 1, "F8_E4M3": 1}


def ref(dtype: str, shape: Shape, strides: Shape | None = None) -> TensorRef:
    return TensorRef(LocalFile("/w/model.safetensors", 0, 0), 0, dtype, shape, strides)


def of(values: list[float], dtype: str = "BF16") -> memoryview:
    """The bytes of numbers."""
    return memoryview(bytes(torch.tensor(values, dtype=TORCH[dtype]).view(torch.uint8).numpy()))


def elements(dtype: str) -> st.SearchStrategy[bytes]:
    """The bytes of one element: often a small number, sometimes an edge."""
    if dtype == "C64":
        return st.tuples(elements("F32"), elements("F32")).map(b"".join)
    width = WIDTHS[dtype]
    edges = st.sampled_from(PATTERNS[dtype])
    usual = st.sampled_from(PATTERNS[dtype][:4])
    signs = st.sampled_from([0, 1 << 8 * width - 1])
    return st.tuples(st.one_of(usual, usual, edges), signs).map(
        lambda parts: (parts[0] | parts[1]).to_bytes(width, "little")
    )


def expected(values: torch.Tensor) -> tuple[int, int, int, bool, bool]:
    """NaN, infinite and large elements, all zero, all the same bits, by torch."""
    flat = torch.empty(values.numel(), dtype=values.dtype).copy_(values.reshape(-1))
    width = flat.element_size()
    rows = flat.view(torch.uint8).reshape(-1, width)
    wide = torch.view_as_real(flat) if flat.is_complex() else flat.double()[:, None]
    return (
        int(wide.isnan().any(1).sum()),
        int(wide.isinf().any(1).sum()),
        int(((wide.abs() > 65504) & wide.isfinite()).any(1).sum()),
        bool((wide == 0).all()),
        bool((rows == rows[0]).all()),
    )


def found(values: Values) -> tuple[int, int, int, bool, bool]:
    return (
        values.nan.count,
        values.infinite.count,
        values.large.count,
        values.zero,
        values.constant is not None,
    )


def cut(tensor: TensorRef, data: bytes, width: int, cuts: list[int], odd: int) -> Iterator[Values]:
    """The values of pieces, each at an odd place in memory."""
    edges = sorted({0, len(data) // width, *(c for c in cuts if c <= len(data) // width)})
    for start, end in pairwise(edges):
        shifted = b"\0" * odd + data[start * width : end * width]
        yield values_of(tensor, memoryview(shifted)[odd:], start)


@pytest.mark.parametrize("dtype", TORCH)
@given(draw=st.data())
def test_pieces_of_any_size_in_any_order_are_what_torch_says(
    dtype: str, draw: st.DataObject
) -> None:
    drawn = draw.draw(st.lists(elements(dtype), min_size=1, max_size=40))
    if draw.draw(st.booleans()):
        drawn = drawn[:1] * len(drawn)
    data = b"".join(drawn)
    tensor = ref(dtype, (len(drawn),))
    cuts = draw.draw(st.lists(st.integers(0, 40), max_size=4))
    pieces = list(cut(tensor, data, len(drawn[0]), cuts, draw.draw(st.integers(0, 3))))
    Random(draw.draw(st.integers(0, 9))).shuffle(pieces)
    whole = sum(pieces, Values())
    values = torch.frombuffer(bytearray(data), dtype=TORCH[dtype])
    assert whole.count == len(drawn)
    assert found(whole) == expected(values)
    lanes = torch.view_as_real(values) if dtype == "C64" else values.double()[:, None]
    if whole.nan.count:
        assert whole.nan.position == int(lanes.isnan().any(1).nonzero()[0])
    if whole.infinite.count:
        assert whole.infinite.position == int(lanes.isinf().any(1).nonzero()[0])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E5M2", "F8_E4M3"])
def test_every_pattern_is_what_torch_says(dtype: str) -> None:
    width = WIDTHS[dtype]
    data = b"".join(n.to_bytes(width, "little") for n in range(1 << 8 * width))
    values = torch.frombuffer(bytearray(data), dtype=TORCH[dtype])
    whole = values_of(ref(dtype, (len(values),)), memoryview(data), 0)
    assert found(whole) == expected(values)
    # Each alone: which of them is which, not only how many.
    single = ref(dtype, (1,))
    wide = values.double()
    kinds = torch.stack([wide.isnan(), wide.isinf(), (wide.abs() > 65504) & wide.isfinite()]).T
    step = 1 if width == 1 else 7
    for n in range(0, len(values), step):
        one = values_of(single, memoryview(data)[n * width : (n + 1) * width], 0)
        assert list(found(one)[:3]) == kinds[n].tolist(), hex(n)
        assert one.zero == (wide[n] == 0)


@pytest.mark.parametrize(
    ("dtype", "value", "large"),
    [
        ("F32", 65504.0, False),
        ("F32", -65504.0, False),
        ("F32", 65505.0, True),
        ("F32", -65505.0, True),
        ("F64", 65504.0, False),
        ("F64", 65504.000001, True),
        ("BF16", 65280.0, False),
        ("BF16", -65536.0, True),
        ("F16", 65504.0, False),
    ],
)
def test_what_float16_holds(dtype: str, value: float, large: bool) -> None:
    values = values_of(ref(dtype, (3,)), of([1.0, value, 0.5], dtype), 0)
    assert (values.large.count, values.large.position) == ((1, 1) if large else (0, 0))
    assert not values.nan.count
    assert not values.infinite.count


@pytest.mark.parametrize("dtype", ["I64", "I32", "U8", "BOOL", "F8_E8M0", "F4"])
def test_other_dtypes_are_not_judged(dtype: str) -> None:
    for data in (b"\0" * 16, b"\xff" * 16):
        assert values_of(ref(dtype, (4, 4)), memoryview(data), 0) == Values()
    assert list(check_tensor("a", ref(dtype, (4, 4)), Values())) == []


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    order=st.permutations(range(3)),
    steps=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    repeats=st.sampled_from([1, 1, 3]),
    fill=st.lists(st.sampled_from([1.0, 0.0, float("nan"), 1e9]), min_size=1, max_size=125),
    cuts=st.lists(st.integers(0, 125), max_size=4),
)
def test_of_a_view_only_its_own_elements_count(
    shape: list[int],
    order: list[int],
    steps: list[int],
    repeats: int,
    fill: list[float],
    cuts: list[int],
) -> None:
    whole = torch.tensor(fill).repeat(125)[: torch.Size(shape).numel()].reshape(shape)
    view = whole[tuple(slice(None, None, step) for step in steps[: len(shape)])]
    view = view.permute([axis for axis in order if axis < len(shape)])
    view = view[None].expand(repeats, *view.shape)
    tensor = ref("F32", tuple(view.shape), tuple(view.stride()))
    data = bytes(whole.reshape(-1).view(torch.uint8).numpy())[: tensor.span]
    values = sum(cut(tensor, data, 4, cuts, 0), Values())
    nan, _, large, zero, constant = expected(view)
    assert values.nan.count * repeats == nan
    assert values.large.count * repeats == large
    assert (values.zero, values.constant is not None) == (zero, constant)
    for finding in check_tensor("a", tensor, values):
        if finding.rule == "value-nan":
            assert f"in {nan} of {view.numel()} elements" in finding.message
            index = json.loads(finding.message.rpartition(" at ")[2])
            assert view[tuple(index)].isnan()


def test_a_view_that_repeats_without_end_is_its_few_bytes() -> None:
    tensor = ref("F32", (1 << 40, 2), (0, 1))
    values = values_of(tensor, of([1, INF], "F32"), 0)
    assert (values.count, values.infinite.count) == (2, 1)
    (finding,) = check_tensor("a", tensor, values)
    assert f"in {1 << 40} of {1 << 41} elements, the first at [0, 1]" in finding.message


def test_windows_that_overlap_are_what_they_span() -> None:
    values = values_of(ref("F32", (3, 2), (1, 1)), of([1, 2, NAN, 4], "F32"), 0)
    assert (values.count, values.nan) == (4, Tally(1, 2, 0x7FC00000))


@pytest.mark.parametrize(
    ("values", "rule", "severity", "message"),
    [
        (
            [1, 2, 3, NAN, NAN, 6],
            "value-nan",
            "error",
            "expected numbers, got NaN in 2 of 6 elements, the first at [1, 0]",
        ),
        (
            [1, 2, 3, 4, -INF, 6],
            "value-inf",
            "error",
            "expected finite values, got infinity in 1 of 6 elements, the first at [1, 1]",
        ),
        (
            [1, 2, -70144, 4, 5, 1e9],
            "value-float16-overflow",
            "warning",
            "expected |x| ≤ 65504, got 70144 in 2 of 6 elements, the first at [0, 2]",
        ),
        (
            [0.0, -0.0, 0, 0, 0, 0],
            "value-all-zero",
            "error",
            "expected trained values, got zero in all 6 elements",
        ),
        (
            [-0.5] * 6,
            "value-constant",
            "warning",
            "expected trained values, got -0.5 in all 6 elements",
        ),
    ],
)
def test_findings_say_how_many_and_where(
    values: list[float], rule: str, severity: str, message: str
) -> None:
    tensor = ref("BF16", (2, 3))
    (finding,) = check_tensor("a.weight", tensor, values_of(tensor, of(values), 0))
    assert (finding.rule, finding.severity, finding.message) == (rule, severity, message)
    assert (finding.subject, finding.file) == ("a.weight", "/w/model.safetensors")


def test_one_tensor_may_be_wrong_in_several_ways() -> None:
    tensor = ref("F32", (5,))
    values = values_of(tensor, of([1, NAN, INF, 1e9, 65504], "F32"), 0)
    rules = [finding.rule for finding in check_tensor("a", tensor, values)]
    assert rules == ["value-nan", "value-inf", "value-float16-overflow"]


@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_no_number_everywhere_is_said_once(value: float) -> None:
    tensor = ref("F32", (2, 2))
    values = values_of(tensor, of([value] * 4, "F32"), 0)
    assert len(list(check_tensor("a", tensor, values))) == 1


@pytest.mark.parametrize("shape", [(), (6,), (1, 1), (0, 4)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_biases_norms_and_scalars_may_be_zero_or_constant(shape: Shape, value: float) -> None:
    tensor = ref("BF16", shape)
    number = torch.Size(shape).numel()
    values = values_of(tensor, of([value] * number), 0)
    assert list(check_tensor("a.bias", tensor, values)) == []


def test_an_untrained_lora_is_a_warning_of_its_own() -> None:
    tensor = ref("BF16", (4, 1))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    (finding,) = check_tensor(name, tensor, values_of(tensor, of([0.0] * 4), 0))
    assert (finding.rule, finding.severity) == ("lora-untrained", "warning")


@pytest.mark.parametrize(
    ("dtype", "data", "number"),
    [
        ("F64", b"\0\0\0\0\0\0\xf8\x3f", "1.5"),
        ("F32", b"\0\0\xc0\xbf", "-1.5"),
        ("BF16", b"\xc0\x3f", "1.5"),
        ("F16", b"\0\x3e", "1.5"),
        ("F8_E5M2", b"\x3e", "1.5"),
        ("F8_E4M3", b"\x3c", "the bits 0x3c"),
    ],
)
def test_a_constant_is_shown(dtype: str, data: bytes, number: str) -> None:
    tensor = ref(dtype, (2, 2))
    (finding,) = check_tensor("a", tensor, values_of(tensor, memoryview(data * 4), 0))
    assert finding.message == f"expected trained values, got {number} in all 4 elements"
