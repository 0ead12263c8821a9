"""Select the hidden states of a tower that are its features (UPSTREAM §3, FAMILY §1, §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_WITHOUT_CLASS: Final = "patch"
_WITH_CLASS: Final = "cls_patch"
# LLaVA-NeXT's words before these, for several hidden states at once.
_FOUR: Final = "slicefour_"
_FIVE: Final = "slice_m25811_f6_"
_FIVE_STATES: Final = (-2, -5, -8, -11, 6)


@dataclass(frozen=True, slots=True)
class Features:
    """The hidden states that are concatenated into the features of a tower.

    ``states`` are their numbers: 0 is the input of the first layer, -1 the output of the last.
    ``with_class`` keeps the CLS token, where the tower has one.
    """

    states: tuple[int, ...] = (-2,)
    with_class: bool = False

    def fits(self, layers: int) -> bool:
        """Return whether a tower of so many layers has all of these hidden states."""
        return bool(self.states) and all(-layers - 1 <= one <= layers for one in self.states)


def parse_features(layer: int, word: str, layers: int, *, extended: bool) -> Features | None:
    """Return the features that a config selects; None for a word that upstream does not know.

    ``layer`` is ``mm_vision_select_layer``, ``word`` is ``mm_vision_select_feature``, ``layers``
    the number of the tower's layers. ``extended`` adds the words of LLaVA-NeXT.
    """
    states: tuple[int, ...] = (layer,)
    if extended and word.startswith(_FOUR):
        step = (layers + 1) // 4
        states = tuple(range(step + layer, layers + 1, step)) if step else ()
        word = word.removeprefix(_FOUR)
    elif extended and word.startswith(_FIVE):
        states = _FIVE_STATES
        word = word.removeprefix(_FIVE)
    if word not in (_WITHOUT_CLASS, _WITH_CLASS):
        return None
    return Features(states, word == _WITH_CLASS)
