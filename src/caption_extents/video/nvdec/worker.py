"""Decoder sessions in child processes.

Every frame that a session decodes takes the GIL a dozen times: packet in, frame out, crop. Where a GPU decodes ten
thousand frames a second, the sessions of one process spend more time waiting for the GIL than at work, and so does
everything else in it. A child process holds a few sessions, each with its own thread and channel. A segment's packets
go there as plain bytes; crops come back through shared memory, a part of a segment at a time, and the GPU copies them
right into it. The child imports neither PyTorch nor anything else of the pipeline.
"""

from __future__ import annotations

import importlib
import json
import mmap
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from caption_extents.children import Channel, ChannelError, Child, Children, arrays_in, serve_each
from caption_extents.errors import DecodeError, VideoError
from caption_extents.spawning import decoder_sessions
from caption_extents.video.crop import CropPixels
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec.scheduler import AnySegment
from caption_extents.video.nvdec.segments import PACKET_NUMBERS, PackedSegment, Segment, Span, pack
from caption_extents.video.nvdec.session import (
    Crops,
    Engine,
    KeyFrameNotDecodableError,
    Part,
    PictureChangesError,
    Session,
    new_room,
)

_SLOTS = 2
"""Number of shared-memory slots per session, that is, of parts that are in transfer to the parent process."""

_PART_SAMPLES = 64
_PART_BYTES = 8 << 20
_PAGE = mmap.PAGESIZE
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (KeyFrameNotDecodableError, PictureChangesError)
}


@dataclass(frozen=True)
class EngineSpec:
    """Names the class of a child's engines (module and class name) and the number of the device that they use."""

    module: str
    name: str
    ordinal: int = 0

    def make(self, facts: VideoFacts, crop: CropPixels) -> Engine:
        """An engine for a video."""
        engine: Engine = getattr(importlib.import_module(self.module), self.name)(facts, crop, self.ordinal)
        return engine

    def warm_up(self) -> None:
        """Get the device ready, where the engine's module knows how."""
        warm_up = getattr(importlib.import_module(self.module), "warm_up", None)
        if warm_up is not None:
            warm_up(self.ordinal)


