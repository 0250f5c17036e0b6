"""Pictures of what the model got wrong."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from caption_extents.pictures import to_picture
from caption_extents.training.evaluate import Examined, evidence_at, false_and_missed
from caption_extents.video.video import Decoding, open_local

_AROUND = 2
"""Samples shown on either side of a wrong end."""

_WIDTH_PX = 960


def write_worst_cases(examined: list[Examined], folder: Path, limit: int) -> int:
    """One picture for each wrong caption, the samples around both its ends; returns how many were written.

    The name says which video, whether the caption was missed or invented, and its samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for one in sorted(examined, key=lambda e: -sum(map(len, false_and_missed(e)))):
        false, missed = false_and_missed(one)
        wrong = [("false", extent) for extent in false] + [("missed", extent) for extent in missed]
        wrong = wrong[: limit - written]
        if not wrong:
            continue
        last = len(one.truth)
        wanted = {
            sample
            for _, extent in wrong
            for end in extent
            for sample in range(max(0, end - _AROUND), min(last, end + _AROUND) + 1)
        }
        pictures = _pictures(one, wanted)
        for kind, extent in wrong:
            rows = [sample for end in extent for sample in range(end - _AROUND, end + _AROUND + 1) if sample in wanted]
            name = f"{one.labelled.name}-{kind}-{extent[0]}-{extent[1]}.png"
            if not rows:  # a label may lie past the video's end
                continue
            _sheet(one, pictures, rows).save(folder / name)
            written += 1
    return written


def _pictures(one: Examined, wanted: set[int]) -> dict[int, Image.Image]:
    found: dict[int, Image.Image] = {}
    with open_local(one.labelled.video, one.labelled.rate, Decoding()) as video:
        for batch in video.samples(one.labelled.crop):
            size = (max(1, round(_WIDTH_PX * batch.height / batch.width)), _WIDTH_PX)
            for sample in range(batch.first_sample, batch.first_sample + len(batch)):
                if sample in wanted:
                    y, u, v = (plane[sample - batch.first_sample] for plane in batch.planes)
                    found[sample] = Image.fromarray(to_picture((y, u, v), size))
    return found


def _sheet(one: Examined, pictures: dict[int, Image.Image], rows: list[int]) -> Image.Image:
    height = max(pictures[row].height for row in rows) + 14
    sheet = Image.new("RGB", (_WIDTH_PX, height * len(rows)))
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        sheet.paste(pictures[row], (0, index * height + 14))
        evidence = evidence_at(one, row) if row < len(one.truth) else "last sample"
        draw.text((2, index * height + 1), f"sample {row}; to the next: {evidence}", fill=(255, 255, 0))
    return sheet
