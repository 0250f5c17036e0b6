"""Encoding chunks in processes beside this one.

An encoder in a thread takes Python's lock, and gives it up, some ten times for each frame. Where a GPU decodes
thousands of frames a second, the threads that feed it then wait for the lock and not for the GPU. A process has a lock
of its own, and one message for a chunk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, cast

import numpy as np

from caption_extents.chunks.assemble import ChunkFrames
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.errors import EncodeError
from caption_extents.memory import own_peak_memory_of

_COMMAND = [sys.executable, "-m", "caption_extents.chunks.encode_process"]
_HEADER = struct.Struct("<Q")
_REPLY = struct.Struct("<?Qdd")  # encoded or not, bytes that follow, CPU seconds of the thread and of the process
_PIPE_BYTES = 1 << 20
_NICENESS = 5
"""Encoders have hundreds of chunks to catch up with, and what feeds the GPU has not: it goes first."""


class EncoderProcesses:
    """Encodes chunks in child processes, which are started as they are needed, one for each call that is under way.

    A context manager that ends them.
    """

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        """That the children took to encode."""
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children: list[_Child] = []
        self._lock = threading.Lock()
        self._closed = False
        self._peak_memory_bytes = 0

    def __enter__(self) -> EncoderProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def end(self) -> None:
        """Have the children end, without waiting for them; calls that are under way fail."""
        with self._lock:
            if not self._closed:
                self._closed, self._peak_memory_bytes = True, self._measured_peak()
                for child in self._children:
                    child.kill()

    def close(self) -> None:
        """End the children."""
        self.end()
        for child in self._children:
            child.close()

    @property
    def peak_memory_bytes(self) -> int:
        """The children's largest resident sets together; pages that they share are counted once."""
        with self._lock:
            return self._peak_memory_bytes if self._closed else self._measured_peak()

    def _measured_peak(self) -> int:
        return sum(own_peak_memory_of(child.process_id) for child in self._children)

    def encode(self, frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat) -> tuple[EncodedChunk, float]:
        """Encode a chunk, from several threads at once; also the CPU seconds that a thread would have taken.

        Raises:
            EncodeError: the encoder refused, or its process has died; names the chunk.
        """
        child = self._take()
        encoded, seconds = child.encode(frames, preset, form)
        with self._lock:
            self.cpu_seconds += seconds.process
        self._idle.put(child)
        return encoded, seconds.thread

    def _take(self) -> _Child:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            if self._closed:
                raise EncodeError("the encoder processes have been ended")
            child = _Child()
            self._children.append(child)
        return child


@dataclass(frozen=True)
class _Seconds:
    thread: float
    process: float


class _Child:
    """One process; one call at a time."""

    def __init__(self) -> None:
        # In a session of its own: Ctrl-C is for the parent, and the child ends with its pipe.
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

        self.process_id = self._process.pid
        # A chunk in a few turns at Python's lock, not in one for each 64 KiB.
        with contextlib.suppress(OSError):  # refused where the system keeps pipes short
            fcntl.fcntl(cast(IO[bytes], self._process.stdin), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def encode(self, frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat) -> tuple[EncodedChunk, _Seconds]:
        requests, replies = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        task = _Task(frames.plan, [plane.shape for plane in frames.planes], preset_to_plain(preset), form)
        try:
            message = pickle.dumps(task)
            requests.write(_HEADER.pack(len(message)) + message)
            for plane in frames.planes:
                requests.write(cast(Any, np.ascontiguousarray(plane).reshape(-1).data))
            requests.flush()
            done, size, thread, process = _REPLY.unpack(_read(replies, _REPLY.size))
            data = _read(replies, size)
        except (OSError, EOFError, ValueError) as error:
            raise EncodeError(f"{_name(frames.plan)} could not be encoded: {self._end()}") from error
        if not done:
            raise EncodeError(data.decode())
        return EncodedChunk(frames.plan, data), _Seconds(thread, process)

    def _end(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the encoder's process does not answer"
        if code < 0:
            return (
                f"the encoder's process was ended by signal {signal.Signals(-code).name}; is there too little memory?"
            )
        return f"the encoder's process ended with code {code}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # Something unsent may be left in it.
            with contextlib.suppress(BrokenPipeError, ValueError):
                cast(IO[bytes], pipe).close()


def _name(plan: ChunkPlan) -> str:
    return f"chunk {plan.first_sample} of level {plan.level}"


@dataclass(frozen=True)
class _Task:
    """What goes before the planes' bytes."""

    plan: ChunkPlan
    shapes: list[tuple[int, ...]]
    preset: dict[str, Any]
    form: ChunkFormat


def preset_to_plain(preset: EncoderPreset) -> dict[str, Any]:
    """A preset's arguments as data that can be sent: its options are a view, which cannot."""
    return {"name": preset.name, "threads": preset.threads, "options": dict(preset.options)}


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError("the other end has closed")
    return data


# From here on: the child.


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    while header := requests.read(_HEADER.size):
        task: _Task = pickle.loads(_read(requests, _HEADER.unpack(header)[0]))  # noqa: S301 from the parent
        y, u, v = (_read_plane(requests, shape) for shape in task.shapes)
        started, started_thread = time.process_time(), time.thread_time()
        try:
            frames = ChunkFrames(task.plan, (y, u, v))
            done, data = True, encode_chunk(frames, EncoderPreset(**task.preset), task.form).data
        except EncodeError as error:
            done, data = False, str(error).encode()
        spent = time.thread_time() - started_thread, time.process_time() - started
        replies.write(_REPLY.pack(done, len(data), *spent) + data)
        replies.flush()


def _read_plane(requests: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    plane = np.empty(shape, np.uint8)
    view = memoryview(cast(Any, plane.reshape(-1)))
    while view:
        got = cast(Any, requests).readinto(view)
        if not got:
            raise EOFError("the parent has closed")
        view = view[got:]
    return plane


def main() -> None:
    """The child: answers its parent over stdin and stdout until that closes."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the messages
    with contextlib.suppress(EOFError, BrokenPipeError):  # then the parent is gone
        _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    # Tasks are sent by a process that knows this module by its full name.
    from caption_extents.chunks import encode_process

    encode_process.main()
