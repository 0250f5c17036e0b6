"""Decoding in a process of its own, so that a crash in a codec is an error and not the end of the service.

The child probes the file, places the samples, decodes and crops. It talks over pipes, in lines of JSON and raw planes;
nothing that it says is ever executed or unpickled, and every size is checked against what was agreed before. Before it
opens the file it gives up what decoding does not need: it cannot write files, nor grow past a limit of memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from caption_extents.errors import DecodeError, StallError, VideoError
from caption_extents.interprocess import child_environment
from caption_extents.memory import cpu_seconds_of, own_peak_memory_of
from caption_extents.video.crop import CropPixels
from caption_extents.video.orientation import Orientation
from caption_extents.video.packed import PACKET_NUMBERS, PackedSegment, pack
from caption_extents.video.segments import Span, read_segments
from caption_extents.video.source import Colour, VideoFacts
from caption_extents.video.timeline import MAX_PACKETS, MAX_SAMPLES, Timeline
from caption_extents.watchdog import DEFAULT_STALL_SECONDS, alive, install_waker, tell_progress_to, wake_threads

if TYPE_CHECKING:
    from caption_extents.video.batch import CropBatch

_COMMAND = [sys.executable, "-m", "caption_extents.video.isolated"]
_MAX_LINE_BYTES = 1 << 20
_MAX_SEGMENT_BYTES = 4 << 30
_PIPE_BYTES = 1 << 20
_MESSAGE_CHARACTERS = 500
_LIFE_SECONDS = 0.2
"""Between two signs of life."""


@dataclass(frozen=True)
class DecoderLimits:
    """What a decoding process may take.

    Attributes:
        memory_bytes: of address space, libraries included.
        stall_seconds: the process is ended when nothing comes from it for this long.
    """

    memory_bytes: int = 8 << 30
    stall_seconds: float = DEFAULT_STALL_SECONDS


class IsolatedVideo:
    """A video opened by a child process, which starts at once; a context manager that ends the child.

    This module imports PyTorch only to decode: the child indexes a long video while its parent still imports it.

    Raises (when the context is entered):
        VideoError: the video cannot be used.
        DecodeError: the child died, or nothing came from it in time.
    """

    def __init__(self, path: Path, rate: Fraction, limits: DecoderLimits) -> None:
        self._path, self._rate, self._limits = path, rate, limits
        self._asked = False
        self._indexing = threading.Lock()
        self._indexed = False
        self._index_error: BaseException | None = None
        self._measured = (0, 0.0)
        self._reading = threading.Lock()
        self._closed = False
        # What goes wrong in the child comes as a message; what its libraries print is lost.
        self._child = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment()
        )
        with suppress(OSError):  # refused where the system keeps pipes short
            fcntl.fcntl(cast(IO[bytes], self._child.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._send({"path": str(path), "rate": str(rate), "memory_bytes": limits.memory_bytes})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> IsolatedVideo:
        self.wait_until_indexed()
        return self

    def wait_until_indexed(self) -> None:
        """Return when facts and timeline are known; may be called again, from several threads.

        Raises:
            VideoError: the video cannot be used.
            DecodeError: the child died, or nothing came from it in time.
        """
        with self._indexing:
            if self._index_error is not None:
                raise self._index_error
            if self._indexed:
                return
            try:
                self._read_index()
            except BaseException as error:
                self._index_error = error
                self.close()
                raise
            self._indexed = True

    def _read_index(self) -> None:
        reply = self._receive()
        self.facts = facts_from_json(reply["facts"], self._path)
        count, skippable, keys = (int(reply[name]) for name in ("samples", "skippable", "keys"))
        if not 1 <= count <= MAX_SAMPLES:
            raise self._broken(f"it speaks of {count} samples")
        arrays = [np.frombuffer(self._read(8 * size), np.int64) for size in (count, skippable, keys)]
        self.timeline = Timeline(arrays[0], arrays[1], arrays[2], self._rate, self.facts.time_base)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peak_memory_bytes(self) -> int:
        """The child's largest resident set so far; of pages that it shares, its part."""
        return self._measure()[0]

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds that the child took so far."""
        return self._measure()[1]

    def _measure(self) -> tuple[int, float]:
        if self._child.poll() is None:
            self._measured = (own_peak_memory_of(self._child.pid), cpu_seconds_of(self._child.pid))
        return self._measured

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._measure()
        self._closed = True
        self._child.kill()
        self._child.wait()
        # A thread that waits for the child finds the end of the pipe now; a pipe closed before, it would not notice.
        with self._reading:
            for pipe in (self._child.stdin, self._child.stdout):
                # What the child was not sent any more is of no interest.
                with suppress(BrokenPipeError):
                    cast(IO[bytes], pipe).close()

    def open_decoder(self, crop: CropPixels, *, threads: int) -> IsolatedDecoder:
        """A decoder in the child."""
        self._send({"crop": asdict(crop), "threads": threads})
        return IsolatedDecoder(self, crop)

    def batches(self, crop: CropPixels, lost: list[int]) -> Generator[CropBatch]:
        """Batches as the child decodes them; samples that could not be decoded are added to ``lost``."""
        from caption_extents.video.batch import CropBatch, empty_planes
        from caption_extents.video.decoder import BATCH_SAMPLES

        count = len(self.timeline)
        for first in range(0, count, BATCH_SAMPLES):
            reply = self._receive()
            size = min(BATCH_SAMPLES, count - first)
            if reply["first_sample"] != first:
                raise self._broken(f"batch {first} was expected, and {reply['first_sample']!r} came")
            lost.extend(int(number) for number in reply["undecodable"])
            planes = empty_planes(size, crop.height, crop.width)
            for plane in planes:
                self._read_into(memoryview(cast(Any, plane.numpy().reshape(-1))))
            yield CropBatch(first, *planes)
        lost.extend(int(number) for number in self._receive()["undecodable"])

    def segments(self, spans: list[Span]) -> Iterator[PackedSegment]:
        """The video's segments, as :func:`~caption_extents.video.segments.read_segments` gives them, as plain bytes.

        They end before the first that has packets with more than data and times, and there are none the second time.
        """
        if self._asked:
            return
        self._asked = True
        self._send({"spans": [astuple(span) for span in spans]})
        for number, span in enumerate(spans):
            reply = self._receive()
            if reply["number"] is None:
                return
            if reply["number"] != number:
                raise self._broken(f"segment {number} was expected, and {reply['number']!r} came")
            count = int(reply["packets"])
            if not 0 <= count <= MAX_PACKETS:
                raise self._broken(f"it speaks of {count} packets")
            table = np.frombuffer(self._read(8 * PACKET_NUMBERS * count), np.int64).reshape(count, PACKET_NUMBERS)
            sizes = table[:, 0]
            if count and (sizes.min() < 0 or int(sizes.sum()) > _MAX_SEGMENT_BYTES):
                raise self._broken(f"it speaks of packets of {sizes.min()} to {sizes.max()} bytes")
            yield PackedSegment(number, span, table, self._read(int(sizes.sum())))

    def _send(self, message: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._broken("it has ended") from None

    def _receive(self) -> dict[str, Any]:
        """The next line, which is a reply or an error of the child's."""
        while (size := int.from_bytes(self._read(4), "big")) == 0:
            continue  # a sign of life
        if size > _MAX_LINE_BYTES:
            raise self._broken(f"a message of {size} bytes")
        try:
            reply = json.loads(self._read(size))
        except ValueError:
            raise self._broken("a message that is no JSON") from None
        if not isinstance(reply, dict):
            raise self._broken("a message that is no object")
        if "error" in reply:
            message = str(reply["error"])[:_MESSAGE_CHARACTERS]
            raise VideoError(message) if reply.get("kind") == "video" else DecodeError(message)
        return reply

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        self._read_into(memoryview(data))
        return data

    def _read_into(self, view: memoryview) -> None:
        assert self._child.stdout is not None
        with self._reading, selectors.DefaultSelector() as selector:
            if self._closed:
                raise DecodeError(f"{str(self._path)!r} is not read any more")
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while view:
                self._wait(selector)
                got = os.readv(self._child.stdout.fileno(), [view])
                if got == 0:
                    raise self._broken("it has ended")
                view = view[got:]
                alive()

    def _wait(self, selector: selectors.BaseSelector) -> None:
        """Return when something has come; the child's threads are woken once."""
        half = self._limits.stall_seconds / 2
        if selector.select(half):
            return
        wake_threads(self._child.pid)
        if not selector.select(half):
            raise StallError(
                f"decoding {str(self._path)!r} gave no sign of life for {self._limits.stall_seconds:g} s and was "
                "ended: it is damaged, or this machine is too slow for it. Raise stall_seconds"
            )

    def _broken(self, what: str) -> DecodeError:
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return DecodeError(f"the decoding process of {str(self._path)!r} cannot be trusted: {what}")
        how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return DecodeError(
            f"the decoding process of {str(self._path)!r} {how}; the file makes the decoder crash, or it needs more "
            f"than the {self._limits.memory_bytes >> 20} MiB of memory that it may take"
        )


