"""Compile native.c into the wheel where there is a C compiler; else it is pure Python."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER: Final = "vita_ckpt/storage/tensors"
_LIBRARY: Final = f"{_FOLDER}/native.so.1"
# Contracted operations would round otherwise than numpy's.
_FLAGS: Final = ("-O3", "-ffp-contract=off", "-fPIC", "-shared")


class NativeHook(BuildHookInterface):  # type: ignore[type-arg]
    """Add the compiled loops to what is installed. With ``VITA_CKPT_PURE=1`` there are none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say which wheel it is then; an editable one takes what lies in the tree."""
        self._scratch = Path(tempfile.mkdtemp())
        library = self._scratch / "native.so.1"
        if os.environ.get("VITA_CKPT_PURE") == "1" or not self._compile(library):
            return
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        if version == "editable":
            beside = Path(self.root, f"{_LIBRARY}.{os.getpid()}")
            shutil.copy(library, beside)
            beside.replace(
                Path(self.root, _LIBRARY)
            )  # others may have loaded the one that is there
        else:
            build_data["force_include"][str(library)] = _LIBRARY

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        shutil.rmtree(self._scratch)

    def _compile(self, library: Path) -> bool:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        source = Path(self.root, _FOLDER, "native.c")
        try:
            command = [*compiler, *_FLAGS, "-o", str(library), str(source)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError as error:
            self.app.display_warning(f"native.c is not compiled: {error}")
            return False
        if done.returncode:
            self.app.display_warning(f"native.c is not compiled: {done.stderr.strip()}")
        return not done.returncode
