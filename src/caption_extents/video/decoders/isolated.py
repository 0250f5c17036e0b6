"""Reading and decoding a video in a child process, so that a crash of a codec becomes an error of the run.

The child probes the file and places the samples; then it either decodes and crops, or it reads packets that another
process decodes. All its messages are validated against the expected number and size of arrays. Before it opens the
file, it drops the rights that decoding does not need: it cannot write files, and its address space is limited.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from caption_extents.children import Channel, ChannelError, Child, Children, Pool
from caption_extents.closing import ClosesItself
from caption_extents.errors import DecodeError, InputError, StallError, VideoError
from caption_extents.options import Job
from caption_extents.samples import SampleBatch
from caption_extents.spawning import READER
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import BATCH_SAMPLES, MIN_FRAME_PX, PictureChange
from caption_extents.video.demux import MAX_SIDE_PX
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.nvdec.segments import (
    PACKET_NUMBERS,
    PackedSegment,
    Span,
    pack,
    read_beginning,
    read_segments,
)
from caption_extents.video.timeline import MAX_FRAME_SECONDS, MAX_PACKETS, MAX_SAMPLES, Timeline, build_timeline
from caption_extents.watchdog import tell_progress_to

if TYPE_CHECKING:
    from caption_extents.video.decoders.cpu import CpuDecoder

_MAX_SEGMENT_BYTES = 4 << 30
_FORMAT_NAME = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True)
class DecoderLimits:
    """Limits of a decoding process.

    Attributes:
        memory_bytes: limit of its address space, libraries included.
        stall_seconds: the process is killed if it sends nothing for this long.
    """

    memory_bytes: int = Job.isolate_memory_mib << 20
    stall_seconds: float = Job.stall_seconds


def reader_pool(children: Children | None = None, most_idle: int = 0) -> Pool[Child]:
    """Processes that read videos; they are started in a registry."""
    registry = children or Children()
    return Pool(lambda: registry.start(READER), most_idle)


class VideoReaderProcess(ClosesItself):
    """A video opened by a child process, which starts at once; a context manager that ends the child.

    Args:
        path: a file of this machine.
        rate: samples a second.
        limits: of the child.
        pool: where the child comes from; by default it is started for this video alone.
        stream_index: of the video stream, as FFmpeg counts them; None for the film, as players choose it.
        owner: whose video it is.
        reads_beginning: whether to read the first packets for :meth:`take_beginning`.

    Attributes:
        facts: of the video, when it has been probed.
        timeline: its samples, when it has been indexed.

    Raises (when the context is entered):
        VideoError: the video cannot be used.
        DecodeError: the child died, or nothing came from it in time.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        limits: DecoderLimits,
        pool: Pool[Child] | None = None,
        stream_index: int | None = None,
        *,
        owner: str = "",
        reads_beginning: bool = False,
    ) -> None:
        self.facts: VideoFacts
        self._beginning: PackedSegment | None = None
        self.timeline: Timeline
        self._path, self._rate, self._limits = path, rate, limits
        self._asked = self._is_closed = False
        self._changing = threading.Lock()
        self._indexing = threading.Lock()
        self._is_probed = self._is_indexed = False
        self._index_error: BaseException | None = None
        self._pool = pool or reader_pool()
        self._owner = owner
        self._child = self._pool.take(owner)
        self._child.stall_seconds = limits.stall_seconds
        self._is_idle = False
        """Whether the child has nothing left to do, and waits for a request or for another video."""
        self._send(
            {
                "path": str(path),
                "rate": str(rate),
                "memory_bytes": limits.memory_bytes,
                "stream": stream_index,
                "reads_beginning": reads_beginning,
            }
        )

    def __enter__(self) -> VideoReaderProcess:
        self.wait_until_indexed()
        return self

    def close(self) -> None:
        """End the child, whatever it is doing, or give it back if it has done everything."""
        with self._changing:
            is_idle, was_closed = self._is_idle, self._is_closed
            self._is_idle, self._is_closed = False, True
        if is_idle:
            self._pool.give_back(self._child, self._owner)
        elif not was_closed:
            self._child.close()

    def wait_until_probed(self) -> None:
        """Wait until :attr:`facts` are known, and what :meth:`take_beginning` gives; see :meth:`wait_until_indexed`."""
        with self._indexing, self._remembering():
            if not self._is_probed:
                self._read_facts()

    def take_beginning(self) -> PackedSegment | None:
        """The first packets, with which decoders get ready; None if they cannot be sent, or have been taken."""
        beginning, self._beginning = self._beginning, None
        return beginning

    def wait_until_indexed(self) -> None:
        """Wait until :attr:`timeline` is known as well; may be called repeatedly, from several threads.

        Raises:
            VideoError: the video cannot be used.
            DecodeError: the child died, or nothing came from it in time.
        """
        self.wait_until_probed()
        with self._indexing, self._remembering():
            if not self._is_indexed:
                self._read_index()
                self._has_answered()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """End the child after an error, and raise the error again when something else is waited for."""
        if self._index_error is not None:
            raise self._index_error
        try:
            yield
        except BaseException as error:
            self._index_error = error
            self.close()
            raise

    def _read_facts(self) -> None:
        reply, payloads = self._receive(None, _MAX_SEGMENT_BYTES)
        with self._checking():
            self.facts = VideoFacts.from_json(reply["facts"], self._path)
            if payloads:
                table, data = payloads
                self._beginning = PackedSegment(
                    0, Span(self.facts.first_pts, None, 0, 0), self._table(table, data), data
                )
        self._is_probed = True

    def _read_index(self) -> None:
        reply, payloads = self._receive(3, 8 * (MAX_SAMPLES + 2 * MAX_PACKETS))
        arrays = [self._numbers(payload) for payload in payloads]
        if not 1 <= len(arrays[0]) <= MAX_SAMPLES:
            raise self._broken(f"it speaks of {len(arrays[0])} samples")
        with self._checking():
            end_pts = int(reply["end_pts"])
            if not arrays[0][-1] < end_pts <= arrays[0][-1] + MAX_FRAME_SECONDS / self.facts.time_base:
                raise ValueError(f"the video ends at {end_pts}")
        sample_pts, skippable_pts, key_pts = arrays
        self.timeline = Timeline(sample_pts, skippable_pts, key_pts, self._rate, self.facts.time_base, end_pts)
        self._is_indexed = True

    def open_decoder(self, crop: CropPixels, *, threads: int) -> IsolatedDecoder:
        """A decoder in the child.

        Raises:
            InputError: there was one already.
        """
        if not self._begins():
            raise InputError("an isolated video is decoded once; open it again for another region")
        self._send({"crop": asdict(crop), "threads": threads})
        return IsolatedDecoder(self, crop)

    def batches(self, crop: CropPixels, lost: list[int], changes: list[PictureChange]) -> Generator[SampleBatch]:
        """Yield batches as the child decodes them, after adding what it says of their samples to the two lists."""
        count = len(self.timeline)
        for first in range(0, count, BATCH_SAMPLES):
            size = min(BATCH_SAMPLES, count - first)
            half = (size, crop.height // 2, crop.width // 2)
            shapes = (size, crop.height, crop.width), half, half
            reply, payloads = self._receive(3, size * crop.height * crop.width * 3 // 2)
            with self._checking():
                y, u, v = (payload.reshape(shape) for payload, shape in zip(payloads, shapes, strict=True))
                self._take_notes(reply, lost, changes)
            yield SampleBatch(first, y, u, v)
        reply, _ = self._receive(0, 0)
        with self._checking():
            self._take_notes(reply, lost, changes)
        self._is_done()

    def _begins(self) -> bool:
        """Whether the child may be asked for the samples or the segments: once, until it is closed."""
        with self._changing:
            may = not (self._asked or self._is_closed)
            if may:
                self._asked, self._is_idle = True, False
            return may

    def _has_answered(self) -> None:
        with self._changing:
            self._is_idle = not self._is_closed

    def _is_done(self) -> None:
        """The child may go on with the next video, while this one is still encoded."""
        self._has_answered()
        self.close()

    def _take_notes(self, reply: dict[str, Any], lost: list[int], changes: list[PictureChange]) -> None:
        lost.extend(self._samples(reply["undecodable"]))
        for sample, width, height, pixel_format in reply["changes"]:
            after = changes[-1].sample if changes else -1
            sizes_are_right = all(type(side) is int and MIN_FRAME_PX <= side <= MAX_SIDE_PX for side in (width, height))
            if not (sizes_are_right and self._samples([sample])[0] > after and _FORMAT_NAME.fullmatch(pixel_format)):
                raise ValueError(f"it speaks of pictures {[sample, width, height, pixel_format]!r:.100}")
            changes.append(PictureChange(sample, width, height, pixel_format))

    def _samples(self, numbers: Iterable[object]) -> list[int]:
        """Check that the child's values are valid sample numbers, and return them; raises ValueError otherwise."""
        found = list(numbers)
        if not all(type(number) is int and 0 <= number < len(self.timeline) for number in found):
            raise ValueError(f"it speaks of samples {found[:3]}")
        return cast(list[int], found)

    def segments(self, spans: list[Span]) -> Iterator[PackedSegment]:
        """The segments of :func:`~caption_extents.video.nvdec.segments.read_segments`, as plain bytes.

        The iteration ends before the first segment with a packet that has side data or other properties, which cannot
        be sent as plain bytes. A second call yields nothing.
        """
        if not self._begins():
            return
        self._send({"spans": [astuple(span) for span in spans]})
        for number, span in enumerate(spans):
            reply, payloads = self._receive(None, _MAX_SEGMENT_BYTES)
            if not payloads:
                return
            with self._checking():
                table, data = self._table(*payloads), payloads[1]
                if reply["number"] != number:
                    raise ValueError(f"segment {reply['number']!r}")
            yield PackedSegment(number, span, table, data)
        self._receive(0, 0)
        self._is_done()

    def _table(self, payload: np.ndarray, data: np.ndarray) -> np.ndarray:
        """The table of some packets; raises ValueError if it does not belong to their bytes."""
        table = self._numbers(payload).reshape(-1, PACKET_NUMBERS)
        if (table[:, 0] < 0).any() or table[:, 0].sum() != len(data):
            raise ValueError(f"packets of {len(data)} bytes")
        return table

    def _numbers(self, payload: np.ndarray) -> np.ndarray:
        with self._checking():
            return payload.view(np.int64)

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Convert exceptions raised while a message is parsed into a DecodeError: the message is invalid."""
        try:
            yield
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._untrusted(repr(error)) from error

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._child.channels[0].send(message)
        except ChannelError as error:
            raise self._broken(str(error)) from error

    def _receive(self, payloads: int | None, limit_bytes: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Receive a reply; raises DecodeError unless it has ``payloads`` payloads (None: any number)."""
        try:
            reply, found = self._child.receive(limit_bytes=limit_bytes)
        except ChannelError as error:
            raise self._broken(str(error)) from error
        except StallError:
            raise StallError(
                f"decoding {str(self._path)!r} gave no sign of life for {self._limits.stall_seconds:g} s and was "
                "ended: it is damaged, or this machine is too slow for it. Raise stall_seconds"
            ) from None
        if payloads is not None and len(found) != payloads:
            raise self._broken(f"a message with {len(found)} payloads")
        return reply, found

    def _untrusted(self, what: str) -> DecodeError:
        return DecodeError(f"the decoding process of {str(self._path)!r} cannot be trusted: {what}")

    def _broken(self, what: str) -> DecodeError:
        how = self._child.describe_exit()
        if not self._child.has_ended:
            return self._untrusted(what)
        return DecodeError(
            f"the decoding process of {str(self._path)!r} {how}; the file makes the decoder crash, or it needs more "
            f"than the {self._limits.memory_bytes >> 20} MiB of memory that it may take"
        )


class IsolatedDecoder:
    """A :class:`~caption_extents.video.decoders.base.SampleDecoder` whose work is done by a child process."""

    name = "cpu, isolated"

    def __init__(self, video: VideoReaderProcess, crop: CropPixels) -> None:
        self.undecodable_samples: list[int] = []
        self._video = video
        self.picture_changes: list[PictureChange] = []
        self._batches = video.batches(crop, self.undecodable_samples, self.picture_changes)

    def __iter__(self) -> Iterator[SampleBatch]:
        return self._batches

    def close(self) -> None:
        """End the child."""
        self._video.close()


# From here on: the child.


def serve(channels: list[Channel]) -> None:
    """In the child: answer the parent until it closes the channel."""
    (parent,) = channels
    tell_progress_to(parent.send_keep_alive)
    try:
        _serve(parent)
    except (VideoError, DecodeError) as error:
        parent.send_error(error)
    except MemoryError:
        parent.send_error(DecodeError("the decoder needs more memory than it may take"))
    except ChannelError:
        raise
    except Exception as error:
        parent.send_error(DecodeError(f"the decoder failed unexpectedly: {error!r}"))


def _give_up_rights(memory_bytes: int) -> None:
    """Set resource limits, if the system has them: no writing of files, no core dumps, limited address space."""
    try:
        import resource
    except ImportError:
        return
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))


