"""Say how a plan is run."""

from __future__ import annotations

from typing import Final, Literal

from vita_ckpt.core.dataclass import dataclass

Link = Literal["auto", "reflink", "hardlink", "symlink", "copy"]
LINKS: Final[tuple[Link, ...]] = ("auto", "reflink", "hardlink", "symlink", "copy")

# Whose names a converted checkpoint has: upstream's loader's, or those of transformers 5.6.
Names = Literal["upstream", "transformers"]
NAMES: Final[tuple[Names, ...]] = ("upstream", "transformers")

# What becomes of a head that the config ties to the embeddings.
Tie = Literal["auto", "keep", "untie"]
TIES: Final[tuple[Tie, ...]] = ("auto", "keep", "untie")

# The formats of weight files.
Format = Literal["safetensors", "torch"]
FORMATS: Final[tuple[Format, ...]] = ("safetensors", "torch")


# Of a training state: the float32 masters of the optimizer, or the copies that the model ran with.
TrainedWeights = Literal["masters", "copies"]
TRAINED_WEIGHTS: Final[tuple[TrainedWeights, ...]] = ("masters", "copies")


@dataclass(frozen=True, slots=True)
class Options:
    """How a plan is run.

    ``link`` is what becomes of shards that are carried: ``auto`` shares blocks where the file
    system can (``reflink``) and copies where it cannot, ``hardlink`` and ``symlink`` make another
    name for the base's file, ``copy`` copies. ``check`` reads what was written again and compares.
    ``digest`` adds a manifest of every file; a base that has one keeps it in any case.
    ``model_card`` adds a section to the README. ``carry`` are patterns for pickles that are no
    weight files and go into the output all the same; those that match none are left out.
    """

    link: Link = "auto"
    check: bool = False
    digest: bool = False
    model_card: bool = False
    carry: tuple[str, ...] = ()