def part_samples(engine: Engine) -> int:
    """Most samples in a part, so that a slot is some megabytes large."""
    return max(4, min(_PART_SAMPLES, _PART_BYTES // sum(int(np.prod(shape)) for shape in engine.shapes)))


def _slots(channel: Channel, engine: Engine, samples: int) -> tuple[np.ndarray, list[Crops]]:
    """A session's shared memory, and its slots: each has room for a part's samples and for the last good frame."""
    shapes = [(samples + 1, *shape) for shape in engine.shapes]
    slot_bytes = -(-sum(int(np.prod(shape)) for shape in shapes) // _PAGE) * _PAGE
    memory = channel.memory(_SLOTS * slot_bytes)
    return memory, [tuple(arrays_in(memory[slot * slot_bytes :], shapes)) for slot in range(_SLOTS)]


class SessionProcess:
    """A child with :data:`~caption_extents.spawning.SESSIONS` sessions, which starts at once and gets its device ready.

    Args:
        kind: of its engines.
        children: registry in which the child is started.
    """

    def __init__(self, kind: EngineSpec, children: Children) -> None:
        self._kind = kind
        self._child = children.start(decoder_sessions(**asdict(kind)), errors=_ERRORS)

    def sessions(self, facts: VideoFacts, crop: CropPixels) -> list[RemoteSession]:
        """The child's sessions, for a video; those for the video before must have nothing left to do."""
        engine = self._kind.make(facts, crop)
        opening = {"path": str(facts.path), "facts": facts.to_json(), "crop": asdict(crop)}
        for channel in self._child.channels:
            # A session that waits for an answer is told how the child ended.
            with suppress(ChannelError):
                channel.send(opening)
        return [RemoteSession(self._child, channel, engine, facts, crop) for channel in self._child.channels]

    @property
    def has_ended(self) -> bool:
        """Whether the child has ended."""
        return self._child.has_ended

    def close(self) -> None:
        """End the child; sessions that wait for it fail."""
        self._child.close()


class RemoteSession:
    """A session in a child, for a thread of this process.

    Segments that cannot be sent as plain bytes, because their packets have side data, are decoded in this process.
    """

    def __init__(self, child: Child, channel: Channel, engine: Engine, facts: VideoFacts, crop: CropPixels) -> None:
        self._child, self._channel, self._engine, self._facts = child, channel, engine, facts
        self._slots = _slots(channel, engine, part_samples(engine))[1]
        self._here: Session | None = None
        self._stopped = threading.Event()

    def decode(self, segment: AnySegment, sample_pts: np.ndarray) -> Iterator[Part]:
        """The segment's parts.

        Raises:
            KeyFrameNotDecodableError, PictureChangesError: see
                :meth:`caption_extents.video.nvdec.session.Session.decode`.
            DecodeError: the child failed, or is gone.
        """
        packed = segment if isinstance(segment, PackedSegment) else pack(segment)
        if packed is None:
            yield from self._decode_here(cast("Segment[Any]", segment), sample_pts)
            return
        try:
            self._channel.send(_request(packed), np.asarray(sample_pts, np.int64), packed.table, packed.data)
            while True:
                part = self._part()
                yield part
                if part.is_last:
                    return
        except ChannelError as error:
            if self._stopped.is_set():
                return
            raise DecodeError(
                f"a decoding process of {str(self._facts.path)!r} {self._child.describe_exit()}; "
                "the file makes the decoder crash, or there is too little memory"
            ) from error

    def get_ready(self, beginning: PackedSegment) -> None:
        """Have the decoder opened, with the first packets of the film."""
        with suppress(ChannelError):  # told when a segment is decoded
            self._channel.send(_request(beginning), beginning.table, beginning.data)

    def close(self) -> None:
        """Have a call that is under way end."""
        self._stopped.set()
        self._channel.shut_down()

    def _part(self) -> Part:
        reply, _ = self._child.receive(self._channel, 0)
        try:
            return self._part_of(reply)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise DecodeError(
                f"a decoding process of {str(self._facts.path)!r} cannot be trusted: {error!r}"
            ) from error

    def _part_of(self, reply: dict[str, Any]) -> Part:
        crops = last = None
        count, slot = int(reply["count"]), reply["slot"]
        if slot is not None:
            arrays = self._slots[slot]
            if not 0 < count < len(arrays[0]):
                raise ValueError(f"a part of {count} samples")
            # Copied, so that the child can go on; the GPU has written them by now.
            crops = self._engine.planes(tuple(array[:count] for array in arrays))
            if reply["is_last"]:
                last = self._engine.planes(tuple(array[count : count + 1] for array in arrays))
            self._channel.send({"taken": slot})
        undecodable = [int(number) for number in reply["undecodable"]]
        return Part(int(reply["first_sample"]), count, crops, undecodable, bool(reply["is_last"]), last)

    def _decode_here(self, segment: Segment[Any], sample_pts: np.ndarray) -> Iterator[Part]:
        if self._here is None:
            engine = self._engine
            self._here = Session(engine, self._facts, _PART_SAMPLES, new_room(engine), self._stopped.is_set)
        for part in self._here.decode(segment, sample_pts):
            yield part.with_planes(self._engine)


def _request(segment: PackedSegment) -> dict[str, Any]:
    """The message for a segment to be decoded, if its samples' times come with it, or else to get ready with."""
    return {"number": segment.number, "span": astuple(segment.span)}


# From here on: the child.


class _Slots:
    """The shared memory of one session, as the room for its parts."""

    def __init__(self, parent: Channel, slots: list[Crops]) -> None:
        self._parent, self._slots = parent, slots
        self._used = 0
        self.latest = 0
        self._next = 0

    def room(self, count: int) -> Crops:
        """The next slot, once the parent has taken what was in it."""
        if self._used == len(self._slots):
            self._wait()
        self.latest = self._next
        self._next = (self._next + 1) % len(self._slots)
        self._used += 1
        return tuple(array[:count] for array in self._slots[self.latest])

    def all_taken(self) -> None:
        """Return when the parent has taken everything."""
        while self._used:
            self._wait()

    def _wait(self) -> None:
        self._parent.receive()
        self._used -= 1


def _serve(parent: Channel, kind: EngineSpec) -> None:
    opening, _ = parent.receive()
    pinned: np.ndarray | None = None
    session: Session | None = None
    while True:
        facts = VideoFacts.from_json(opening["facts"], Path(opening["path"]))
        crop = CropPixels.from_json(opening["crop"])
        engine = kind.make(facts, crop)
        memory, arrays = _slots(parent, engine, part_samples(engine))
        if pinned is None or not np.shares_memory(memory, pinned) or memory.nbytes > pinned.nbytes:
            engine.pin(memory, pinned)
            pinned = memory
        slots = _Slots(parent, arrays)
        session = Session(engine, facts, part_samples(engine), slots.room, lambda: False, before=session)
        opening = _serve_video(parent, session, slots)


def _serve_video(parent: Channel, session: Session, slots: _Slots) -> dict[str, Any]:
    """Decode the segments that are asked for; returns the message that opens the next video."""
    while True:
        request, payloads = parent.receive()
        if "facts" in request:
            return request
        *sample_pts, table, data = payloads
        packets = table.view(np.int64).reshape(-1, PACKET_NUMBERS)
        segment = PackedSegment(request["number"], Span(*request["span"]), packets, data).unpack()
        if not sample_pts:
            session.get_ready(segment.packets)
            continue
        try:
            for part in session.decode(segment, sample_pts[0].view(np.int64)):
                parent.send(
                    {
                        "first_sample": part.first_sample,
                        "count": part.count,
                        "undecodable": part.undecodable,
                        "is_last": part.is_last,
                        "slot": None if part.crops is None else slots.latest,
                    }
                )
            slots.all_taken()
        except (KeyFrameNotDecodableError, PictureChangesError, VideoError, DecodeError) as error:
            parent.send_error(error)
        except ChannelError:
            raise
        except Exception as error:
            parent.send_error(DecodeError(f"the decoder failed unexpectedly: {error!r}"))


def serve(channels: list[Channel], kind: str) -> None:
    """In the child: sessions that answer over their channels until the parent closes them."""
    engine_kind = EngineSpec(**json.loads(kind))
    with suppress(OSError, DecodeError):  # said when the first video is opened
        engine_kind.warm_up()
    serve_each(channels, lambda channel: _serve(channel, engine_kind))
