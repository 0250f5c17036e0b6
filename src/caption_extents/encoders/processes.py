"""Encoding chunks in child processes.

An encoder in a thread acquires and releases the GIL about ten times per frame. If a GPU decodes thousands of frames per
second, the threads that feed the GPU then wait for the GIL instead of for the GPU. A child process has its own GIL,
which a few encoders hardly use. The planes of a chunk are passed to the child through shared memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np

from caption_extents import spawning
from caption_extents.children import Channel, ChannelError, Child, Children, arrays_in, serve_each
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.plan import ChunkFrames, ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.encoders.base import Effort
from caption_extents.errors import EncodeError
from caption_extents.spawning import WAITING_CHUNKS, ChildKind

_TURN_SECONDS = 0.5
_ENDED = "the encoder processes have been ended"
_NICENESS = 5
"""Niceness of the encoder processes: encoding can lag behind by hundreds of chunks, but the threads that feed the GPU
must not be delayed."""


class ProcessEncoder:
    """Encodes chunks in child processes, a few at once in each; a context manager that ends them.

    Args:
        preset, form: of all chunks.
        encoders: chunks encoded at once.
        children: of the run.
    """

    def __init__(self, preset: EncoderPreset, encoders: int, children: Children | None = None) -> None:
        self._preset = preset
        self._encoders, self._kinds = encoders, spawning.encoders(encoders)
        self._children = children or Children()
        self._lines: list[_ChildChannel] = []
        self._idle: list[_ChildChannel] = []
        self._all: list[Child] = []
        self._starting: threading.Thread | None = None
        self._is_starting = False
        self._start_error: Exception | None = None
        self._changed = threading.Condition()
        self._closed = False

    def __enter__(self) -> ProcessEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_failed(self) -> bool:
        """Whether no process could be started, or none again."""
        with self._changed:
            return self._has_no_process()

    def _has_no_process(self) -> bool:
        return self._start_error is not None and not self._lines and not self._is_starting

    @property
    def calls(self) -> int:
        """Number of concurrent calls of :meth:`encode` that keep all encoders busy: encoders plus queued chunks."""
        return self._encoders + len(self._kinds) * WAITING_CHUNKS

    def start(self) -> None:
        """Begin to start all children, if that has not begun: they take half a second to be ready."""
        with self._changed:
            if self._starting is None:
                self._is_starting = True
                self._starting = threading.Thread(target=self._start, name="start-encoders", daemon=True)
                self._starting.start()

    def _start(self) -> None:
        for kind in self._kinds:
            with self._changed:
                if self._closed:
                    return
                self._start_child(kind)
        with self._changed:
            self._is_starting = False
            self._changed.notify_all()

    def _start_child(self, kind: ChildKind) -> None:
        try:
            child = self._children.start(kind)
        except Exception as error:
            # The others do its work, if there are any.
            self._start_error = error
            self._changed.notify_all()
            return
        self._all.append(child)
        load = _Load(kind)
        lines = [_ChildChannel(child, channel, load) for channel in child.channels]
        self._lines += lines
        self._idle += lines
        self._changed.notify_all()

    def _replace_dead(self) -> None:
        """Start children in place of those that have died."""
        with self._changed:
            dead = [] if self._closed else [child for child in self._all if child.has_ended]
            kinds = {line.child: line.load.kind for line in self._lines}
            for child in dead:
                self._all.remove(child)
                self._idle = [line for line in self._idle if line.child is not child]
                self._lines = [line for line in self._lines if line.child is not child]
                self._start_child(kinds[child])
        for child in dead:
            child.close()

    def end(self) -> None:
        """End the children without waiting for them; calls that are under way fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for child in self._all:
            child.kill()

    def close(self) -> None:
        """End the children."""
        self.end()
        if self._starting is not None:
            self._starting.join()
        for child in self._all:
            child.close()

    def encode(self, frames: ChunkFrames, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        """Encode a chunk, from several threads at once; anew in a process of its own if the first one dies.

        Raises:
            EncodeError: the encoder refused, or the second process has died too; names the chunk.
        """
        self.start()
        try:
            return self._encode(frames, form)
        except ChannelError as error:
            if self._closed:
                raise EncodeError(_ENDED) from error
            self._replace_dead()
        # Alone: what made the process die may be another chunk that was in it.
        try:
            with closing(ProcessEncoder(self._preset, 1, self._children)) as alone:
                alone.start()
                return alone._encode(frames, form)
        except ChannelError as error:
            text = f"{_name(frames.plan)} could not be encoded: {error}; is there too little memory?"
            raise EncodeError(text) from error

    def _encode(self, frames: ChunkFrames, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        with self._line() as line:
            try:
                return line.encode(frames, self._preset, form)
            except ChannelError as error:
                raise ChannelError(f"the encoder's process {line.child.describe_exit()}") from error

    @contextmanager
    def _line(self) -> Iterator[_ChildChannel]:
        """Borrow a free channel to the least loaded child; waits until one is free."""
        with self._changed:
            while not (self._closed or self._idle or self._has_no_process()):
                self._changed.wait()
            if self._closed:
                raise EncodeError(_ENDED)
            if not self._idle:
                raise EncodeError(f"no encoder process could be started: {self._start_error}")
            line = min(self._idle, key=lambda line: line.load.above)
            self._idle.remove(line)
            line.load.above += 1
        try:
            yield line
        finally:
            with self._changed:
                line.load.above -= 1
                if line.child in self._all:
                    self._idle.append(line)
                    self._changed.notify()


class _Load:
    """Load of a child: number of its chunks minus number of its encoders; negative while some encoders are idle."""

    def __init__(self, kind: ChildKind) -> None:
        self.kind = kind
        self.above = WAITING_CHUNKS - kind.channels


class _ChildChannel:
    """A channel to a child, which processes one chunk at a time."""

    def __init__(self, child: Child, channel: Channel, load: _Load) -> None:
        self.child, self.load, self._channel = child, load, channel

    def encode(self, frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        shapes = [plane.shape for plane in frames.planes]
        size = sum(int(np.prod(shape)) for shape in shapes)
        for shared, plane in zip(arrays_in(self._channel.memory(size), shapes), frames.planes, strict=True):
            np.copyto(shared, plane)
        self._channel.send(
            {
                "plan": [frames.plan.level, frames.plan.samples],
                "shapes": shapes,
                "preset": preset.to_json(),
                "form": {**asdict(form), "frame_rate": str(form.frame_rate)},
            }
        )
        reply, (data,) = self.child.receive(self._channel)
        return EncodedChunk(frames.plan, bytes(data)), Effort(reply["seconds"], reply["thread_seconds"])


def _name(plan: ChunkPlan) -> str:
    return f"chunk {plan.first_sample} of level {plan.level}"


# From here on: the child.


def _encode(parent: Channel, task: dict[str, Any], turn: threading.Semaphore) -> None:
    level, samples = task["plan"]
    plan, shapes = ChunkPlan(level, tuple(samples)), [tuple(shape) for shape in task["shapes"]]
    form = ChunkFormat(**{**task["form"], "frame_rate": Fraction(task["form"]["frame_rate"])})
    # Send keep-alives while this chunk is queued: it has not stalled, and the encoders report their own progress.
    while not turn.acquire(timeout=_TURN_SECONDS):
        parent.send_keep_alive()
    try:
        started, started_thread = time.perf_counter(), time.thread_time()
        try:
            y, u, v = arrays_in(parent.memory(sum(int(np.prod(shape)) for shape in shapes)), shapes)
            preset = EncoderPreset.from_json(task["preset"])
            data = encode_chunk(ChunkFrames(plan, (y, u, v)), preset, form, parent.send_keep_alive).data
        except EncodeError as error:
            parent.send_error(error)
            return
        except Exception as error:
            parent.send_error(EncodeError(f"{_name(plan)} could not be encoded: {error!r}"))
            return
        seconds, thread_seconds = time.perf_counter() - started, time.thread_time() - started_thread
    finally:
        turn.release()
    parent.send({"seconds": seconds, "thread_seconds": thread_seconds}, data)


def serve(channels: list[Channel], encoders: str) -> None:
    """In the child: serve all channels until the parent closes them; encode at most ``encoders`` chunks at once."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    turn = threading.Semaphore(int(encoders))

    def serve_one(parent: Channel) -> None:
        while True:
            _encode(parent, parent.receive()[0], turn)

    serve_each(channels, serve_one)
