"""Captions of a video file, without a store: decoding, labelling and finding captions in one call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

from caption_extents.captions.caption import Caption
from caption_extents.captions.extents import DecodingCosts, decode_captions
from caption_extents.captions.stream import CaptionStream
from caption_extents.model.captioner import CaptionModel
from caption_extents.model.labeller import label_parts, label_samples
from caption_extents.region import CropRegion
from caption_extents.video.video import Decoding, Video, exact_rate, open_local

Crop = CropRegion | tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of the displayed picture."""


def find_captions(
    path: str | os.PathLike[str],
    crop: Crop,
    sample_rate: float | Fraction = 10,
    *,
    device: str = "auto",
    model: CaptionModel | None = None,
) -> list[Caption]:
    """Find the captions of a video file.

    Args:
        path: a file of this machine.
        crop: where the captions stand: left, top, right and bottom as fractions of the displayed picture.
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        device: where to decode and compute: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for a GPU if there is one.
        model: an opened model, which stays open; by default the package's own is opened on ``device``, and closed.

    Returns:
        The captions, in order.

    Raises:
        InputError: (a ValueError) the file, the region or the device cannot be used.
        ProcessingError: (a RuntimeError) the video cannot be decoded.
    """
    with ExitStack() as opened:
        video, model = _open(opened, path, sample_rate, device, model)
        probabilities = label_samples(model, video.samples(crop))
        return decode_captions(probabilities, video.sample_rate, DecodingCosts.of(model))


def iter_captions(
    path: str | os.PathLike[str],
    crop: Crop,
    sample_rate: float | Fraction = 10,
    *,
    device: str = "auto",
    model: CaptionModel | None = None,
) -> Iterator[Caption]:
    """Find the captions of a video file, and give each as soon as it is sure, while the video is still decoded.

    The captions are those of :func:`find_captions`; only their confidence may differ a little, because what comes later
    in the video has a part in it. Arguments and errors are the same. Work begins with the first caption that is asked
    for, and ends when the iterator is closed.

    Yields:
        The captions, in order.
    """
    with ExitStack() as opened:
        video, model = _open(opened, path, sample_rate, device, model)
        stream = CaptionStream(video.sample_rate, DecodingCosts.of(model))
        for probabilities in label_parts(model, video.samples(crop)):
            yield from stream.add(probabilities)
        yield from stream.end()


def _open(
    opened: ExitStack,
    path: str | os.PathLike[str],
    sample_rate: float | Fraction,
    device: str,
    model: CaptionModel | None,
) -> tuple[Video, CaptionModel]:
    model = model or opened.enter_context(CaptionModel(device=device))
    gpu = (model.device.index or 0) if model.device.type == "cuda" else None
    decoding = Decoding(gpu, only_gpu=device.startswith("cuda"))
    return opened.enter_context(open_local(Path(path), exact_rate(sample_rate), decoding)), model
