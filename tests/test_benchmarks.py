"""The script that measures on a GPU, rehearsed on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_measurement_on_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--dir", tmp_path],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for words in ("A8, NMSE", "load_model", "two threads, pinned", "verify, ", "2 ranks: "):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []
