"""Groups of rendered clips, made by several processes, and the pool on the device that training draws from.

Drawing, and compression by real codecs, is work for CPU cores and slower than the network learns. So each clip is used
several times, augmented anew on the device each time: the pool holds the newest clips of every input shape.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from caption_extents.model.identity import CLOSE_AREA_PX, INPUT_AREA_PX
from caption_extents.model.inputs import input_size
from caption_extents.model.preprocess import resize_planes
from caption_extents.training import backgrounds, clips, fonts

ASPECTS = (3.0, 42.0)
"""Shapes of crops, width over height."""

INK_STRIDE = 4
"""Pixels of a picture for one of its ink: fine enough that one other letter shows."""

_CLOSE_SHARE = 0.3
"""Of groups: pictures as large as those that the network looks at closely."""

_GRAPHICS_SHARE = 0.3
"""Of made-up backgrounds."""


@dataclass(frozen=True)
class Group:
    """Clips of one input shape.

    Attributes:
        pictures: planes at the network's input size, uint8 (B, T, 3, H, W).
        caption_ids: int64 (B, T), 0 for none.
        unsure: bool (B, T).
        ink: coverage of caption letters times 255, uint8 (B, T, H/4, W/4).
    """

    pictures: torch.Tensor
    caption_ids: torch.Tensor
    unsure: torch.Tensor
    ink: torch.Tensor

    def to(self, device: torch.device) -> Group:
        """The same on another device, once it is there."""
        return self.each(lambda part: part.to(device))

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Group:
        """A group of what a function makes of each tensor."""
        return Group(*(function(getattr(self, field.name)) for field in fields(self)))

    def used_here(self) -> None:
        """Keep its memory, which another stream allocated, until what this one has been asked for so far is done."""
        for field in fields(self):
            part: torch.Tensor = getattr(self, field.name)
            if part.is_cuda:
                part.record_stream(torch.cuda.current_stream(part.device))


def make_group(seed: int, source: backgrounds.BackgroundSource, clip_count: int, samples: int) -> Group:
    """Random clips of one random input shape, at random source resolutions."""
    rng = random.Random(seed)
    aspect = math.exp(rng.uniform(*map(math.log, ASPECTS)))
    area = CLOSE_AREA_PX if rng.random() < _CLOSE_SHARE else INPUT_AREA_PX
    height, width = input_size(100, round(100 * aspect), area)
    pictures, ids, unsure, ink = [], [], [], []
    for _ in range(clip_count):
        scale = math.exp(rng.uniform(math.log(0.5), math.log(2.0))) * math.sqrt(INPUT_AREA_PX / area)
        squeeze = math.exp(rng.uniform(-0.08, 0.08))
        crop = (max(16, round(height * scale / 2) * 2), max(64, round(width * scale * squeeze / 2) * 2))
        clip = _clip(rng, source, samples, crop)
        y, u, v = (torch.from_numpy(np.ascontiguousarray(plane)) for plane in (clip.y, clip.u, clip.v))
        pictures.append(resize_planes(y, u, v, (height, width)).round().clamp(0, 255).to(torch.uint8))
        ids.append(torch.from_numpy(clip.caption_ids))
        unsure.append(torch.from_numpy(clip.unsure))
        coarse = torch.from_numpy(clip.ink)[:, None]
        small = functional.interpolate(coarse, (height // INK_STRIDE, width // INK_STRIDE), mode="area")[:, 0]
        ink.append((small.clamp(0, 1) * 255).to(torch.uint8))
    return Group(torch.stack(pictures), torch.stack(ids), torch.stack(unsure), torch.stack(ink))


def _clip(rng: random.Random, source: backgrounds.BackgroundSource, samples: int, size: tuple[int, int]) -> clips.Clip:
    while True:
        try:
            return clips.random_clip(rng, source, samples, size[1], size[0])
        except OSError:
            # FreeType reads a few fonts and then cannot draw with them: draw again, with another.
            continue


class _Groups(IterableDataset[Group]):
    def __init__(self, seed: int, first: int, assets: Path | None, clip_count: int, samples: int) -> None:
        self._seed, self._first, self._assets = seed, first, assets
        self._clip_count, self._samples = clip_count, samples

    def __iter__(self) -> Iterator[Group]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        if worker is not None and hasattr(os, "nice"):
            # The process that gives the device its work goes first.
            os.nice(10)
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        source = open_backgrounds(self._assets)
        at = self._first + number
        while True:
            yield make_group(self._seed * 10_000_000 + at, source, self._clip_count, self._samples)
            at += stride


def open_backgrounds(assets: Path | None) -> backgrounds.BackgroundSource:
    """Backgrounds of a pack (and its fonts from now on), or else of this machine without what is held out."""
    if assets is not None:
        fonts.use_packed_fonts(assets)
        return backgrounds.BackgroundSource(sorted(assets.glob("*.jpg")), sorted(assets.glob("*.mp4")), _GRAPHICS_SHARE)
    pictures, films = (
        [path for path in found if not fonts.is_held_out(path.name)]
        for found in (backgrounds.find_pictures(), backgrounds.find_footage())
    )
    return backgrounds.BackgroundSource(pictures, films, _GRAPHICS_SHARE)


def load_groups(
    seed: int, first: int, *, assets: Path | None, clip_count: int, samples: int, workers: int
) -> Iterator[Group]:
    """Groups without end from number ``first`` on, in an order that the number of workers does not change."""
    dataset = _Groups(seed, first, assets, clip_count, samples)
    yield from DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)


class ClipPool:
    """The newest clips of every input shape, on the device. Where pictures are twice as large, clips are half as many.

    Args:
        device: where the clips are kept.
        capacity: clips kept of each shape, of pictures of the usual size.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.device, self._capacity = device, capacity
        self._groups: dict[tuple[int, int], Group] = {}
        self._sizes: dict[tuple[int, int], int] = {}
        self._next: dict[tuple[int, int], int] = {}

    def add(self, group: Group) -> None:
        """Keep a group, which must be on the pool's device, in place of the oldest of its shape."""
        height, width = group.pictures.shape[-2:]
        shape = (height, width)
        count, capacity = len(group.pictures), _as_many(self._capacity, shape)
        if shape not in self._groups:
            self._groups[shape] = group.each(lambda part: part.new_empty((capacity, *part.shape[1:])))
            self._sizes[shape] = self._next[shape] = 0
        at = (self._next[shape] + torch.arange(count, device=self.device)) % capacity
        for field in fields(Group):
            getattr(self._groups[shape], field.name)[at] = getattr(group, field.name)
        self._next[shape] = (self._next[shape] + count) % capacity
        self._sizes[shape] = min(capacity, self._sizes[shape] + count)

    def draw_shape(self, rng: random.Random) -> tuple[int, int]:
        """A random height and width of the pictures; those of which many clips came are drawn more often."""
        shapes = list(self._groups)
        return rng.choices(shapes, [self._sizes[shape] for shape in shapes])[0]

    def draw(self, rng: random.Random, shape: tuple[int, int], clip_count: int, samples: int = 0) -> Group:
        """Random clips of one shape.

        Args:
            rng: decides.
            shape: height and width of the pictures; the nearest that there is counts.
            clip_count: how many, of pictures of the usual size.
            samples: cut so many out of each, from anywhere in it, now and then every other or every third; 0 for whole
                clips.
        """
        shape = min(self._groups, key=lambda own: math.dist(map(math.log, own), map(math.log, shape)))
        group, size = self._groups[shape], self._sizes[shape]
        clip_count = _as_many(clip_count, shape)
        chosen = self._on_device([rng.randrange(size) for _ in range(clip_count)])
        if not samples:
            return group.each(lambda part: part[chosen])
        windows = [_window(rng, group.caption_ids.shape[1], samples) for _ in range(clip_count)]
        at = self._on_device(windows)
        return group.each(lambda part: part[chosen[:, None], at])

    def _on_device(self, numbers: list[Any]) -> torch.Tensor:
        """Numbers as a tensor; the device need not be done with what it has for that."""
        tensor = torch.tensor(numbers, pin_memory=self.device.type == "cuda")
        return tensor.to(self.device, non_blocking=True)


def _as_many(count: int, shape: tuple[int, int]) -> int:
    """How many clips of this height and width have about as many pixels as so many of the usual size."""
    height, width = shape
    return max(1, round(count / max(1, round(height * width / INPUT_AREA_PX))))


def _window(rng: random.Random, length: int, samples: int) -> list[int]:
    """Numbers of ``samples`` samples out of ``length``, evenly spaced."""
    step = min(rng.choices([1, 2, 3], [8, 1, 1])[0], max(1, (length - 1) // max(1, samples - 1)))
    start = rng.randrange(length - step * (samples - 1))
    return [start + step * index for index in range(samples)]
