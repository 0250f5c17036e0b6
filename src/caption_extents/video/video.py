"""Opening a video and decoding its samples. The decoder is chosen when the video is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Protocol

from caption_extents.children import Children
from caption_extents.closing import ClosesItself
from caption_extents.errors import InputError, VideoError
from caption_extents.options import check_count, check_device, exact_rate
from caption_extents.region import CropRegion
from caption_extents.video.crop import CropPixels, resolve_crop
from caption_extents.video.decoders.base import SampleDecoder
from caption_extents.video.decoders.cpu import CpuDecoder
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess, reader_pool
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.capabilities import gpu_cannot_decode, why_not_nvdec
from caption_extents.video.nvdec.decoder import NvdecDecoder
from caption_extents.video.nvdec.scheduler import SegmentReader
from caption_extents.video.nvdec.sessions import GpuSessions, SessionPool
from caption_extents.video.timeline import Timeline, build_timeline
from caption_extents.video.truncation import missing_bytes


@dataclass(frozen=True)
class Decoding:
    """How a video's samples are decoded.

    Attributes:
        gpu: number of the GPU that decodes; None for the CPU.
        only_gpu: whether a video that the GPU cannot decode is an error; otherwise it is decoded on the CPU.
        threads: number of threads of the CPU decoder (0: one per core), or of sessions on a GPU (0: one per decode
            engine plus one spare).
        isolated: limits of a child process that reads and decodes the video on the CPU; None to use this process.
        stream_index: of the video stream, as FFmpeg counts them; None for the film, as players choose it.
    """

    gpu: int | None = None
    only_gpu: bool = False
    threads: int = 0
    isolated: DecoderLimits | None = None
    stream_index: int | None = None

    @classmethod
    def on(cls, device: str, threads: int = 0, stream_index: int | None = None) -> Decoding:
        """For a device by its name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            InputError: there is no such device.
        """
        check_device("device", device)
        check_count("threads", threads, 0)
        kind, _, number = device.partition(":")
        count = driver.device_count()
        if kind == "cuda" and int(number or 0) >= count:
            raise InputError(f"device {device!r} is not there: this machine has {count or 'no'} CUDA devices")
        on_gpu = kind == "cuda" or (kind == "auto" and count > 0)
        return cls(int(number or 0) if on_gpu else None, kind == "cuda", threads, stream_index=stream_index)


class Video(ClosesItself):
    """A video whose samples are known; a context manager that closes it.

    Made by :func:`open_video`.

    Attributes:
        facts: what is known of the file.
        timeline: which frame each sample shows.
    """

    def __init__(self, facts: VideoFacts, timeline: Timeline, decoding: Decoding) -> None:
        self.facts, self.timeline, self._decoding = facts, timeline, decoding
        self._opened, self._closed = ExitStack(), False

    def close(self) -> None:
        """Stop decoding and free everything; the video cannot be used any more."""
        self._closed = True
        self._opened.close()

    @property
    def sample_rate(self) -> Fraction:
        """Samples a second."""
        return self.timeline.frame_rate

    @property
    def first_sample_seconds(self) -> Fraction:
        """When the first sample is shown on a player's clock, which starts where the container does."""
        return self.facts.first_sample_seconds

    @property
    def sample_count(self) -> int:
        """How many samples the video has."""
        return len(self.timeline)

    @property
    def truncation(self) -> str | None:
        """For a truncated file, a description of how much of it is present; None if the file is complete."""
        there, missing = self.facts.size_bytes, self.facts.missing_bytes
        if not missing:
            return None
        seconds = float(len(self.timeline) / self.timeline.frame_rate)
        length = f"{seconds:.1f} seconds" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02} minutes"
        return (
            f"it holds {there:,} of {there + missing:,} bytes ({there / (there + missing):.0%}), "
            f"the first {length}; the download or copy was cut off"
        )

    def check_whole(self, name: str) -> None:
        """Raise a VideoError if the file was cut off, under the name by which a person knows it."""
        if self.truncation:
            advice = "Fetch it again, or give `partial` to take it as far as it goes"
            raise VideoError(f"{name!r} ends early: {self.truncation}. {advice}")

    @property
    def width(self) -> int:
        """Width of the displayed picture in pixels."""
        return self.facts.display_width

    @property
    def height(self) -> int:
        """Height of the displayed picture in pixels."""
        return self.facts.display_height

    def samples(self, crop: CropRegion | tuple[float, float, float, float] | CropPixels) -> SampleDecoder:
        """The samples, cropped, as batches of NumPy arrays; iterate over them once.

        Args:
            crop: left, top, right and bottom as fractions of the displayed picture.

        Raises:
            CropError: the region cannot be used.
            InputError: the video is closed, or only a GPU was to decode it and cannot.
        """
        if self._closed:
            raise InputError(f"{str(self.facts.path)!r} is closed; open it again")
        if not isinstance(crop, CropPixels):
            crop = resolve_crop(CropRegion.of(crop), self.facts)
        decoder = self._open_decoder(crop)
        self._opened.callback(decoder.close)
        return decoder

    def _open_decoder(self, crop: CropPixels) -> SampleDecoder:
        decoding = self._decoding
        if decoding.gpu is None:
            return CpuDecoder(self.facts, self.timeline, crop, threads=decoding.threads)
        reason = why_not_nvdec(self.facts, decoding.gpu)
        if reason is None:
            return self._open_nvdec(crop, decoding.gpu)
        if decoding.only_gpu:
            raise gpu_cannot_decode(self.facts, reason)
        return CpuDecoder(self.facts, self.timeline, crop, threads=decoding.threads, fallback_reason=reason)

    def _open_nvdec(self, crop: CropPixels, gpu: int) -> SampleDecoder:
        return self._nvdec(crop, GpuSessions(SessionPool(gpu)))

    def _nvdec(
        self, crop: CropPixels, sessions: GpuSessions, remote_reader: SegmentReader | None = None
    ) -> NvdecDecoder:
        return NvdecDecoder(
            self.facts,
            self.timeline,
            crop,
            sessions,
            session_count=self._decoding.threads,
            remote_reader=remote_reader,
            only_gpu=self._decoding.only_gpu,
        )


