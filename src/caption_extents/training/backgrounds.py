"""What stands behind captions: photographs that pan and zoom, footage, and made-up pictures.

Photographs and footage come from packages of the machine (wallpapers, sample videos); where there are none, the
procedural backgrounds alone remain. A background is a function from the number of frames and the crop's size to
uint8 RGB frames (T, H, W, 3).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

PICTURE_FOLDERS = (
    Path("/usr/share/wallpapers"),
    Path("/usr/share/backgrounds"),
    Path("/usr/share/stellarium/landscapes"),
    Path("/usr/share/doc/opencv-doc/examples/data"),
)
FOOTAGE_FOLDERS = (Path("/usr/share/doc/opencv-doc/examples/data"),)
_MAX_SIDE_PX = 1600
_PART_SAMPLES = 8


def find_pictures(folders: Sequence[Path] = PICTURE_FOLDERS) -> list[Path]:
    """Photographs of the machine, one for each motif (wallpapers come in many sizes)."""
    best: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            wanted = path.suffix.lower() in {".jpg", ".jpeg", ".png"} and path.stem != "screenshot"
            if wanted and path.stat().st_size > 20_000:
                motif = str(path.parent.relative_to(folder)) if "images" in str(path.parent) else str(path)
                if motif not in best or path.stat().st_size > best[motif].stat().st_size:
                    best[motif] = path
    return sorted(best.values())


def find_footage(folders: Sequence[Path] = FOOTAGE_FOLDERS) -> list[Path]:
    """Video files of the machine."""
    return sorted(
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.suffix.lower() in {".avi", ".mp4", ".mkv"} and "bugy" not in path.name
    )


@lru_cache(maxsize=256)
def load_picture(path: Path) -> Image.Image:
    """An RGB picture, at most 1600 pixels wide or high."""
    with Image.open(path) as file:
        file.draft("RGB", (_MAX_SIDE_PX, _MAX_SIDE_PX))
        picture = file.convert("RGB")
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    return picture


@lru_cache(maxsize=64)
def load_footage(path: Path, max_frames: int = 240) -> np.ndarray:
    """About ten frames a second of a video, at most 480 lines high; uint8 (T, H, W, 3)."""
    frames = []
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
        step = max(1, round(rate / 10))
        for index, frame in enumerate(container.decode(video=0)):
            if index % step == 0:
                height = min(480, frame.height)
                frames.append(
                    frame.to_ndarray(format="rgb24", width=frame.width * height // frame.height // 2 * 2, height=height)
                )
            if len(frames) >= max_frames:
                break
    return np.stack(frames)


def pan(rng: random.Random, picture: Image.Image, count: int, width: int, height: int) -> np.ndarray:
    """A camera that moves slowly or fast over a picture, or stands still."""
    aspect = width / height
    box_width = min(picture.width, picture.height * aspect) * rng.uniform(0.25, 0.95)
    box_height = box_width / aspect
    speed = rng.choice([0.0, 0.0, 0.002, 0.01, 0.04]) * box_width
    x, y = rng.uniform(0, picture.width - box_width), rng.uniform(0, picture.height - box_height)
    dx, dy = rng.uniform(-speed, speed), rng.uniform(-speed, speed) / 3
    zoom = 1 + rng.choice([0.0, 0.0, 0.004, -0.004, 0.015])
    frames = []
    for _ in range(count):
        # The outer max: a box as large as the picture may be larger by a rounding error.
        left = max(0.0, min(max(x, 0), picture.width - box_width))
        top = max(0.0, min(max(y, 0), picture.height - box_height))
        box = (left, top, min(left + box_width, picture.width), min(top + box_height, picture.height))
        frames.append(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box)))
        x, y = x + dx, y + dy
        box_width = min(box_width * zoom, picture.width, picture.height * aspect)
        box_height = box_width / aspect
    return np.stack(frames)


def footage(rng: random.Random, video: np.ndarray, count: int, width: int, height: int) -> np.ndarray:
    """A part of a video, scaled to the crop."""
    aspect = width / height
    scale = rng.uniform(0.4, 1.0)
    box_width = min(video.shape[2], video.shape[1] * aspect) * scale
    box_height = box_width / aspect
    left, top = rng.uniform(0, video.shape[2] - box_width), rng.uniform(0, video.shape[1] - box_height)
    box = (left, top, left + box_width, top + box_height)
    start, backwards = rng.randrange(len(video)), rng.random() < 0.3
    frames = []
    for index in range(count):
        position = (start + (-index if backwards else index)) % len(video)
        frames.append(
            np.asarray(Image.fromarray(video[position]).resize((width, height), Image.Resampling.BILINEAR, box=box))
        )
    return np.stack(frames)


def _noise_picture(rng: random.Random, side: int) -> Image.Image:
    """Smooth coloured noise of several scales, as foliage, water or crowds look from afar."""
    seed = np.random.default_rng(rng.getrandbits(32))
    total = np.zeros((side // 2, side, 3), np.float32)
    for cells in (4, 16, 64, 200):
        coarse = seed.integers(0, 256, (max(2, cells // 2), cells, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((side, side // 2), Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float32) * rng.uniform(0.2, 1.0)
    total -= total.min()
    total *= 255 / max(1.0, float(total.max()))
    return Image.fromarray(total.astype(np.uint8))


def _stripes_picture(rng: random.Random, side: int) -> Image.Image:
    """Edges of the sharpness and size of letters: fences, blinds, windows, shelves."""
    seed = np.random.default_rng(rng.getrandbits(32))
    widths = seed.integers(2, rng.choice([8, 30, 90]), side)
    columns = np.repeat(seed.integers(0, 256, (side, 3), dtype=np.uint8), widths, axis=0)[:side]
    picture = np.repeat(columns[None], side // 2, axis=0)
    if rng.random() < 0.5:
        rows = np.repeat(seed.random(side) * 0.8 + 0.2, widths)[: side // 2]
        picture = (picture * rows[:, None, None]).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(picture)).rotate(rng.choice([0, 90, rng.uniform(-30, 30)]))


def _flat_picture(rng: random.Random, side: int) -> Image.Image:
    """A gradient between two colours, often dark, white or the same."""
    pool = [
        (0, 0, 0),
        (255, 255, 255),
        tuple(rng.randint(0, 255) for _ in range(3)),
        tuple(rng.randint(0, 60) for _ in range(3)),
    ]
    first, second = np.asarray(rng.choice(pool), np.float32), np.asarray(rng.choice(pool), np.float32)
    ramp = np.linspace(0, 1, side, dtype=np.float32)[None, :, None]
    return Image.fromarray(np.repeat(first * (1 - ramp) + second * ramp, side // 2, axis=0).astype(np.uint8))


def exposed(rng: random.Random, frames: np.ndarray) -> np.ndarray:
    """Now and then the same pictures in snow, fog, glare or at night: less contrast, and all light, or all dark.

    Args:
        rng: that says whether, and how.
        frames: uint8 (T, H, W, 3).
    """
    if rng.random() > 0.3:
        return frames
    contrast = rng.uniform(0.25, 0.9)
    veil = rng.choice([1.0, rng.uniform(0.7, 1.0), rng.uniform(0.0, 1.0), 0.0]) * 255 * (1 - contrast)
    levels: np.ndarray = (np.arange(256) * contrast + veil).astype(np.uint8)
    changed: np.ndarray = levels[frames]
    return changed


def sway(rng: random.Random, frames: np.ndarray) -> np.ndarray:
    """Let parts of a picture move to and fro on their own, as leaves, water, cloth and crowds do."""
    count, height, width = frames.shape[:3]
    seed = np.random.default_rng(rng.getrandbits(32))
    cells = (max(2, height // rng.randint(8, 40)), max(2, width // rng.randint(8, 60)))
    reach = rng.uniform(1.0, max(1.5, height / 12))
    rows, columns = np.mgrid[:height, :width]
    fields = []
    for _ in range(4):
        coarse = Image.fromarray(seed.standard_normal(cells).astype(np.float32))
        fields.append(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * reach)
    speed = rng.uniform(0.2, 1.5)
    moved = np.empty_like(frames)
    for index in range(count):
        first, second = np.sin(speed * index), np.cos(speed * 0.7 * index)
        down = np.clip(rows + fields[0] * first + fields[1] * second, 0, height - 1).astype(np.int32)
        right = np.clip(columns + fields[2] * first + fields[3] * second, 0, width - 1).astype(np.int32)
        moved[index] = frames[index][down, right]
    return moved


def add_passers_by(rng: random.Random, frames: np.ndarray) -> np.ndarray:
    """Blobs of another texture that cross the picture: people, cars, hands, the edge of a moving object."""
    count, height, width = frames.shape[:3]
    texture = np.asarray(_noise_picture(rng, 640).resize((width, max(height, 2))), np.float32)
    result = frames.astype(np.float32)
    for _ in range(rng.randint(1, 3)):
        radius = (height * rng.uniform(0.3, 2.0), height * rng.uniform(0.3, 3.0))
        x, y = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.3, 1.3) * height
        dx, dy = rng.uniform(-0.06, 0.06) * width, rng.uniform(-0.1, 0.1) * height
        tinted = texture * np.asarray([rng.uniform(0.2, 1.3) for _ in range(3)], np.float32)
        for index in range(count):
            left, right = (int(np.clip(x + dx * index + side * radius[1], 0, width)) for side in (-1, 1))
            columns = (np.arange(left, right) - x - dx * index) / radius[1]
            rows = (np.arange(height) - y - dy * index) / radius[0]
            inside = rows[:, None] ** 2 + columns[None] ** 2 < 1
            result[index, :, left:right][inside] = tinted[:, left:right][inside]
    return np.clip(result, 0, 255).astype(np.uint8)


def _draw_shape(rng: random.Random, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], kind: str) -> None:
    colour = tuple(rng.choice([0, 255, rng.randint(0, 255)]) for _ in range(3))
    if kind == "bar":
        draw.rectangle(box, fill=colour)
    elif kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "line":
        draw.line(box, fill=colour, width=rng.randint(1, 6))
    else:
        side = rng.randint(2, max(3, (box[3] - box[1]) // 2))
        for row, top in enumerate(range(box[1], box[3], side)):
            for left in range(box[0] + row % 2 * side, box[2], 2 * side):
                draw.rectangle((left, top, left + side - 1, top + side - 1), fill=colour)


_SHAPES = ("bar", "bar", "disc", "line", "checks")


def graphics(rng: random.Random, count: int, width: int, height: int) -> np.ndarray:
    """Flat shapes with the sharpest edges there are, some of which move: test patterns, charts, games, interfaces."""

    def random_box() -> tuple[int, int, int, int]:
        left, top = rng.randint(-width // 8, width), rng.randint(-height // 2, height)
        return left, top, left + rng.randint(3, max(4, width // 3)), top + rng.randint(3, max(4, height))

    base = Image.new("RGB", (width, height), tuple(rng.choice([0, 255, rng.randint(0, 255)]) for _ in range(3)))
    for _ in range(rng.choice([0, 3, 8, 20])):
        _draw_shape(rng, ImageDraw.Draw(base), random_box(), rng.choice(_SHAPES))
    movers = []
    for _ in range(rng.choice([0, 1, 1, 3])):
        box, kind = random_box(), rng.choice(_SHAPES)
        movers.append((box, kind, rng.uniform(-0.05, 0.05) * width, rng.uniform(-0.2, 0.2) * height, rng.random()))
    frames = []
    for index in range(count):
        picture = base.copy()
        for box, kind, dx, dy, looks in movers:
            x, y = round(dx * index) % (2 * width) - width // 2, round(dy * index) % (2 * height) - height // 2
            moved = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
            _draw_shape(random.Random(looks), ImageDraw.Draw(picture), moved, kind)
        frames.append(np.asarray(picture))
    return np.stack(frames)


def procedural(rng: random.Random, count: int, width: int, height: int) -> np.ndarray:
    """A made-up background, still or moving."""
    make = rng.choices([_noise_picture, _stripes_picture, _flat_picture], [3, 1, 3])[0]
    return pan(rng, make(rng, 1280), count, width, height)


class BackgroundSource:
    """Random backgrounds out of what the machine has.

    Args:
        pictures, videos: to choose from.
        graphics_share: of the made-up backgrounds, how many are :func:`graphics`.
    """

    def __init__(self, pictures: Sequence[Path] = (), videos: Sequence[Path] = (), graphics_share: float = 0.0) -> None:
        self._graphics_share = graphics_share
        self._pictures = list(pictures)
        self._videos = list(videos)

    def shot(self, rng: random.Random, count: int, width: int, height: int) -> np.ndarray:
        """One shot without a cut; uint8 (count, height, width, 3)."""
        kinds = ["procedural"] + ["picture"] * (3 if self._pictures else 0) + ["footage"] * (3 if self._videos else 0)
        kind = rng.choice(kinds)
        if kind == "footage":
            return footage(rng, load_footage(rng.choice(self._videos)), count, width, height)
        if kind == "picture":
            frames = pan(rng, load_picture(rng.choice(self._pictures)), count, width, height)
        # Where there are none, nothing is drawn for them, and made films stay what they are.
        elif self._graphics_share and rng.random() < self._graphics_share:
            frames = graphics(rng, count, width, height)
        else:
            frames = procedural(rng, count, width, height)
        if rng.random() < 0.3:
            frames = sway(rng, frames)
        if rng.random() < 0.15:
            frames = add_passers_by(rng, frames)
        return frames

    def frames(self, rng: random.Random, count: int, width: int, height: int) -> np.ndarray:
        """Several shots with cuts, changes of light and flashes; uint8 (count, height, width, 3)."""
        # A long clip is cut and flashes as often as the short ones that could be cut out of it.
        parts = max(1, count // _PART_SAMPLES)
        number = sum(rng.choices([0, 1, 2], [5, 3, 1])[0] for _ in range(parts))
        cuts = sorted({0, count, *(rng.randint(1, count) for _ in range(number))})
        shots = [self.shot(rng, end - start, width, height) for start, end in itertools.pairwise(cuts)]
        pictures = np.concatenate(shots)
        gain = np.full(count, rng.choice([1.0, 1.0, rng.uniform(0.3, 1.0), rng.uniform(1.0, 2.0)]), np.float32)
        lift = np.full(count, rng.choice([0.0, 0.0, rng.uniform(0, 120)]), np.float32)
        if rng.random() < 0.16:
            # Overexposed: white letters hardly stand out.
            gain[:] = rng.uniform(0.3, 0.8)
            lift[:] = 255 * (1 - gain) * rng.uniform(0.7, 1.0)
        lift += np.linspace(0, rng.choice([0, 0, rng.uniform(-80, 80)]), count, dtype=np.float32)
        for _ in range(parts):
            if rng.random() < 0.08:
                lift[rng.randrange(count)] += rng.choice([-1, 1]) * rng.uniform(60, 255)
        if rng.random() < 0.08:
            # A fade of the picture to or from black or white, under captions that stay.
            length = min(count, rng.randint(4, 24))
            start = rng.randint(0, count - length)
            ramp = np.clip(np.linspace(rng.uniform(-1, 0.5), rng.uniform(0.5, 2), length, dtype=np.float32), 0, 1)
            ramp = ramp if rng.random() < 0.5 else ramp[::-1]
            faded = slice(start, start + length)
            gain[faded], lift[faded] = gain[faded] * ramp, lift[faded] * ramp + (1 - ramp) * rng.choice([0, 0, 255])
        if rng.random() < 0.04:
            lift += np.asarray([rng.uniform(-25, 25) for _ in range(count)], np.float32)
        for picture, factor, term in zip(pictures, gain.tolist(), lift.tolist(), strict=True):
            if factor != 1.0 or term != 0.0:
                levels = np.clip(np.arange(256, dtype=np.float32) * factor + term, 0, 255).astype(np.uint8)
                picture[:] = levels[picture]
        return pictures
