"""The caption network: one embedding for each sample, a light head for each pair, and what stands around each pair.

A Siamese network (Bromley et al., 1993): the encoder runs once for each sample, and the head compares the embeddings
of two samples in either order. The encoder also predicts where caption text stands in the sample. This mask is trained
on the exact text coverage that rendered data knows; it tells the head which differences are caption and which are
background, at no cost at run time.

Two samples alone often cannot tell: a sign that stands still looks like a caption, a fade is a row of changes too small
to see, a flash hides both, and a codec shows one other letter a sample late. So the head describes each pair twice, by
its own two samples and by those around them, and the descriptions of consecutive pairs go through a few dilated
convolutions over time (Bai et al., 2018): each pair's label is decided with the pairs around it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from caption_extents.model.labels import Label


@dataclass(frozen=True)
class NetworkConfig:
    """Widths of the network; stored beside the weights."""

    stem_channels: int = 32
    middle_channels: int = 64
    middle_blocks: int = 2
    deep_channels: int = 128
    deep_blocks: int = 3
    embedding_channels: int = 32
    fine_channels: int = 12
    head_channels: int = 96
    description_channels: int = 64
    context_channels: int = 96
    context_blocks: int = 5

    @property
    def reach(self) -> int:
        """Pairs before and after a pair that its label depends on."""
        return (1 << self.context_blocks) - 1

    def to_metadata(self) -> dict[str, str]:
        """The configuration as safetensors metadata (strings only)."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> NetworkConfig:
        """Inverse of :meth:`to_metadata`; other keys are ignored."""
        return cls(**{name: int(metadata[name]) for name in cls.__dataclass_fields__ if name in metadata})


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class _Block(nn.Module):
    """Two 3x3 convolutions with a skip connection (He et al., 2015)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(channels, channels, 3, dilation=dilation)
        self.second = _conv(channels, channels, 3)
        # A block begins as the identity (Goyal et al., 2017).
        nn.init.zeros_(cast(nn.BatchNorm2d, self.second[1]).weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.second(functional.relu_(self.first(x)))
        return functional.relu_(added.add_(x))


class Encoder(nn.Module):
    """A sample to its embedding: features and a text mask at an eighth of the input's resolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, config.stem_channels, 5, stride=2), nn.ReLU(inplace=True))
        self.middle = nn.Sequential(
            _conv(config.stem_channels, config.middle_channels, 3, stride=2),
            nn.ReLU(inplace=True),
            *[_Block(config.middle_channels) for _ in range(config.middle_blocks)],
        )
        # Dilation widens what a cell sees to about a whole letter and its surroundings.
        self.deep = nn.Sequential(
            _conv(config.middle_channels, config.deep_channels, 3, stride=2),
            nn.ReLU(inplace=True),
            *[_Block(config.deep_channels, dilation=1 + index % 2) for index in range(config.deep_blocks)],
        )
        self.features = nn.Conv2d(config.deep_channels, config.embedding_channels, 1)
        # Four times as many places, from before the last halving: one other letter changes only a few of them.
        self.fine = nn.Conv2d(config.middle_channels, config.fine_channels, 1)
        self.mask = nn.Conv2d(config.deep_channels, 1, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) to (N, C, H/8, W/8); the last channel is the mask's logit.

        C is ``embedding_channels + 4 * fine_channels + 1``.
        """
        middle = self.middle(self.stem(picture))
        deep = self.deep(middle)
        fine = functional.pixel_unshuffle(self.fine(middle), 2)
        return torch.cat([torch.tanh(self.features(deep)), torch.tanh(fine), self.mask(deep)], dim=1)


class PairHead(nn.Module):
    """Two embeddings to the five logits of :class:`~caption_extents.model.labels.Label`.

    On the way it predicts where letters of one caption gave way to another's. This map, too, is trained on what
    rendered data knows: a caption that differs in one letter differs in two or three places out of five hundred, which
    the label of the pair alone would teach slowly.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.head_channels
        compared = config.embedding_channels + 4 * config.fine_channels
        self.mix = nn.Sequential(_conv(4 * compared + 4, width, 1), nn.ReLU(inplace=True))
        self.look = nn.Sequential(
            _conv(width, width, 3), nn.ReLU(inplace=True), _conv(width, width, 3), nn.ReLU(inplace=True)
        )
        self.change = nn.Conv2d(width, 1, 1)
        self.describe = nn.Sequential(nn.Linear(3 * width + 6, config.description_channels), nn.ReLU(inplace=True))
        self.classify = nn.Linear(config.description_channels, len(Label))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, C, h, w) of the earlier and the later sample to logits (N, 5) of the pair on its own."""
        logits: torch.Tensor = self.classify(self.compare(a, b)[0])
        return logits

    def compare(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Descriptions (N, D) of pairs, and the logits (N, h, w) that a caption's letters gave way to others."""
        mask_a, mask_b = a[:, -1:].sigmoid(), b[:, -1:].sigmoid()
        a, b = a[:, :-1], b[:, :-1]
        both = mask_a * mask_b
        x = self.mix(torch.cat([a, b, (a - b).abs_(), a * b, mask_a, mask_b, both, (mask_a - mask_b).abs_()], dim=1))
        x = self.look(x)
        change = self.change(x)
        changed = change.sigmoid()
        either = torch.maximum(mask_a, mask_b)
        weight = either.sum((2, 3)) + 1e-3
        pooled = [
            x.mean((2, 3)),
            x.amax((2, 3)),
            (x * either).sum((2, 3)) / weight,
            mask_a.mean((2, 3)),
            mask_b.mean((2, 3)),
            both.sum((2, 3)) / weight,
            change.amax((2, 3)),
            torch.log1p(changed.sum((2, 3))),
            (changed * either).sum((2, 3)) / weight,
        ]
        described: torch.Tensor = self.describe(torch.cat(pooled, dim=1))
        return described, change[:, 0]