class IsolatedDecoder:
    """A :class:`~caption_extents.video.decoder.SampleDecoder` whose work is done by a child process."""

    name = "cpu, isolated"

    def __init__(self, video: IsolatedVideo, crop: CropPixels) -> None:
        self.undecodable_samples: list[int] = []
        self._video = video
        self._batches = video.batches(crop, self.undecodable_samples)

    def __iter__(self) -> Iterator[CropBatch]:
        return self._batches

    def close(self) -> None:
        """End the child."""
        self._video.close()


def facts_to_json(facts: VideoFacts) -> dict[str, Any]:
    """Facts as plain data, without the path."""
    plain = {name: value for name, value in asdict(facts).items() if name != "path"}
    return {name: str(value) if isinstance(value, Fraction) else value for name, value in plain.items()}


def facts_from_json(data: dict[str, Any], path: Path) -> VideoFacts:
    """Inverse of :func:`facts_to_json`.

    Raises:
        DecodeError: the data is not what a child writes.
    """
    try:
        values = {field.name: data[field.name] for field in fields(VideoFacts) if field.name != "path"}
        values |= {name: Fraction(values[name]) for name in ("sample_aspect_ratio", "time_base")}
        values["average_rate"] = None if values["average_rate"] is None else Fraction(values["average_rate"])
        values["orientation"] = Orientation(**{name: bool(v) for name, v in values["orientation"].items()})
        values["colour"] = Colour(**{name: int(v) for name, v in values["colour"].items()})
        values["interlaced"] = bool(values["interlaced"])
        for name in ("width", "height", "stream_index", "first_pts", "size_bytes", "missing_bytes"):
            values[name] = int(values[name])
        return VideoFacts(path=path, **values)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DecodeError(f"the decoding process of {str(path)!r} cannot be trusted: {error!r}") from error