def open_video(
    path: str | os.PathLike[str],
    sample_rate: float | Fraction = 10,
    *,
    device: str = "auto",
    threads: int = 0,
    stream: int | None = None,
) -> Video:
    """Open a video file and find its samples.

    Sample k is the frame that a player shows k / ``sample_rate`` seconds after the first frame. A truncated file is
    opened as far as it goes; :attr:`Video.truncation` says how much of it is missing. Samples whose frame cannot be
    decoded show the last good frame; the decoder lists them in ``undecodable_samples``.

    Args:
        path: a file of this machine.
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        device: where to decode: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for a GPU if there is one; with ``auto``,
            a video that the GPU cannot decode is decoded on the CPU.
        threads: of a CPU decoder, 0 for one for each core; of a GPU, sessions, 0 for as many as keep its engines busy.
        stream: index of the video stream, as FFmpeg counts them; by default the film, as players choose it.

    Returns:
        The opened video, a context manager.

    Raises:
        VideoError: the file cannot be used.
        InputError: there is no such device.
    """
    return open_local(Path(path), exact_rate("sample_rate", sample_rate), Decoding.on(device, threads, stream))


def open_local(path: Path, rate: Fraction, decoding: Decoding, children: Children | None = None) -> Video:
    """Open a local file like :func:`open_video`, with an explicit :class:`Decoding`.

    Args:
        path: the file.
        rate: samples a second.
        decoding: how to decode it.
        children: of the run.

    Raises:
        VideoError: it cannot be used.
        DecodeError: the process that reads it died or went past a limit.
    """
    if decoding.isolated is not None:
        return _ChildProcessVideo(
            VideoReaderProcess(path, rate, decoding.isolated, reader_pool(children), decoding.stream_index), decoding
        )
    facts = probe(path, decoding.stream_index)
    return Video(facts, build_timeline(facts, rate), decoding)


class _ChildProcessVideo(Video):
    """A video that a child process reads and decodes."""

    def __init__(self, child: VideoReaderProcess, decoding: Decoding) -> None:
        child.wait_until_indexed()
        super().__init__(child.facts, child.timeline, decoding)
        self._child = child
        self._opened.callback(child.close)

    def _open_decoder(self, crop: CropPixels) -> SampleDecoder:
        return self._child.open_decoder(crop, threads=self._decoding.threads)


class StartedVideo(Video):
    """A video that child processes already read and decode on a GPU.

    Args:
        reader: child process that reads the video and passes its segments to the sessions.
        sessions: decoder sessions on the GPU.
        decoding: options of decoding.
    """

    def __init__(self, reader: VideoReaderProcess, sessions: GpuSessions, decoding: Decoding) -> None:
        reader.wait_until_indexed()
        super().__init__(reader.facts, reader.timeline, decoding)
        self._reader, self._sessions = reader, [sessions]

    def _open_nvdec(self, crop: CropPixels, gpu: int) -> SampleDecoder:
        if not self._sessions:  # they ended with the first decoder
            return super()._open_nvdec(crop, gpu)
        return self._nvdec(crop, self._sessions.pop(), self._reader.segments)


class ArrivingFile(Protocol):
    """A file that is being fetched; see :class:`~caption_extents.storage.download.Download`."""

    path: Path

    def open(self) -> BinaryIO:
        """A reader that waits for bytes which have not come."""
        ...

    def wait(self) -> None:
        """Return when all bytes have come."""
        ...

    def close(self) -> None:
        """Give up what has not come; readers fail."""
        ...


@contextmanager
def open_arriving(file: ArrivingFile, rate: Fraction, decoding: Decoding) -> Iterator[Video]:
    """Open a file that is still arriving: it is indexed while it arrives, and opened when it is complete.

    Args:
        file: the file.
        rate: samples a second.
        decoding: how to decode it, when all of it has come.

    Raises:
        VideoError: it cannot be used.
        StoreAccessError: it did not come.
    """
    try:
        try:
            facts = probe(file.path, decoding.stream_index, file.open)
            timeline = build_timeline(facts, rate, file.open)
            file.wait()
            video = Video(replace(facts, missing_bytes=missing_bytes(file.path)), timeline, decoding)
        except VideoError:
            # The error may be due to slow arrival (the time limit of opening): wait for the whole file and try again.
            file.wait()
            video = open_local(file.path, rate, decoding)
        with video:
            yield video
    finally:
        file.close()
