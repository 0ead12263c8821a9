"""Check that the extra ``model`` is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from vita_ckpt.core.remedies import install_model
from vita_ckpt.errors import UsageError

# What the extra ``model`` installs, by the names of import.
_EXTRA: Final = ("torch", "transformers", "accelerate", "PIL")


def need_the_extra() -> None:
    """Raise UsageError unless what the extra ``model`` installs is there."""
    for package in _EXTRA:
        if find_spec(package) is None:
            raise UsageError(
                "model-extra-missing",
                package,
                expected="torch, transformers, accelerate and PIL (Pillow)",
                hint=install_model(),
            )
