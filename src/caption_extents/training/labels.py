"""Labels of pairs, from what is known of the samples."""

from __future__ import annotations

import torch

from caption_extents.labels import Label


def pair_labels(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Labels of pairs from caption numbers (0 for none) of both samples; int64 of the same shape."""
    labels = torch.full_like(first, Label.DIFFERENT.value)
    labels.masked_fill_(first == second, Label.SAME.value)
    labels.masked_fill_((first == 0) & (second == 0), Label.EMPTY_EMPTY.value)
    labels.masked_fill_((first == 0) & (second != 0), Label.EMPTY_VALID.value)
    return labels.masked_fill_((first != 0) & (second == 0), Label.VALID_EMPTY.value)
