"""Captions of a video file, without a store: decoding, labelling and finding captions in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np

from caption_extents.captions.extents import Caption, DecodingCosts, decode_captions
from caption_extents.captions.stream import CaptionStream
from caption_extents.errors import InputError, wrap_unexpected_errors
from caption_extents.labels import Label
from caption_extents.model.captioner import CaptionModel
from caption_extents.model.opened import check_model_device
from caption_extents.options import Job, check_device, check_share, device_number, exact_rate
from caption_extents.pipeline.clocks import EXTRACTION, StageClock
from caption_extents.pipeline.stages import LOOSE_END_SECONDS, Extraction
from caption_extents.region import CropRegion
from caption_extents.video.video import Decoding, open_local
from caption_extents.watchdog import Watchdog

Crop = CropRegion | tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of the displayed picture."""


def find_captions(
    path: str | os.PathLike[str],
    crop: Crop,
    sample_rate: float | Fraction = 10,
    *,
    device: str = "auto",
    model: CaptionModel | None = None,
    partial: bool = False,
    max_undecodable_share: float = Job.max_undecodable_share,
    stream: int | None = None,
) -> list[Caption]:
    """Find the captions of a video file.

    Args:
        path: path of a local file.
        crop: region of the captions: left, top, right and bottom as fractions of the displayed picture.
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        device: where to decode and compute: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for a GPU if there is one.
        model: an opened model, which is not closed; by default the package's own, opened on ``device`` and closed.
        partial: process the part that is present of a truncated file, such as an incomplete download.
        max_undecodable_share: fail when more than this share of the samples cannot be decoded.
        stream: index of the video stream, as FFmpeg counts them; by default the film, as players choose it.

    Returns:
        The captions, in order.

    Raises:
        InputError: (a ValueError) the file, the region or the device cannot be used.
        ProcessingError: (a RuntimeError) the video cannot be decoded, or decoding hangs.
    """
    search = _CaptionSearch(path, crop, sample_rate, device, model, partial, max_undecodable_share, stream)
    with wrap_unexpected_errors(), search:
        probabilities, video = np.concatenate(list(search.parts())), search.video
        return decode_captions(
            probabilities, video.sample_rate, search.costs, first_sample_seconds=video.first_sample_seconds
        )


def iter_captions(
    path: str | os.PathLike[str],
    crop: Crop,
    sample_rate: float | Fraction = 10,
    *,
    device: str = "auto",
    model: CaptionModel | None = None,
    partial: bool = False,
    max_undecodable_share: float = Job.max_undecodable_share,
    stream: int | None = None,
) -> Iterator[Caption]:
    """Find the captions of a video file, and yield each as soon as it is final, while the video is still being decoded.

    The captions, arguments and errors are those of :func:`find_captions`, except that the result may differ where two
    label sequences are equally likely, and that the confidence of a caption is computed from the pairs that are known
    when it is yielded. Arguments are checked at once; the file is opened when the first caption is requested, and work
    stops when the iterator is closed.

    Returns:
        An iterator over the captions, in order.
    """
    return _CaptionSearch(path, crop, sample_rate, device, model, partial, max_undecodable_share, stream).captions()


@dataclass
class _CaptionSearch:
    """A video and a model, opened to find captions; a context manager that closes what it has opened."""

    path: str | os.PathLike[str]
    crop: Crop
    sample_rate: float | Fraction
    device: str
    given_model: CaptionModel | None
    partial: bool
    max_undecodable_share: float
    stream: int | None

    def __post_init__(self) -> None:
        check_device("device", self.device)
        check_share("max_undecodable_share", self.max_undecodable_share)
        if not isinstance(self.path, (str, os.PathLike)):
            raise InputError(f"path is {self.path!r}; give a file's path")
        if self.given_model is not None and not isinstance(self.given_model, CaptionModel):
            raise InputError(f"model is {self.given_model!r}; give a CaptionModel")
        self.region, self.rate = CropRegion.of(self.crop), exact_rate("sample_rate", self.sample_rate)
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with self._opened:
            self.model = self.given_model or self._opened.enter_context(CaptionModel(device=self.device))
            check_model_device(self.device, str(self.model.device))
            self.costs = DecodingCosts.of(self.model)
            gpu = None if self.model.device == "cpu" else device_number(self.model.device)
            decoding = Decoding(gpu, only_gpu=self.device.startswith("cuda"), stream_index=self.stream)
            self.video = self._opened.enter_context(open_local(Path(self.path), self.rate, decoding))
            if not self.partial:
                self.video.check_whole(str(self.path))
            self._opened = self._opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def captions(self) -> Iterator[Caption]:
        """The captions, each as soon as it is final."""
        found = self._found()
        try:
            while True:
                with wrap_unexpected_errors():  # and not around what the caller does between two captions
                    caption = next(found, None)
                if caption is None:
                    return
                yield caption
        finally:
            found.close()

    def _found(self) -> Generator[Caption]:
        with self:
            video = self.video
            stream = CaptionStream(video.sample_rate, self.costs, first_sample_seconds=video.first_sample_seconds)
            for probabilities in self.parts():
                yield from stream.add(probabilities)
            yield from stream.end()

    def parts(self) -> Iterator[np.ndarray]:
        """Probabilities of the pairs, in order; fails when too much cannot be decoded."""
        loose = LOOSE_END_SECONDS * self.rate if self.video.truncation else 0
        samples = Extraction(
            self.video.samples(self.region),
            self.video.sample_count,
            self.max_undecodable_share,
            Watchdog(),
            StageClock(EXTRACTION),
            math.ceil(loose),
        )
        with closing(samples):
            yield np.empty((0, 2, len(Label)), np.float32)
            yield from self.model.label_parts(samples)