class _ContextBlock(nn.Module):
    """A dilated convolution over time and a mixing of channels, beside a skip connection."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.around = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.mix(functional.relu(self.around(functional.relu(x))))
        return x + added


class ContextHead(nn.Module):
    """Descriptions of consecutive pairs to the logits of each, with the pairs around it.

    A film that runs backwards is a film too: the backward logits are those that the same layers give for the
    descriptions in reverse.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = config.context_channels
        self.enter = nn.Conv1d(2 * 2 * config.description_channels, channels, 1)
        self.blocks = nn.Sequential(*[_ContextBlock(channels, 1 << index) for index in range(config.context_blocks)])
        self.classify = nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(channels, len(Label), 1))

    def forward(self, descriptions: torch.Tensor) -> torch.Tensor:
        """Descriptions (B, P, 2, 2 D) of consecutive pairs, forward and backward, to logits (B, P, 2, 5)."""
        there = descriptions.flatten(2)
        back = descriptions.flip(1, 2).flatten(2)
        both = torch.cat([there, back]).transpose(1, 2)
        logits: torch.Tensor = self.classify(self.blocks(self.enter(both))).transpose(1, 2)
        forward, backward = logits.chunk(2)
        return torch.stack([forward, backward.flip(1)], dim=2)


class CaptionNetwork(nn.Module):
    """Encoder and heads together; see the module's docstring."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        self.encoder = Encoder(self.config)
        self.head = PairHead(self.config)
        self.context = ContextHead(self.config)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) of the earlier and the later sample to logits (N, 5) of the pair on its own."""
        logits: torch.Tensor = self.head(self.encoder(a), self.encoder(b))
        return logits

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Descriptions (N, 2, 2 D), forward and backward, of pairs (earlier, later).

        Args:
            before, earlier, later, after: embeddings (N, C, h, w) of samples k-1, k, k+1 and k+2; k for k-1 and k+1
                for k+2 where there are none.
        """
        there = [self.head.compare(*pair)[0] for pair in ((earlier, later), (before, after))]
        back = [self.head.compare(*pair)[0] for pair in ((later, earlier), (after, before))]
        return torch.stack([torch.cat(there, dim=1), torch.cat(back, dim=1)], dim=1)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Merge every batch normalisation into the convolution before it (exact in evaluation mode), in place."""
    for name, child in network.named_children():
        if (
            isinstance(child, nn.Sequential)
            and len(child) == 2
            and isinstance(child[0], nn.Conv2d)
            and isinstance(child[1], nn.BatchNorm2d)
        ):
            setattr(network, name, torch.nn.utils.fusion.fuse_conv_bn_eval(child[0].eval(), child[1].eval()))
        else:
            fold_batch_norms(child)
    return network
