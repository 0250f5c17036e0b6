"""What training minimises: wrong labels of pairs, on their own and in context, wrong text masks and maps of changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from caption_extents.labels import Label
from caption_extents.model.network import CaptionNetwork
from caption_extents.training.augment import augment
from caption_extents.training.data import Group
from caption_extents.training.labels import pair_labels

UNSURE_WEIGHT = 0.35
MASK_LOSS_WEIGHT = 1.0
CHANGE_LOSS_WEIGHT = 1.0
AROUND_WEIGHT = 0.5
"""Weight of pairs of the samples around a pair, on their own."""

CHANGE_WEIGHT = 3.0
"""Weight of pairs between which something changes: few of all pairs, and all that captions are cut by."""


@dataclass(frozen=True)
class Losses:
    """What a step minimises, and how well it did.

    Attributes:
        context: cross entropy of the labels of consecutive pairs.
        pair: the same of pairs on their own.
        mask: cross entropy of the text mask.
        change: cross entropy of where letters gave way to others.
        accuracy: share of consecutive pairs, those in the middle of a fade left out, whose label is right.
    """

    context: torch.Tensor
    pair: torch.Tensor
    mask: torch.Tensor
    change: torch.Tensor
    accuracy: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Their weighted sum."""
        return self.context + self.pair + MASK_LOSS_WEIGHT * self.mask + CHANGE_LOSS_WEIGHT * self.change


_SURE_CHANGE, _NO_CHANGE = 0.12, 0.04
"""From this much other coverage on, letters changed; below this much, none did; between, who knows."""

_OUTSIDE_WEIGHT = 0.1
"""Weight of places without letters, which are most and easy."""


def change_loss(
    change: torch.Tensor, ink: torch.Tensor, first: torch.Tensor, second: torch.Tensor, different: torch.Tensor
) -> torch.Tensor:
    """Cross entropy of where a caption's letters gave way to others.

    Args:
        change: logits (B, ..., h, w).
        ink: coverage of letters (B, T, 2h, 2w) in 0..1.
        first, second: sample numbers of the pairs, int64 (...).
        different: whether the captions of a pair differ (or there is one on one side only); bool (B, ...).
    """
    one, other = ink[:, first], ink[:, second]
    apart = _halved((one - other).abs()) * different[..., None, None]
    letters = _halved(torch.maximum(one, other))
    weight = torch.where(letters > _NO_CHANGE, 1.0, _OUTSIDE_WEIGHT)
    weight = weight * ((apart > _SURE_CHANGE) | (apart < _NO_CHANGE))
    target = (apart > _SURE_CHANGE).float()
    loss = functional.binary_cross_entropy_with_logits(change, target, weight, reduction="sum")
    return loss / weight.sum()


def _halved(pictures: torch.Tensor) -> torch.Tensor:
    """The largest of each two by two; (..., 2h, 2w) to (..., h, w)."""
    halved = functional.max_pool2d(pictures.flatten(0, -3), 2)
    return halved.reshape(*pictures.shape[:-2], *halved.shape[-2:])


def losses(network: CaptionNetwork, group: Group, generator: torch.Generator) -> Losses:
    """Losses of a group, augmented at random."""
    count, samples = group.caption_ids.shape
    device, ids = group.caption_ids.device, group.caption_ids
    pictures, ink = augment(group, generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        embeddings = network.encoder(pictures)
        mask = functional.avg_pool2d(ink, 2)
        mask_loss = functional.binary_cross_entropy_with_logits(embeddings[:, -1].float(), mask)
        # As CaptionNetwork.describe does: pairs by their own samples, in both directions, and by those around them.
        before, earlier, later, after = around_pairs(embeddings, samples)
        near, near_change = network.head.compare_both_ways(earlier, later)
        around, around_change = network.head.compare(before, after)
        described = torch.cat([near, around[None]])
        change = torch.cat([near_change, around_change[None]])
        logits = network.head.classify(described)
    k = torch.arange(samples - 1, device=device)
    first = torch.stack([k, k + 1, (k - 1).clamp(min=0)])
    second = torch.stack([k + 1, k, (k + 2).clamp(max=samples - 1)])
    logits, described, change = (
        tensor.float().reshape(3, count, samples - 1, *tensor.shape[2:]).transpose(0, 1)
        for tensor in (logits, described, change)
    )
    different = ids[:, first] != ids[:, second]
    changed = change_loss(change, ink.reshape(count, samples, *ink.shape[1:]), first, second, different)
    unsure = group.unsure[:, first] | group.unsure[:, second]
    importance = torch.ones(3, 1, device=device)
    importance[2] = AROUND_WEIGHT
    pair_loss, _ = _label_loss(logits, pair_labels(ids[:, first], ids[:, second]), unsure, importance)
    context_loss, accuracy = _context_loss(network.context(described.transpose(1, 2)), group)
    return Losses(context_loss, pair_loss, mask_loss, changed, accuracy)


def around_pairs(embeddings: torch.Tensor, samples: int) -> list[torch.Tensor]:
    """Embeddings (B * T, C, h, w) of all samples of clips to those before, at and after each pair.

    Returns:
        Four times (B * (T-1), C, h, w): of samples k-1, k, k+1 and k+2 for each pair (k, k+1), as
        :meth:`CaptionNetwork.describe` takes them.
    """
    # With channels last in memory, as the layers that follow want them.
    clips = embeddings.movedim(1, -1)
    clips = clips.reshape(-1, samples, *clips.shape[1:])
    before = torch.cat([clips[:, :1], clips[:, :-2]], dim=1)
    after = torch.cat([clips[:, 2:], clips[:, -1:]], dim=1)
    return [chosen.flatten(0, 1).movedim(-1, 1) for chosen in (before, clips[:, :-1], clips[:, 1:], after)]


def context_losses(network: CaptionNetwork, group: Group, generator: torch.Generator) -> Losses:
    """Losses of the context head alone, over whole clips; the network is in evaluation mode."""
    count, samples = group.caption_ids.shape
    pictures, _ = augment(group, generator)
    with torch.no_grad(), torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        embeddings = network.encoder(pictures)
        described = network.describe(*around_pairs(embeddings, samples)).float()
        described = described.reshape(count, samples - 1, *described.shape[1:])
    loss, accuracy = _context_loss(network.context(described), group)
    nothing = torch.zeros((), device=loss.device)
    return Losses(loss, nothing, nothing, nothing, accuracy)


def _context_loss(logits: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy and accuracy of logits (B, T-1, 2, 5) of consecutive pairs."""
    ids = group.caption_ids
    labels = torch.stack([pair_labels(ids[:, :-1], ids[:, 1:]), pair_labels(ids[:, 1:], ids[:, :-1])], dim=2)
    unsure = (group.unsure[:, :-1] | group.unsure[:, 1:])[..., None].expand_as(labels)
    return _label_loss(logits, labels, unsure, torch.ones((), device=labels.device))


def _label_loss(
    logits: torch.Tensor, labels: torch.Tensor, unsure: torch.Tensor, importance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross entropy of logits (..., 5), and the share of sure labels (...) that are right."""
    unchanged = (labels == Label.SAME.value) | (labels == Label.EMPTY_EMPTY.value)
    weights = torch.where(unsure, UNSURE_WEIGHT, 1.0) * torch.where(unchanged, 1.0, CHANGE_WEIGHT) * importance
    entropy = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    loss = (entropy * weights.flatten()).sum() / weights.sum()
    accuracy = ((logits.argmax(-1) == labels) & ~unsure).sum() / (~unsure).sum().clamp(min=1)
    return loss, accuracy