def _serve(parent: Channel) -> None:
    opening, _ = parent.receive()
    while True:
        _give_up_rights(opening["memory_bytes"])
        opening = _serve_video(parent, opening)


def _serve_video(parent: Channel, opening: dict[str, Any]) -> dict[str, Any]:
    """Read or decode a video; returns the message that opens the next one."""
    facts = probe(Path(opening["path"]), opening["stream"])
    beginning = read_beginning(facts) if opening["reads_beginning"] else None
    parent.send({"facts": facts.to_json()}, *([] if beginning is None else [beginning.table, beginning.data]))
    timeline = build_timeline(facts, Fraction(opening["rate"]))
    arrays = (timeline.sample_pts, timeline.skippable_pts, timeline.key_pts)
    parent.send({"end_pts": timeline.end_pts}, *(array.astype(np.int64) for array in arrays))
    asked, _ = parent.receive()
    if "path" in asked:
        return asked
    if "spans" in asked:
        _send_segments(parent, facts, timeline, [Span(*numbers) for numbers in asked["spans"]])
        return parent.receive()[0]
    # Imported only here: it is not needed if the child reads packets that are decoded on a GPU.
    from caption_extents.video.decoders.cpu import CpuDecoder

    decoder = CpuDecoder(facts, timeline, CropPixels.from_json(asked["crop"]), threads=asked["threads"])
    for batch in decoder:
        parent.send(_notes(decoder), *batch.planes)
    parent.send(_notes(decoder))
    return parent.receive()[0]


def _notes(decoder: CpuDecoder) -> dict[str, Any]:
    """What the decoder has noted since the last call."""
    notes = {
        "undecodable": list(decoder.undecodable_samples),
        "changes": [list(astuple(change)) for change in decoder.picture_changes],
    }
    decoder.undecodable_samples.clear()
    decoder.picture_changes.clear()
    return notes


def _send_segments(parent: Channel, facts: VideoFacts, timeline: Timeline, spans: list[Span]) -> None:
    for segment in read_segments(facts, timeline, spans):
        packed = pack(segment)
        if packed is None:
            break
        parent.send({"number": segment.number}, packed.table, packed.data)
    parent.send({"number": None})
