"""The five ways in which a caption can change between two consecutive samples."""

from __future__ import annotations

from enum import IntEnum


class Label(IntEnum):
    """What happens between the samples of a pair; the value is the index of its logit."""

    SAME = 0
    """Both samples show the same caption."""
    DIFFERENT = 1
    """Both samples show a caption, but not the same one."""
    EMPTY_EMPTY = 2
    """Neither sample shows a caption."""
    EMPTY_VALID = 3
    """A caption appears."""
    VALID_EMPTY = 4
    """A caption disappears."""

    @property
    def text(self) -> str:
        """The name in the database and in results, for example ``empty_valid``."""
        return self.name.lower()

    @property
    def reversed(self) -> Label:
        """The label of the same two samples in the opposite order."""
        return _REVERSED[self]


_REVERSED = {
    Label.SAME: Label.SAME,
    Label.DIFFERENT: Label.DIFFERENT,
    Label.EMPTY_EMPTY: Label.EMPTY_EMPTY,
    Label.EMPTY_VALID: Label.VALID_EMPTY,
    Label.VALID_EMPTY: Label.EMPTY_VALID,
}

LABEL_TEXTS: tuple[str, ...] = tuple(label.text for label in Label)
"""Database names of the labels, in the order of the model's logits."""

REVERSED_ORDER: tuple[int, ...] = tuple(label.reversed.value for label in Label)
"""``probabilities[..., REVERSED_ORDER]`` turns backward probabilities into forward order."""
