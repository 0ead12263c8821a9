"""Compare in words a file of weights with the checkpoint beside which it lies."""

from __future__ import annotations

from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Rival:
    """Another file of weights in a checkpoint's directory.

    ``shared`` counts the tensors that the checkpoint has too, by name; None where they are of
    another kind than the checkpoint's, or none of these could be read. ``differs`` is one of them
    that is another there, None if none is as far as was read: all shapes and dtypes, the values of
    small tensors. ``newer`` is None where it is not known.
    """

    shared: int | None
    differs: str | None
    newer: bool | None

    def __str__(self) -> str:
        age = {True: "it is newer", False: "it is not newer", None: ""}[self.newer]
        if self.shared is None:
            content = ""
        elif not self.shared:
            content = "it has none of the checkpoint's tensors"
        elif self.differs is not None:
            content = f"it differs, in {self.differs}"
        else:
            content = (
                f"as far as was read, its {self.shared} tensors of the same names are the same"
            )
        return " and ".join(filter(None, (age, content)))
