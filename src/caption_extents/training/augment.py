"""Random changes of clips, as tensor operations on the device that trains.

All samples of a clip change alike, except for noise and flicker, so that captions stay what they are.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from caption_extents.training.data import Group

_AFFINE_SHARE, _COLOUR_SHARE, _NOISE_SHARE, _INVERT_SHARE, _FLICKER_SHARE, _MIRROR_SHARE = 0.5, 0.6, 0.4, 0.03, 0.1, 0.2


def augment(group: Group, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Network input and ink of a group, changed at random.

    Returns:
        Pictures, float32 (B*T, 3, H, W) as :func:`~caption_extents.model.preprocess.to_input` gives them, and ink,
        float32 (B*T, H/4, W/4) in 0..1.
    """
    count, samples, _, height, width = group.pictures.shape
    draw = _Dice(count, group.pictures.device, generator)
    pictures = (group.pictures.flatten(0, 1).float() - 128.0) / 64.0
    ink = group.ink.flatten(0, 1).float() / 255.0
    grid_rows = draw.affine().repeat_interleave(samples, 0)
    pictures = _warp(pictures, grid_rows)
    ink = _warp(ink[:, None], grid_rows)[:, 0]
    pictures = _colour(pictures.reshape(count, samples, 3, height, width), draw).flatten(0, 1)
    return pictures.contiguous(memory_format=torch.channels_last), ink.clamp(0, 1)


class _Dice:
    """Random numbers, one for each clip."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator) -> None:
        self._count, self._device, self._generator = count, device, generator

    def uniform(self, low: float, high: float, *more: int) -> torch.Tensor:
        shape = (self._count, *more)
        return torch.rand(shape, device=self._device, generator=self._generator) * (high - low) + low

    def normal_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, device=self._device, generator=self._generator)

    def happens(self, share: float) -> torch.Tensor:
        return self.uniform(0, 1) < share

    def affine(self) -> torch.Tensor:
        """Matrices (B, 2, 3) that zoom in a little, move a little, and mirror some clips."""
        changed = self.happens(_AFFINE_SHARE).float()
        zoom_x, zoom_y = (1 - changed * self.uniform(0.0, 0.2) for _ in range(2))
        mirror = torch.where(self.happens(_MIRROR_SHARE), -1.0, 1.0)
        matrix = torch.zeros(self._count, 2, 3, device=self._device)
        matrix[:, 0, 0], matrix[:, 1, 1] = zoom_x * mirror, zoom_y
        matrix[:, 0, 2] = (1 - zoom_x) * self.uniform(-1, 1)
        matrix[:, 1, 2] = (1 - zoom_y) * self.uniform(-1, 1)
        return matrix


def _warp(pictures: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    grid = functional.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _colour(pictures: torch.Tensor, draw: _Dice) -> torch.Tensor:
    """Contrast, brightness, hue, saturation, flicker and noise of (B, T, 3, H, W)."""

    def each(values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None, None]

    samples = pictures.shape[1]
    changed = draw.happens(_COLOUR_SHARE)
    gain = torch.where(changed, draw.uniform(0.6, 1.3), 1.0)
    gain = torch.where(draw.happens(_INVERT_SHARE), -gain, gain)
    lift = torch.where(changed, draw.uniform(-0.5, 0.5), 0.0)
    flicker = torch.where(draw.happens(_FLICKER_SHARE), draw.uniform(0, 0.3), 0.0)
    luma = pictures[:, :, 0] * each(gain) + each(lift)
    luma = luma + (flicker[:, None] * draw.uniform(-1, 1, samples))[:, :, None, None]
    angle = torch.where(changed, draw.uniform(-math.pi, math.pi) * draw.happens(0.3), 0.0)
    saturation = torch.where(changed, draw.uniform(0.0, 1.5), 1.0)
    cosine, sine = each(angle.cos() * saturation), each(angle.sin() * saturation)
    u, v = pictures[:, :, 1], pictures[:, :, 2]
    result = torch.stack([luma, u * cosine - v * sine, u * sine + v * cosine], dim=2)
    noise = torch.where(draw.happens(_NOISE_SHARE), draw.uniform(0, 0.08), 0.0)
    result = result + each(noise)[..., None] * draw.normal_like(result)
    # What eight bits can hold.
    return result.clamp(-2.0, 127 / 64)
