"""The caption network: an encoder for each sample, a light head for each pair, and a context head over time.

A Siamese network (Bromley et al., 1993): the encoder runs once for each sample, and the head compares the embeddings
of two samples in either order. The encoder also predicts where caption text stands in the sample. This mask is trained
on the exact text coverage that rendered data knows; it tells the head which differences are caption and which are
background, at no cost at run time.

Two samples alone are often ambiguous: a static sign looks like a caption, a fade is a series of changes too small to
see, a flash hides both, and a codec may show a changed letter one sample late. Therefore the pair head computes
descriptions of each pair from its own two samples and from the two samples around them, and the context head applies
dilated convolutions over time (Bai et al., 2018) to the descriptions of consecutive pairs, so that each label depends
on the neighbouring pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from caption_extents.labels import Label


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


def _pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A 1x1 convolution of (N, C, H, W) by a weight (D, C), computed as a matrix product.

    In channels-last memory order this needs no copy, whereas PyTorch's 1x1 convolution on a CPU copies its input. ONNX
    Runtime has quick integer kernels for convolutions.
    """
    if torch.onnx.is_in_onnx_export():
        return functional.conv2d(x, weight[:, :, None, None], bias)
    return functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def _pointwise_by(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return _pointwise(x, conv.weight.flatten(1), conv.bias)


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
        # Dilation enlarges the receptive field to about a whole letter and its surroundings.
        self.deep = nn.Sequential(
            _conv(config.middle_channels, config.deep_channels, 3, stride=2),
            nn.ReLU(inplace=True),
            *[_Block(config.deep_channels, dilation=1 + index % 2) for index in range(config.deep_blocks)],
        )
        self.features = nn.Conv2d(config.deep_channels, config.embedding_channels, 1)
        # Features at twice the resolution, from before the last downsampling: one changed letter affects few cells.
        self.fine = nn.Conv2d(config.middle_channels, config.fine_channels, 1)
        self.mask = nn.Conv2d(config.deep_channels, 1, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) to (N, C, H/8, W/8); the last channel is the mask's logit.

        C is ``embedding_channels + 4 * fine_channels + 1``.
        """
        middle = self.middle(self.stem(picture))
        deep = self.deep(middle)
        fine = functional.pixel_unshuffle(_pointwise_by(self.fine, middle), 2)
        features, mask = _pointwise_by(self.features, deep), _pointwise_by(self.mask, deep)
        return torch.cat([torch.tanh(features), torch.tanh(fine), mask], dim=1)


class PairHead(nn.Module):
    """Two embeddings to the five logits of :class:`~caption_extents.labels.Label`.

    It also predicts a map of the places where letters of one caption were replaced by letters of another. Like the
    mask, this map is trained on the ground truth of rendered data: captions that differ by one letter differ in two or
    three of five hundred cells, which the network would learn slowly from the label of the pair alone.
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
        """Embeddings (N, C, h, w) of the earlier and the later sample to logits (N, 2, 5), forward and backward."""
        logits: torch.Tensor = self.classify(self.compare_both_ways(a, b)[0]).transpose(0, 1)
        return logits

    def compare(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Descriptions (N, D) of pairs, and the logits (N, h, w) that a caption's letters gave way to others."""
        a, b = _with_mask(a), _with_mask(b)
        first, second, *alike = self._mix_weights()
        if torch.onnx.is_in_onnx_export():
            # One convolution of integers in place of four, whose sums are of floating-point numbers.
            weight = torch.cat([first, second, *alike], dim=1)[:, :, None, None]
            terms = torch.cat([a, b, (a - b).abs(), a * b], dim=1)
            mixed = functional.conv2d(terms, weight, self._first_layer().bias)
        else:
            mixed = _pointwise(a, first) + _pointwise(b, second) + self._mixed_alike(a, b, alike)
        return self._look(mixed, a[:, -1:], b[:, -1:])

    def compare_both_ways(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`compare` of (a, b) and of (b, a) with shared computations: (2, N, D) and (2, N, h, w)."""
        count = len(a)
        a, b = _with_mask(a), _with_mask(b)
        first, second, *alike = self._mix_weights()
        of_a, of_b = _pointwise(torch.cat([a, b]), torch.cat([first, second])).chunk(2)
        width, both = len(first), self._mixed_alike(a, b, alike)
        there, back = of_a[:, :width] + of_b[:, width:], of_b[:, :width] + of_a[:, width:]
        masks = torch.cat([a[:, -1:], b[:, -1:]])
        described, change = self._look(torch.cat([there + both, back + both]), masks, masks.roll(count, 0))
        return described.reshape(2, count, -1), change.reshape(2, count, *change.shape[1:])

    def _first_layer(self) -> nn.Conv2d:
        inner = self.mix[0]  # with batch normalisation folded in, or before that
        return cast(nn.Conv2d, inner[0] if isinstance(inner, nn.Sequential) else inner)

    def _mix_weights(self) -> list[torch.Tensor]:
        """The first layer is linear in a, b, |a - b| and a * b: the weights of each, (width, C)."""
        weight = self._first_layer().weight.flatten(1)
        # As they are stored: features of a, b, |a - b| and a * b, then their masks: a, b, a * b and |a - b|.
        features, masks = weight[:, :-4].chunk(4, dim=1), weight[:, -4:].chunk(4, dim=1)
        return [torch.cat([features[part], masks[mask]], dim=1) for part, mask in enumerate((0, 1, 3, 2))]

    def _mixed_alike(self, a: torch.Tensor, b: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        """The first layer's terms of |a - b| and a * b, which are the same in both directions."""
        apart, product = weights
        return _pointwise((a - b).abs_(), apart, self._first_layer().bias) + _pointwise(a * b, product)

    def _look(
        self, mixed: torch.Tensor, mask_a: torch.Tensor, mask_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Descriptions (N, D) and change logits (N, h, w) of what was mixed (N, width, h, w)."""
        inner = self.mix[0]
        x = functional.relu_(inner[1](mixed) if isinstance(inner, nn.Sequential) else mixed)
        x = self.look(x)
        change = _pointwise_by(self.change, x)
        changed = change.sigmoid()
        both = mask_a * mask_b
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


def _with_mask(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, C, h, w), with the mask itself in place of its logit."""
    return torch.cat([embeddings[:, :-1], embeddings[:, -1:].sigmoid()], dim=1)


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

    The backward logits are computed by the same layers from the time-reversed sequence, in which forward and backward
    descriptions are swapped.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = config.context_channels
        self.enter = nn.Conv1d(3 * config.description_channels, channels, 1)
        self.blocks = nn.Sequential(*[_ContextBlock(channels, 1 << index) for index in range(config.context_blocks)])
        self.classify = nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(channels, len(Label), 1))

    def forward(self, descriptions: torch.Tensor) -> torch.Tensor:
        """Descriptions (B, P, 3, D) of consecutive pairs to logits (B, P, 2, 5), forward and backward."""
        forward, backward, around = descriptions.unbind(2)
        there = torch.cat([forward, backward, around], dim=2)
        back = torch.cat([backward, forward, around], dim=2).flip(1)
        both = torch.cat([there, back]).transpose(1, 2)
        logits: torch.Tensor = self.classify(self.blocks(self.enter(both))).transpose(1, 2)
        of_there, of_back = logits.chunk(2)
        return torch.stack([of_there, of_back.flip(1)], dim=2)


class CaptionNetwork(nn.Module):
    """Encoder and heads together; see the module's docstring."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        self.encoder = Encoder(self.config)
        self.head = PairHead(self.config)
        self.context = ContextHead(self.config)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) of the earlier and the later sample to logits (N, 2, 5) of the pair on its own."""
        logits: torch.Tensor = self.head(self.encoder(a), self.encoder(b))
        return logits

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Descriptions (N, 3, D) of pairs (earlier, later): forward, backward, and of (before, after).

        Args:
            before, earlier, later, after: embeddings (N, C, h, w) of samples k-1, k, k+1 and k+2; k for k-1 and k+1
                for k+2 where there are none.
        """
        (forward, backward), _ = self.head.compare_both_ways(earlier, later)
        around, _ = self.head.compare(before, after)
        return torch.stack([forward, backward, around], dim=1)


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
