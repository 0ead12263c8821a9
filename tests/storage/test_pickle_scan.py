"""Pickles of every kind looked through: what they name is found, and nothing of them runs."""

from __future__ import annotations

import argparse
import bz2
import collections
import gzip
import io
import lzma
import os
import pickle
import random
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fuzz import canary
from vita_ckpt.core.effort import Effort
from vita_ckpt.core.filenames import is_no_weight_file, may_be_pickle
from vita_ckpt.core.pickle_globals import judge
from vita_ckpt.storage.formats import pickle_scan
from vita_ckpt.storage.formats.pickle_scan import Scan, scan_pickles
from vita_ckpt.storage.reading.pickles import is_pickle
from vita_ckpt.storage.stores.local import LOCAL


def scan(path: Path, data: bytes) -> Scan:
    path.write_bytes(data)
    with LOCAL.open(str(path)) as source, canary.registered():
        found = scan_pickles(source)
    assert not canary.SPRUNG
    return found


class Runs:
    """A pickle that calls something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


EVIL = {"a": [1, "text"], "b": Runs(os.system, "true")}


def saved(value: Any, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def array(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def arrays(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.ones(3), b=np.array([value], dtype=object))
    return buffer.getvalue()


def zipped_as(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, data)
    return buffer.getvalue()


def zipped(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("inner.pkl", data)
    return buffer.getvalue()


PACKED: dict[str, Callable[[Any], bytes]] = {
    **{f"protocol {n}": partial(pickle.dumps, protocol=n) for n in range(6)},
    "torch zip": lambda value: saved(value, True),
    "torch legacy": lambda value: saved(value, False),
    "npy": array,
    "npz": arrays,
    "zlib": lambda value: zlib.compress(pickle.dumps(value)),
    "gzip": lambda value: gzip.compress(pickle.dumps(value)),
    "bz2": lambda value: bz2.compress(pickle.dumps(value)),
    "xz": lambda value: lzma.compress(pickle.dumps(value)),
    "lzma": lambda value: lzma.compress(pickle.dumps(value), lzma.FORMAT_ALONE),
    "second": lambda value: pickle.dumps(1) + pickle.dumps(value),
    "zip in zip": lambda value: zipped(zipped(pickle.dumps(value))),
    "torch in zip": lambda value: zipped(saved(value, True)),
    "in bytes": lambda value: pickle.dumps({"x": pickle.dumps(value, 4)}),
    "in text": lambda value: pickle.dumps({"x": pickle.dumps(value, 2)}, 2),
}


@pytest.mark.parametrize("kind", PACKED)
def test_what_runs_code_is_found_however_it_is_packed(tmp_path: Path, kind: str) -> None:
    found = scan(tmp_path / "x.pkl", PACKED[kind](EVIL))
    assert ("posix", "system") in found.globals
    assert not found.failure


@pytest.mark.parametrize("kind", PACKED)
def test_values_are_plain_however_they_are_packed(tmp_path: Path, kind: str) -> None:
    values = {"a": [1, 2.5, None, True], "b": (b"bytes", "text"), "c": collections.OrderedDict(x=1)}
    found = scan(tmp_path / "x.pkl", PACKED[kind](values))
    assert not found.failure
    assert not found.computed
    assert {judge(*name) for name in found.globals} <= {"plain"}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (b"cos\nsystem\n.", "os.system"),
        (b"(S'ls'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        # The texts come from the memo, from doubles, from behind marks and things thrown away.
        (b"\x80\x04\x8c\x06system\x940\x8c\x02os\x94h\x00\x93.", "os.system"),
        (b"\x80\x04\x8c\x02os(K\x01K\x021\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x02os]K\x01a0\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system2\x940h\x00\x93.", "system.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x12serialization.os.f\x93.", "torch.serialization.os.f"),
        (b"\x80\x04U\x02osU\x06system\x93.", "os.system"),
        (b"\x80\x04Vos\nVsystem\n\x93.", "os.system"),
    ],
)
def test_globals_by_every_opcode(tmp_path: Path, program: bytes, expected: str) -> None:
    found = scan(tmp_path / "x.pkl", program)
    names = {f"{module}.{name}" for module, name in found.globals}
    assert expected in names or found.failure
    assert found.globals


@pytest.mark.parametrize(
    "program", [b"\x80\x02\x82\xc8.", b"\x80\x04cmy\nf\n)R\x8c\x06system\x93."]
)
def test_names_that_are_computed_are_said(tmp_path: Path, program: bytes) -> None:
    assert scan(tmp_path / "x.pkl", program).computed


def test_what_cannot_be_looked_through_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    sound = pickle.dumps(EVIL)
    for data in (
        *(sound[:-1], b"\xff\xfe", sound + b"junk", b"\x80\x04\x8e" + b"\xff" * 8),
        *(zlib.compress(sound)[:-6], gzip.compress(sound)[:-9], lzma.compress(sound)[:20]),
        *(b"\x04\x22\x4d\x18" + bytes(20), saved(EVIL, True)[:-50], b"\x80\x02" + b"h\x00" * 9),
        b"PK\x03\x04" + bytes(100),
    ):
        assert scan(path, data).failure


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pkl"
    monkeypatch.setattr(pickle_scan, "_MOST_OPCODES", 1 << 14)
    bomb = b"\x80\x04" + b"N0" * (1 << 20)
    for data in (zlib.compress(bomb), zipped(bomb)):
        assert "more than is looked through" in scan(path, data).failure
    wide = b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little")
    assert "more than is looked through" in scan(path, gzip.compress(wide + bytes(1 << 20))).failure


def evil_array(header: bytes, version: int = 1) -> bytes:
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + size + header + pickle.dumps(EVIL)


def disagreeing_zip() -> bytes:
    """Two directories of records: zipfile takes the one at the end, torch what the end names."""
    evil, harmless = (zipped_as("archive/data.pkl", pickle.dumps(v)) for v in (EVIL, None))
    return evil[:-22] + harmless[:-22] + evil[-22:]


HEADER = b"{'descr': %s, 'fortran_order': False, 'shape': (1,), }\n"
HIDDEN = {
    # What numpy takes for objects, though no O follows a quote.
    **{
        f"array of {dtype.decode()}": evil_array(HEADER % dtype)
        for dtype in (b"'object'", b"'\\x4f'", b"'' 'O'", b"[('a', 'O')]", b"[('a', ('O', 2))]")
    },
    "old array": evil_array(HEADER % b"'|O'", 2),
    # numpy.load takes any record that starts like an array.
    "record of any name": zipped_as("x", evil_array(HEADER % b"'|O'")),
    "line end in a record's name": zipped_as("a\nb/data.pkl", pickle.dumps(EVIL)),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_hides_is_found(tmp_path: Path, kind: str) -> None:
    assert ("posix", "system") in scan(tmp_path / "x.pkl", HIDDEN[kind]).globals


def test_arrays_of_numbers_are_not_looked_through(tmp_path: Path) -> None:
    kinds = ("<f4", "|S3", "<U2", "?", "<M8[ns]", [("a", "<f4"), ("b", "|u1", (2, 3))])
    for dtype in kinds:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((2, 3), dtype=dtype))
        assert scan(tmp_path / "x.npy", buffer.getvalue()) == Scan(frozenset())


def test_a_zip_that_readers_read_differently_is_not_vouched_for(tmp_path: Path) -> None:
    for data in (disagreeing_zip(), zipped(pickle.dumps(None))[:-2] + b"\7\0comment"):
        assert scan(tmp_path / "x.pt", data).failure


def test_the_argument_of_a_loader_is_looked_through(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    old = b"cos\nsystem\n(S'true'\ntR."
    text = b"C" + bytes((len(old),)) + old
    loaded = b"\x80\x03ctorch.storage\n_load_from_bytes\n" + text + b"\x85R."
    assert ("os", "system") in scan(path, loaded).globals
    assert scan(path, b"\x80\x03" + text + b".") == Scan(frozenset())  # a text, as any other


def test_many_files_together_cost_no_more_than_a_few(tmp_path: Path) -> None:
    effort, path = Effort(opcodes_left=5000), tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + b"N0" * 1000 + b"N.")
    failures = []
    for _ in range(4):
        with LOCAL.open(str(path)) as source:
            failures.append(bool(scan_pickles(source, effort).failure))
    assert failures == [False, False, True, True]


def test_long_texts_are_not_kept(tmp_path: Path) -> None:
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"o" * (1 << 20)
    assert scan(tmp_path / "x.pkl", b"\x80\x04" + text * 2 + b"\x93.").computed


def test_pickles_are_known_by_how_they_start(tmp_path: Path) -> None:
    path, old = tmp_path / "notes.txt", b"cos\nsystem\n(S'true'\ntR."
    evil = pickle.dumps(EVIL)
    for data in (evil, old, gzip.compress(evil), bz2.compress(old), zipped(evil), array(1)):
        path.write_bytes(data)
        assert is_pickle(LOCAL, str(path))
    for text in (
        b"",
        b"c",
        b"cos\nsin\ntan\n",
        b"cat\ndog\n(x)",
        gzip.compress(b"text"),
        b"\x80\x02",
    ):
        path.write_bytes(text)
        assert not is_pickle(LOCAL, str(path))
    assert may_be_pickle("a\nb.pkl")
    assert is_no_weight_file("a\nb.pkl")


def test_what_trainers_write(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.ones(3)}
    for value in (optimizer.state_dict(), state, argparse.Namespace(lr=1), Path("x"), optimizer):
        for is_zip in (True, False):
            found = scan(tmp_path / "x.pt", saved(value, is_zip))
            assert not found.failure
            assert {judge(*name) for name in found.globals} <= {"plain", "trainer"}, found


@pytest.mark.parametrize(
    "function",
    [
        *(os.system, os.popen, os.execv, subprocess.Popen, eval, exec, compile, getattr, open),
        *(__import__, pickle.loads, torch.load, torch.hub.load, np.load, input, type),
    ],
)
def test_functions_that_run_code(tmp_path: Path, function: Any) -> None:
    found = scan(tmp_path / "x.pkl", pickle.dumps(Runs(function, 1)))
    assert any(judge(*name) == "runs-code" for name in found.globals)


def test_judgements() -> None:
    expected = {
        "runs-code": """builtins.eval __builtin__.exec builtins.getattr operator.attrgetter
            numpy.testing._private.utils.runstring torch.utils.collect_env.run runpy.run_path
            importlib.import_module bdb.Bdb timeit.timeit code.InteractiveInterpreter ctypes.CDLL
            asyncio.subprocess.create_subprocess_shell webbrowser.open shutil.rmtree io.open
            codecs.open functools.reduce types.FunctionType _io.FileIO nt.system pty.spawn
            joblib.load dill.loads cloudpickle.cloudpickle._make_function socket.socket
            torch.serialization.os torch.jit.load pip.main argparse._os random._os collections._sys
            torch.hub.load argparse.HelpFormatter.__init__.__globals__""",
        "unknown": "mine.Thing functools.partial transformers.trainer.main torch.nonsense",
        "trainer": """argparse.Namespace transformers.training_args.TrainingArguments
            deepspeed.runtime.fp16.loss_scaler.LossScaler pathlib.PosixPath
            deepspeed.runtime.zero.config.ZeroStageEnum accelerate.state.PartialState
            deepspeed.utils.tensor_fragment.fragment_address
            transformers.trainer_pt_utils.AcceleratorConfig
            torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
            pytorch_lightning.utilities.parsing.AttributeDict""",
        "plain": """collections.OrderedDict torch._utils._rebuild_tensor_v2 torch.FloatStorage
            torch.Size torch.bfloat16 numpy._core.multiarray._reconstruct numpy.dtype _codecs.encode
            builtins.set __builtin__.set torch.device builtins.ValueError""",
    }
    for judgement, names in expected.items():
        for name in names.split():
            module, _, attribute = name.rpartition(".")
            assert judge(module, attribute) == judgement, name
    for module, attribute in (("argparse", "_os.system"), ("random", "_inst.seed")):
        assert judge(module, attribute) == "runs-code"
    assert judge("mine", "Outer.Inner") == "unknown"
