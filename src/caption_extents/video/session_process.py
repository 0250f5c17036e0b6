"""Decoder sessions in processes beside this one.

Every frame that a session decodes costs a dozen turns at Python's lock: packet in, frame out, crop. Where a GPU decodes
ten thousand frames a second, the sessions of one process spend more time waiting for that lock than at work, and so
does everything else in it. A child process holds a few sessions, each with a thread and a socket of its own. A
segment's packets go there as plain bytes; crops come back through memory that both share, a part of a segment at a
time, and the GPU copies them right into it. The child imports neither PyTorch nor anything else of the pipeline.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from caption_extents.errors import DecodeError, VideoError
from caption_extents.interprocess import arrays_in, child_environment, mapped, receive
from caption_extents.memory import cpu_seconds_of, own_peak_memory_of
from caption_extents.video.crop import CropPixels
from caption_extents.video.isolated import facts_from_json, facts_to_json
from caption_extents.video.packed import NO_TIME, PACKET_NUMBERS, PackedSegment, pack
from caption_extents.video.segments import Segment, Span
from caption_extents.video.session import Crops, DependentError, Engine, Part, Session, new_room
from caption_extents.video.side_by_side import AnySegment
from caption_extents.video.source import VideoFacts

SESSIONS = 4
"""In a process: few enough for one lock, many enough that processes, each with a CUDA context, do not fill a GPU."""

_SLOTS = 2
"""Parts of a session that may be under way between the processes."""

_PART_SAMPLES = 64
_PART_BYTES = 8 << 20
_PAGE = mmap.PAGESIZE

_REQUEST = struct.Struct("<7q")
"""Number, first and end pts, first and last sample of a segment; its packets, and their bytes."""

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 1 << 24
_TAKEN = b"\x01"
"""What the parent says when it has taken a part, and its slot is free again."""


@dataclass(frozen=True)
class EngineKind:
    """How a child makes its engines: a class in a module, called with facts, crop and the device's number."""

    module: str
    name: str
    ordinal: int = 0

    def make(self, facts: VideoFacts, crop: CropPixels) -> Engine:
        """An engine for a video."""
        engine: Engine = getattr(importlib.import_module(self.module), self.name)(facts, crop, self.ordinal)
        return engine


