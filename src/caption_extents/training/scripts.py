"""Trains the network that tells scripts apart: ``python -m caption_extents.training.scripts --out FILE``.

Random lines in every script that this machine's fonts can write, drawn as captions over made pictures, and cut out as
:mod:`caption_extents.ocr.ink` does. Some ten minutes on two cores. Fonts that are held out judge it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from caption_extents.machine import usable_cores
from caption_extents.ocr.ink import letters_of_line
from caption_extents.ocr.scripts import INPUT_PX, to_input
from caption_extents.training import backgrounds, fonts
from caption_extents.training.captions import blend, draw_caption, random_style
from caption_extents.training.text import random_line

CLASSES = {
    "latin": ("latin", "central-european", "turkish"),
    "vietnamese": ("vietnamese",),
    "cyrillic": ("cyrillic",),
    "greek": ("greek",),
    "han": ("han", "han-traditional", "japanese"),
    "hangul": ("hangul",),
    "arabic": ("arabic", "urdu"),
    **{
        name: (name,)
        for name in (
            *("hebrew", "devanagari", "bengali", "tamil", "telugu", "kannada", "malayalam", "gujarati", "gurmukhi"),
            *("sinhala", "thai", "lao", "khmer", "burmese", "ethiopic", "armenian", "georgian"),
        )
    },
}
"""What is told apart, and the scripts of :mod:`caption_extents.training.text` that each is drawn in."""

_NAMES = list(CLASSES)
_BATCH = 64
_SIZES_PX = (16, 44)


class ScriptNetwork(nn.Module):
    """Four convolutions, and the mean over the line of what they find."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (1, 24, 48, 64, 96)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Lines, float32 (B, 1, 32, W), 1 for ink, to logits (B, classes)."""
        x = letters
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = functional.max_pool2d(functional.relu(norm(layer(x))), 2)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))  # type: ignore[no-any-return]


def draw_line(rng: random.Random, name: str) -> np.ndarray | None:
    """A line in a script, float32 (1, 1, 32, W), cut out of a made picture; None if nothing was found there."""
    size = rng.randint(*_SIZES_PX)
    style = random_style(rng, size, rng.choice(CLASSES[name]))
    line = random_line(rng, style.script, rng.randint(4, 28))
    height, width = size * 3, 1100
    overlay = draw_caption(style, [line], width, height, height - size)
    rows, columns = np.flatnonzero(overlay.ink.max(1) > 0.5), np.flatnonzero(overlay.ink.max(0) > 0.5)
    if not len(rows) or columns[0] == 0 or columns[-1] == width - 1:
        return None
    picture = backgrounds.procedural(rng, 1, width, height)[0].copy()
    blend(picture, overlay.colour, overlay.alpha)
    if rng.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, rng.randint(40, 90)]
        picture = cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_COLOR)
    off = [rng.randint(-size // 8, size // 8) for _ in range(4)]
    left, top, right, bottom = (int(side) for side in (columns[0], rows[0], columns[-1], rows[-1]))
    found = letters_of_line(picture, (left + off[0], top + off[1], right + off[2], bottom + off[3]))
    return to_input(found[0]) if found else None


def draw_lines(seed: int, count: int, is_held_out: bool) -> list[tuple[np.ndarray, int]]:
    """Lines and the numbers of their classes."""
    rng = random.Random(seed)
    _choose_fonts(is_held_out)
    lines = list[tuple[np.ndarray, int]]()
    while len(lines) < count:
        number = rng.randrange(len(_NAMES))
        line = draw_line(rng, _NAMES[number])
        if line is not None:
            lines.append((line.astype(np.float16), number))
    return lines


def _choose_fonts(is_held_out: bool) -> None:
    """Draw with the families that are held out, or with the others; with all where only one kind is there."""
    everything = fonts.installed_fonts

    @cache
    def chosen(language: str) -> dict[str, tuple[fonts.FontFile, ...]]:
        there = everything(language)
        return {name: files for name, files in there.items() if fonts.is_held_out(name) == is_held_out} or there

    fonts.fonts_for = chosen


def _together(lines: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines side by side in one array, each repeated until it is as wide as the widest."""
    width = max(line.shape[3] for line, _ in lines)
    batch = np.concatenate([np.tile(line, (1, 1, 1, -(-width // line.shape[3])))[..., :width] for line, _ in lines])
    return torch.from_numpy(batch.astype(np.float32)), torch.tensor([number for _, number in lines])


def train(lines: list[tuple[np.ndarray, int]], epochs: int) -> ScriptNetwork:
    """A network for some lines."""
    torch.manual_seed(1)
    network = ScriptNetwork(len(_NAMES))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
    steps = epochs * (len(lines) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    rng = random.Random(1)
    by_width = sorted(range(len(lines)), key=lambda number: lines[number][0].shape[3])
    for epoch in range(epochs):
        begun, losses = time.monotonic(), list[float]()
        batches = [by_width[at : at + _BATCH] for at in range(0, len(lines) - _BATCH + 1, _BATCH)]
        rng.shuffle(batches)
        for numbers in batches:
            letters, classes = _together([lines[number] for number in numbers])
            loss = functional.cross_entropy(network(letters), classes, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {time.monotonic() - begun:.0f} s", flush=True)
    return network.eval()


def evaluate(network: ScriptNetwork, lines: list[tuple[np.ndarray, int]]) -> dict[str, float]:
    """Share of the lines that are recognised, by class."""
    right: dict[str, list[bool]] = {name: [] for name in _NAMES}
    with torch.inference_mode():
        for line, number in lines:
            found = int(network(torch.from_numpy(line.astype(np.float32))).argmax())
            right[_NAMES[number]].append(found == number)
    return {name: float(np.mean(hits)) for name, hits in right.items() if hits}


def export(network: ScriptNetwork, path: Path) -> None:
    """Write the network as ONNX, with the names of its classes."""
    shape = torch.zeros(1, 1, INPUT_PX, 320)
    axes = {"letters": {0: "n", 3: "width"}, "logits": {0: "n"}}
    torch.onnx.export(
        network,
        (shape,),
        str(path),
        input_names=["letters"],
        output_names=["logits"],
        dynamic_axes=axes,
        dynamo=False,
    )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"scripts": json.dumps(_NAMES)})
    onnx.save(model, str(path))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    parts = 16
    with ProcessPoolExecutor(usable_cores()) as pool:
        drawn = pool.map(draw_lines, range(parts), [arguments.lines // parts] * parts, [False] * parts)
        judging = pool.submit(draw_lines, 1000, 2400, True)
        lines = [line for some in drawn for line in some]
        held_out = judging.result()
    print(f"{len(lines)} lines drawn", flush=True)
    network = train(lines, arguments.epochs)
    shares = evaluate(network, held_out)
    for name, share in shares.items():
        print(f"{name}: {share:.1%}")
    print(f"mean {np.mean(list(shares.values())):.2%}")
    export(network, arguments.out)


if __name__ == "__main__":
    main()
