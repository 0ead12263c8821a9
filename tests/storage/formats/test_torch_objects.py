"""Files of torch.save with more than tensors: all that torch admits, and records of the rest."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import io
import pathlib
import pickle
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import _weights_only_unpickler as admitting

from tests.builders import Runs
from tests.sources import read_objects, read_torch
from vita_ckpt.core.checkpoint import TensorRef
from vita_ckpt.core.pickle_globals import is_admitted, judge
from vita_ckpt.core.pickled import Global, Record
from vita_ckpt.errors import InputError, UnsafePickleError

A = torch.arange(6, dtype=torch.float32).reshape(2, 3)
ADMITTED = sorted(admitting._get_allowed_globals())


def saved(path: Path, value: Any, *, zipped: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("name", ADMITTED)
def test_every_global_that_torch_admits_is_taken(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert is_admitted(module, attribute)
    assert judge(module, attribute) != "runs-code"


def test_a_file_that_names_every_global_that_torch_admits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    program = b"\x80\x02}(" + b"".join(
        b"X" + len(name).to_bytes(4, "little") + name.encode() + b"c"
        + name.rpartition(".")[0].encode() + b"\n" + name.rpartition(".")[2].encode() + b"\n"
        for name in ADMITTED
    )  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", program + b"u.")
        file.writestr("x/version", "3\n")
    value = read_objects(path).value
    assert value == {name: Global(name) for name in ADMITTED}
    assert read_objects(path).objects == ()


PLAIN = {
    "set": {1, "two", 3.0},
    "frozen": {"a": (1, (2, (3,)))},
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"\x01\x02"),
    "complex": 1 + 2j,
    "device": torch.device("cuda", 3),
    "dtype": torch.bfloat16,
    "layout": torch.strided,
    "size": torch.Size([2, 3]),
    "counter": collections.Counter("aab"),
    "ordered": collections.OrderedDict([("x", 1)]),
    "numbers": [0, -1, 1 << 40, 0.5, None, True],
    "parameter": torch.nn.Parameter(A),
    "attribute": None,
    "storage": A.clone().untyped_storage(),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_admits_is_read_beside_the_tensors(tmp_path: Path, zipped: bool) -> None:
    noted = A.clone()
    noted.ds_id = 3  # type: ignore[attr-defined]
    # A storage without a type is in no legacy file that torch loads.
    plain = {name: PLAIN[name] for name in PLAIN if zipped or name != "storage"}
    path = saved(tmp_path / "x.pt", {"a": A, **plain, "noted": noted}, zipped=zipped)
    torch.load(path, weights_only=True)
    opened = read_torch(path)
    assert opened.objects == ()
    assert set(opened.tensors) == {"a", "noted", "parameter"}
    value = read_objects(path).value
    for name in ("bytes", "bytearray", "complex", "frozen", "numbers", "size", "ordered"):
        assert value[name] == PLAIN[name]
    assert sorted(map(str, value["set"].items)) == ["1", "3.0", "two"]
    assert value["dtype"] == Global("torch.bfloat16")
    assert value["device"].args == ("cuda", 3)
    assert value["counter"].args == ({"a": 2, "b": 1},)
    assert isinstance(value["a"], TensorRef)
    assert not zipped or value["storage"].nbytes == 24


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Scaler:
    scale: float
    grads: list[torch.Tensor]


class Named(collections.UserDict):  # type: ignore[type-arg]
    """A dict of a class of its own."""


STRANGE: dict[str, tuple[str, Any]] = {
    "namespace": ("argparse.Namespace", argparse.Namespace(lr=0.1)),
    "numpy scalar": ("numpy.dtype", np.float64(0.5)),
    "numpy array": ("numpy.ndarray", np.arange(5)),
    "enum": (f"{__name__}.Colour", Colour.RED),
    "dataclass": (f"{__name__}.Scaler", Scaler(2.0, [A])),
    "path": ("pathlib", pathlib.PurePosixPath("a/b")),
    "date": ("datetime.datetime", datetime.datetime(2024, 1, 1)),
    "default dict": ("collections.defaultdict", collections.defaultdict(list, x=[1])),
    "deque": ("collections.deque", collections.deque([1, 2])),
    "dict subclass": (f"{__name__}.Named", Named(x=1)),
    "simple namespace": ("types.SimpleNamespace", types.SimpleNamespace(x=1)),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", STRANGE)
def test_other_objects_are_records_and_are_named(
    tmp_path: Path, what: str, zipped: bool, protocol: int
) -> None:
    name, value = STRANGE[what]
    path = tmp_path / "x.pt"
    torch.save(
        {"a": A, "it": value},
        path,
        _use_new_zipfile_serialization=zipped,
        pickle_protocol=protocol,
    )
    opened = read_torch(path)
    assert set(opened.tensors) == {"a"}
    assert any(found.startswith(name) for found in opened.objects), opened.objects


def test_a_record_keeps_what_the_object_holds(tmp_path: Path) -> None:
    scaler = Scaler(2.0, [A, A.t()])
    inner = collections.defaultdict(None, {"w": A})
    path = saved(tmp_path / "x.pt", {"scaler": scaler, "inner": inner, "c": Colour.RED})
    value = read_objects(path).value
    record = value["scaler"]
    assert isinstance(record, Record)
    assert record.kind == "Scaler"
    assert record.get("scale") == 2.0
    first, second = record.get("grads")
    assert (first.dtype, first.shape, second.shape) == ("F32", (2, 3), (3, 2))
    assert second.strides == (1, 3)
    assert value["c"].args == ("red",)
    assert value["inner"].items["w"] == first
    assert read_torch(path).key == "inner"


def test_a_value_that_holds_itself(tmp_path: Path) -> None:
    value: dict[str, Any] = {"a": A, "pair": (A, [A])}
    value["self"] = [value, (value,)]
    path = saved(tmp_path / "x.pt", value)
    tree = read_objects(path).value
    assert tree["self"][0] is tree
    assert tree["self"][1][0] is tree
    assert tree["pair"] == (tree["a"], [tree["a"]])
    assert set(read_torch(path).tensors) == {"a"}


def test_nothing_is_imported(tmp_path: Path) -> None:
    module = types.ModuleType("a_trainer_that_is_not_installed")

    class Config:
        pass

    Config.__module__, Config.__qualname__ = module.__name__, "Config"
    module.Config = Config  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        path = saved(tmp_path / "x.pt", {"a": A, "config": Config()})
    finally:
        del sys.modules[module.__name__]
    opened = read_torch(path)
    assert opened.objects == ("a_trainer_that_is_not_installed.Config",)
    assert set(opened.tensors) == {"a"}


@pytest.mark.parametrize("function", [eval, exec, getattr, open, compile, pickle.loads, torch.load])
def test_globals_that_run_code_refuse_the_file(tmp_path: Path, function: Any) -> None:
    path = saved(tmp_path / "x.pt", {"a": A, "b": {"c": [Runs(function, "x")]}})
    with pytest.raises(UnsafePickleError) as error:
        read_torch(path)
    assert function.__name__ in str(error.value)


def real_dtensor() -> torch.Tensor:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    return distribute_tensor(A, init_device_mesh("cpu", (1,)), [Shard(0)])


class DTensor(torch.Tensor):
    """Written as torch writes its own, which is slow to import."""


def dtensor() -> Runs:
    layout, device = torch.strided, torch.device("cpu")
    whole = (DTensor, torch.float32, (4, 3), (3, 1), 0, layout, device, False)
    state = (None, {"_local_tensor": A, "_spec": None})
    rebuild = torch._utils._rebuild_wrapper_subclass
    return Runs(torch._tensor._rebuild_from_type_v2, rebuild, DTensor, whole, state)


def csr() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return A.to_sparse_csr()


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(A, 0.1, 0, torch.qint8)


UNREADABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "real DTensor": (real_dtensor, "full_tensor()"),
    "DTensor": (dtensor, "full_tensor()"),
    "sparse": (A.to_sparse, "to_dense()"),
    "csr": (csr, "to_dense()"),
    "quantised": (quantised, "dequantize()"),
    "meta": (lambda: A.to("meta"), "no data"),
    "complex128": (lambda: A.to(torch.complex128), "dtype"),
    "conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "resolve_conj()"),
}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=pytest.mark.torture) if what == "real DTensor" else what
        for what in UNREADABLE
    ],
)
def test_a_tensor_that_cannot_be_had_says_what_to_do(tmp_path: Path, what: str) -> None:
    make, word = UNREADABLE[what]
    path = tmp_path / "x.pt"
    try:
        saved(path, {"model": {"w": make()}, "optimizer": {"state": {0: {"step": A}}}})
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    with pytest.raises(InputError) as error:
        read_torch(path)
    assert error.value.code == "unreadable-tensor"
    assert "x.pt: w" in str(error.value)
    assert word in str(error.value)
    # What is beside it can be had by its key, and everything as records.
    assert set(read_torch(path, "optimizer.state.0").tensors) == {"step"}
    assert isinstance(read_objects(path).value["model"]["w"], Record)


class Subclass(torch.Tensor):
    """A tensor with a class of its own."""


def test_a_subclass_with_a_storage_is_the_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"w": A.as_subclass(Subclass)})
    opened = read_torch(path)
    assert opened.tensors["w"].shape == (2, 3)
    assert opened.objects == (f"{__name__}.Subclass",)


W, V = {"a": A, "b": A}, {"a": A.clone(), "b": A.clone()}
CHOICES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "nested": ({"x": {"y": [{"z": W}]}}, "x.y.0.z", ()),
    "any key": ({"my_net": W, "epoch": 3}, "my_net", ()),
    "model before ema": ({"ema": V, "model": W}, "model", ("ema",)),
    "before a larger average": ({"swa_model": {**V, "n": A}, "net": W}, "net", ("swa_model",)),
    "optimiser": ({"optimizer": {"state": {0: {**V, "c": A}}}, "m": {"a": A}}, "m", ()),
    "a tensor beside it": ({"rng": A, "state_dict": W}, "state_dict", (".",)),
    "the largest": ({"small": {"a": A}, "large": W}, "large", ("small",)),
    "a list": ([{"a": A}, W], "1", ("0",)),
    "a tuple": (("x", W), "1", ()),
    "top": (W, ".", ()),
    "lightning": ({"state_dict": W, "hyper_parameters": argparse.Namespace(x=1)}, "state_dict", ()),
    "only an average": ({"ema": W}, "ema", ()),
    "only an optimiser": ({"optimizer": W}, "optimizer", ()),
}  # fmt: skip


@pytest.mark.parametrize("what", CHOICES)
def test_which_state_dict_is_read(tmp_path: Path, what: str) -> None:
    value, key, others = CHOICES[what]
    opened = read_torch(saved(tmp_path / "x.pt", value))
    assert (opened.key, opened.others) == (key, others)
    for other in (key, *others):
        assert read_torch(tmp_path / "x.pt", other).tensors


def test_a_key_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"model": W, "ema": V})
    with pytest.raises(InputError, match=r"key-not-found.*x\.pt: modle: expected model, ema"):
        read_torch(path, "modle")


def deque_of(items: list[Any]) -> Any:
    """A function that makes something of a storage, and that nobody knows."""
    return collections.deque(items)


def test_no_file_with_tensors_is_called_one_without(tmp_path: Path) -> None:
    for value, word in (
        (A, "a lone tensor"),
        ([A, A.clone()], "list with 2 tensors, none by its name"),
        ({"scaler": Scaler(1.0, [A])}, "dict with 1 tensor, none by its name"),
        (Scaler(1.0, [A]), "an object of .*Scaler with 1 tensor"),
        ({"w": Runs(deque_of, [A.clone().untyped_storage()])}, "dict with 1 tensor"),
        (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    ):
        path = saved(tmp_path / "x.pt", value)
        with pytest.raises(InputError, match=f"not-a-state-dict.*{word}"):
            read_torch(path)
    assert read_torch(saved(tmp_path / "x.pt", {"epoch": 3, "of": {}})).tensors == {}


def test_training_state_of_deepspeed_and_of_dcp(tmp_path: Path) -> None:
    """Objects without a class here, written as those libraries write them."""
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))
    described = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([4]), [chunk])
    metadata = Metadata({"w": described}, storage_data={MetadataIndex("w", [0]): ("f", 0, 8)})
    path = tmp_path / "x.pt"
    torch.save({"meta": metadata, "a": A}, path, pickle_protocol=4)
    record = read_objects(path).value["meta"]
    assert record.kind == "Metadata"
    storage = record.get("state_dict_metadata")["w"]
    assert storage.kind == "TensorStorageMetadata"
    assert storage.get("size") == (4,)
    assert storage.get("chunks")[0].get("sizes") == (4,)
    ((index, place),) = record.get("storage_data").items()
    assert (index.get("fqn"), place) == ("w", ("f", 0, 8))


def test_deep_and_wide_values_are_bounded(tmp_path: Path) -> None:
    deep: Any = A
    for _ in range(900):
        deep = {"k": deep}
    buffer = io.BytesIO()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save({"a": A, "deep": deep}, buffer)
    finally:
        sys.setrecursionlimit(limit)
    path = tmp_path / "x.pt"
    path.write_bytes(buffer.getvalue())
    assert set(read_torch(path).tensors) == {"a"}
    assert read_objects(path).value["deep"]["k"]["k"]