def part_samples(crop: CropPixels) -> int:
    """Most samples in a part, so that a slot is some megabytes large."""
    return max(4, min(_PART_SAMPLES, _PART_BYTES // (crop.width * crop.height * 3 // 2)))


class _Layout:
    """Where a session's slots are in the shared memory: a part's samples, and one more for the last good frame."""

    def __init__(self, engine: Engine, samples: int) -> None:
        self._shapes = [(samples + 1, *shape) for shape in engine.shapes]
        self.slot_bytes = -(-sum(int(np.prod(shape)) for shape in self._shapes) // _PAGE) * _PAGE
        self.session_bytes = _SLOTS * self.slot_bytes

    def slot(self, memory: np.ndarray, session: int, slot: int) -> Crops:
        """The arrays of a slot, with room for all its samples."""
        at = session * self.session_bytes + slot * self.slot_bytes
        return tuple(arrays_in(memory[at:], self._shapes))


class SessionProcess:
    """A child with :data:`SESSIONS` sessions, which starts at once and gets its device ready.

    Args:
        kind: of its engines.
    """

    def __init__(self, kind: EngineKind) -> None:
        self._kind = kind
        pairs = [socket.socketpair() for _ in range(SESSIONS)]
        self._sockets, there = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self._shared = os.memfd_create("caption-extents-crops")
        inherited = [self._shared, *(end.fileno() for end in there)]
        command = [sys.executable, "-m", "caption_extents.video.session_process", *map(str, inherited)]
        # In a session of its own: Ctrl-C is for the parent, and the child ends with its pipe.
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=inherited, start_new_session=True, env=child_environment()
        )
        for end in there:
            end.close()
        self._memory: np.ndarray | None = None
        self._closed = False
        self._closing = threading.Lock()
        self._measured = (0, 0.0)
        self._send({"kind": asdict(kind)})

    def sessions(self, facts: VideoFacts, crop: CropPixels) -> list[RemoteSession]:
        """The child's sessions, for a video; they may be asked for again, for the same one."""
        engine, samples = self._kind.make(facts, crop), part_samples(crop)
        layout = _Layout(engine, samples)
        if self._memory is None:
            size = SESSIONS * layout.session_bytes
            os.ftruncate(self._shared, size)
            self._memory = mapped(self._shared, size)
            self._send({"path": str(facts.path), "facts": facts_to_json(facts), "crop": asdict(crop)})
        memory = self._memory
        return [
            RemoteSession(self, end, [layout.slot(memory, number, slot) for slot in range(_SLOTS)], engine, facts)
            for number, end in enumerate(self._sockets)
        ]

    @property
    def peak_memory_bytes(self) -> int:
        """The child's largest resident set so far; of pages that it shares, its part."""
        return self._measure()[0]

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds that the child took so far."""
        return self._measure()[1]

    def _measure(self) -> tuple[int, float]:
        if not self._closed:
            self._measured = (own_peak_memory_of(self._child.pid), cpu_seconds_of(self._child.pid))
        return self._measured

    def end(self) -> str:
        """How the child ended, for people."""
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return "does not answer"
        return f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def close(self) -> None:
        """End the child; sessions that wait for it fail. Closing twice, also at once, is harmless."""
        with self._closing:
            if self._closed:
                return
            self._measure()
            self._closed = True
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._child.kill()
        self._child.wait()
        with suppress(BrokenPipeError):
            cast(Any, self._child.stdin).close()
        for end in self._sockets:
            end.close()
        os.close(self._shared)

    def _send(self, message: dict[str, Any]) -> None:
        pipe = cast(Any, self._child.stdin)
        with suppress(BrokenPipeError):  # whoever waits for an answer learns how the child ended
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()


class RemoteSession:
    """A session in a child, for a thread of this process.

    What the child cannot be sent, packets with more than data and times, is decoded here.
    """

    def __init__(
        self, process: SessionProcess, end: socket.socket, slots: list[Crops], engine: Engine, facts: VideoFacts
    ) -> None:
        self._process, self._end, self._slots, self._engine, self._facts = process, end, slots, engine, facts
        self._here: Session | None = None
        self._stopped = threading.Event()

    def decode(self, segment: AnySegment, sample_pts: np.ndarray) -> Iterator[Part]:
        """The segment's parts.

        Raises:
            DependentError: see :meth:`caption_extents.video.session.Session.decode`.
            DecodeError: the child failed, or is gone.
        """
        packed = segment if isinstance(segment, PackedSegment) else pack(segment)
        if packed is None:
            yield from self._decode_here(cast("Segment[Any]", segment), sample_pts)
            return
        try:
            self._request(packed, sample_pts)
            while True:
                part = self._part()
                yield part
                if part.is_last:
                    return
        except (OSError, EOFError) as error:
            if self._stopped.is_set():
                return
            raise DecodeError(
                f"a decoding process of {str(self._facts.path)!r} {self._process.end()}; "
                "the file makes the decoder crash, or there is too little memory"
            ) from error

    def close(self) -> None:
        """Have a call that is under way end."""
        self._stopped.set()
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def _request(self, segment: PackedSegment, sample_pts: np.ndarray) -> None:
        span = segment.span
        end_pts = NO_TIME if span.end_pts is None else span.end_pts
        self._end.sendall(
            _REQUEST.pack(
                segment.number,
                span.start_pts,
                end_pts,
                span.first_sample,
                span.last_sample,
                len(segment.table),
                len(segment.data),
            )
        )
        for array in (sample_pts, segment.table):
            self._end.sendall(cast(Any, np.ascontiguousarray(array, np.int64).data.cast("B")))
        self._end.sendall(segment.data)

    def _part(self) -> Part:
        (size,) = _LENGTH.unpack(receive(self._end, _LENGTH.size))
        if size > _MAX_MESSAGE_BYTES:
            raise EOFError(f"a message of {size} bytes")
        reply = json.loads(receive(self._end, size))
        if "error" in reply:
            raise _ERRORS[reply["kind"]](reply["error"])
        crops = last = None
        count, slot = int(reply["count"]), reply["slot"]
        if slot is not None:
            # Copied, so that the child can go on; the GPU has written them by now.
            arrays = self._slots[slot]
            crops = tuple(array[:count].copy() for array in arrays)
            if reply["is_last"]:
                last = tuple(array[count : count + 1].copy() for array in arrays)
            self._end.sendall(_TAKEN)
        return Part(int(reply["first_sample"]), count, crops, reply["undecodable"], reply["is_last"], last)

    def _decode_here(self, segment: Segment[Any], sample_pts: np.ndarray) -> Iterator[Part]:
        if self._here is None:
            engine = self._engine
            self._here = Session(engine, self._facts, _PART_SAMPLES, new_room(engine), self._stopped.is_set)
        yield from self._here.decode(segment, sample_pts)


_ERRORS: dict[str, type[Exception]] = {"dependent": DependentError, "video": VideoError, "decode": DecodeError}


# From here on: the child.


class _Slots:
    """The shared memory of one session, as the room for its parts."""

    def __init__(self, end: socket.socket, slots: list[Crops]) -> None:
        self._end, self._slots = end, slots
        self._used = 0
        self.latest = 0
        self._next = 0

    def room(self, count: int) -> Crops:
        """The next slot, once the parent has taken what was in it."""
        if self._used == len(self._slots):
            receive(self._end, len(_TAKEN))
            self._used -= 1
        self.latest = self._next
        self._next = (self._next + 1) % len(self._slots)
        self._used += 1
        return tuple(array[:count] for array in self._slots[self.latest])

    def all_taken(self) -> None:
        """Return when the parent has taken everything."""
        receive(self._end, self._used * len(_TAKEN))
        self._used = 0


def _serve(end: socket.socket, session: Session, slots: _Slots) -> None:
    while True:
        header = _REQUEST.unpack(receive(end, _REQUEST.size))
        number, start_pts, end_pts, first, last, packets, size = header
        sample_pts = np.frombuffer(receive(end, 8 * (last - first)), np.int64)
        table = np.frombuffer(receive(end, 8 * PACKET_NUMBERS * packets), np.int64).reshape(packets, PACKET_NUMBERS)
        span = Span(start_pts, None if end_pts == NO_TIME else end_pts, first, last)
        segment = PackedSegment(number, span, table, receive(end, size)).unpack()
        try:
            for part in session.decode(segment, sample_pts):
                slot = None if part.crops is None else slots.latest
                _reply(
                    end,
                    first_sample=part.first_sample,
                    count=part.count,
                    undecodable=part.undecodable,
                    is_last=part.is_last,
                    slot=slot,
                )
            slots.all_taken()
        except (DependentError, VideoError, DecodeError) as error:
            kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
            _reply(end, error=str(error), kind=kind)
        except (OSError, EOFError):
            raise
        except Exception as error:
            _reply(end, error=f"the decoder failed unexpectedly: {error!r}", kind="decode")


def _reply(end: socket.socket, **message: object) -> None:
    line = json.dumps(message).encode()
    end.sendall(_LENGTH.pack(len(line)) + line)


def _serve_until_closed(end: socket.socket, session: Session, slots: _Slots) -> None:
    with suppress(OSError, EOFError):  # then the parent is gone
        _serve(end, session, slots)


def main() -> None:
    """The child: sessions that answer over their sockets until the parent ends it."""
    shared, *numbers = map(int, sys.argv[1:])
    ends = [socket.socket(fileno=number) for number in numbers]
    kind = EngineKind(**json.loads(sys.stdin.buffer.readline())["kind"])
    warm_up = getattr(importlib.import_module(kind.module), "warm_up", None)
    if warm_up is not None:
        warm_up(kind.ordinal)
    line = sys.stdin.buffer.readline()
    if line:
        opening = json.loads(line)
        facts = facts_from_json(opening["facts"], Path(opening["path"]))
        crop = CropPixels(**{**opening["crop"], "decoded": tuple(opening["crop"]["decoded"])})
        engines = [kind.make(facts, crop) for _ in ends]
        layout = _Layout(engines[0], part_samples(crop))
        memory = mapped(shared, len(ends) * layout.session_bytes)
        engines[0].pin(memory)
        for number, (end, engine) in enumerate(zip(ends, engines, strict=True)):
            slots = _Slots(end, [layout.slot(memory, number, slot) for slot in range(_SLOTS)])
            session = Session(engine, facts, part_samples(crop), slots.room, lambda: False)
            threading.Thread(target=_serve_until_closed, args=(end, session, slots), daemon=True).start()
        sys.stdin.buffer.read()  # until the parent closes it, or is gone
    os._exit(0)  # threads that are in a codec end here too


if __name__ == "__main__":
    # Errors are told apart by their classes, which must not be those of a module with two names.
    from caption_extents.video import session_process

    session_process.main()