# From here on: the child.


class _Parent:
    """Where the child writes to."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._shown_at = 0.0

    def show_life(self) -> None:
        """Say that there is progress, from the thread that replies; an empty message."""
        now = time.monotonic()
        if now - self._shown_at > _LIFE_SECONDS:
            self._shown_at = now
            self._pipe.write(bytes(4))
            self._pipe.flush()

    def reply(self, message: dict[str, Any], *arrays: np.ndarray) -> None:
        line = json.dumps(message).encode()
        self._pipe.write(len(line).to_bytes(4, "big") + line)
        for array in arrays:
            self._pipe.write(np.ascontiguousarray(array).data)
        self._pipe.flush()


def _give_up_rights(memory_bytes: int) -> None:
    """No files written, no core dumps, and no more memory than allowed; where the system has such limits."""
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


def _serve(requests: IO[bytes], parent: _Parent) -> None:
    from caption_extents.video.source import probe
    from caption_extents.video.timeline import build_timeline

    opening = json.loads(requests.readline())
    _give_up_rights(opening["memory_bytes"])
    facts = probe(Path(opening["path"]))
    timeline = build_timeline(facts, Fraction(opening["rate"]))
    arrays = (timeline.sample_pts, timeline.skippable_pts, timeline.key_pts)
    sizes = dict(zip(("samples", "skippable", "keys"), map(len, arrays), strict=True))
    parent.reply({"facts": facts_to_json(facts), **sizes}, *(array.astype(np.int64) for array in arrays))
    line = requests.readline()
    if not line:
        return
    asked = json.loads(line)
    if "spans" in asked:
        _send_segments(parent, facts.path, timeline, [Span(*numbers) for numbers in asked["spans"]])
        return
    from caption_extents.video.cpu import CpuDecoder

    crop = CropPixels(**{**asked["crop"], "decoded": tuple(asked["crop"]["decoded"])})
    decoder = CpuDecoder(facts, timeline, crop, threads=asked["threads"])
    told = 0
    for batch in decoder:
        lost = decoder.undecodable_samples[told:]
        told += len(lost)
        parent.reply(
            {"first_sample": batch.first_sample, "undecodable": lost}, *(plane.numpy() for plane in batch.planes)
        )
    parent.reply({"undecodable": decoder.undecodable_samples[told:]})


def _send_segments(parent: _Parent, path: Path, timeline: Timeline, spans: list[Span]) -> None:
    for segment in read_segments(path, timeline, spans):
        packed = pack(segment)
        if packed is None:
            break
        data = np.frombuffer(packed.data, np.uint8)
        parent.reply({"number": segment.number, "packets": len(packed.table)}, packed.table, data)
    parent.reply({"number": None})


def main() -> None:
    """The child: answers its parent over stdin and stdout until it is ended."""
    requests, parent = sys.stdin.buffer, _Parent(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what a library prints must not get between the messages
    install_waker()
    tell_progress_to(parent.show_life)
    try:
        _serve(requests, parent)
    except VideoError as error:
        parent.reply({"error": str(error), "kind": "video"})
    except DecodeError as error:
        parent.reply({"error": str(error), "kind": "decode"})
    except MemoryError:
        parent.reply({"error": "the decoder needs more memory than it may take", "kind": "decode"})
    except Exception as error:
        parent.reply({"error": f"the decoder failed unexpectedly: {error!r}", "kind": "decode"})


if __name__ == "__main__":
    main()
