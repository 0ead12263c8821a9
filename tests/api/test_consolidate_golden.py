"""Training state as real libraries left it, against what their own tools make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import GOLDEN, Cli
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.stores.local import LOCAL

# More cases lie beside the repository where it is developed.
_MORE = GOLDEN.parents[2] / "shared" / "golden"
_CASES = sorted(
    {path.name: path for root in (_MORE, GOLDEN) for path in root.glob("T[0-9]*")}.values()
)
_STATES = [
    (case, state)
    for case in _CASES
    for state in ([case / "run"] if (case / "run").is_dir() else sorted(case.glob("*.pt")))
]


def _content(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    with LOCAL.open(str(path)) as source:
        refs = read_safetensors(source).tensors
    return {
        name: (ref.dtype, ref.shape, data[ref.offset : ref.offset + ref.nbytes])
        for name, ref in refs.items()
    }


def _expected(case: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = _content(case / "expected.safetensors")
    extra = case / "expected_extra.safetensors"
    return found | (_content(extra) if extra.exists() else {})


@pytest.mark.parametrize(("case", "state"), _STATES, ids=[f"{c.name}-{s.name}" for c, s in _STATES])
def test_a_file_has_every_tensor_bit_for_bit(
    case: Path, state: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    result = cli("consolidate", state, "--out", out, "--check")
    assert result.code == 0, result.err
    found, expected = _content(out), _expected(case)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name] == wanted, name
