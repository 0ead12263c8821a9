"""Compile native.c into the wheel where there is a C compiler; else it is pure Python."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
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
        self._scratch = tempfile.TemporaryDirectory()
        library = Path(self._scratch.name, "native.so.1")
        compiled = os.environ.get("VITA_CKPT_PURE") != "1" and self._compile(library)
        if version == "editable":
            compiled = self._put(library if compiled else None)
        elif compiled:
            build_data["force_include"][str(library)] = _LIBRARY
        if compiled:
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        self._scratch.cleanup()

    def _compile(self, library: Path) -> bool:
        if struct.calcsize("P") != 8:
            return False
        source = Path(self.root, _FOLDER, "native.c")
        try:
            compiler = shlex.split(os.environ.get("CC") or "cc")
            command = [*compiler, *_FLAGS, "-o", str(library), str(source)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except (OSError, ValueError) as error:
            self.app.display_warning(f"native.c is not compiled: {error}")
            return False
        if done.returncode:
            self.app.display_warning(f"native.c is not compiled: {done.stderr.strip()}")
        return not done.returncode

    def _put(self, library: Path | None) -> bool:
        """Put a library into the tree, or take away the one that is there."""
        place = Path(self.root, _LIBRARY)
        try:
            if library is None:
                place.unlink(missing_ok=True)
                return False
            beside = place.with_name(f"{place.name}.{os.getpid()}")
            shutil.copy(library, beside)
            beside.replace(place)  # others may have loaded the one that is there
        except OSError as error:
            self.app.display_warning(f"native.c is not compiled: {error}")
            return False
        return True
