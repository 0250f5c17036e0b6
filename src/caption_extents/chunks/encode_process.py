"""Encoding chunks in processes beside this one.

An encoder in a thread takes Python's lock, and gives it up, some ten times for each frame. Where a GPU decodes
thousands of frames a second, the threads that feed it then wait for the lock and not for the GPU. A process has a lock
of its own: a few encoders, in threads, leave it free nearly always. A chunk's planes go there through memory that both
share, and beside them go two messages for a chunk.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

import numpy as np

from caption_extents.chunks.assemble import ChunkFrames
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.errors import EncodeError
from caption_extents.interprocess import arrays_in, child_environment, mapped, receive
from caption_extents.memory import own_peak_memory_of

_MODULE = "caption_extents.chunks.encode_process"

ENCODERS = 4
"""In a process: few enough for one lock, many enough that Python and FFmpeg are not in memory once for each core."""

_HEADER = struct.Struct("<Q")
_REPLY = struct.Struct("<?Qdd")  # encoded or not, bytes that follow, CPU seconds of the thread and of the process
_NICENESS = 5
"""Encoders have hundreds of chunks to catch up with, and what feeds the GPU has not: it goes first."""


class EncoderProcesses:
    """Encodes chunks in child processes, which are started as they are needed: one for :data:`ENCODERS` calls at once.

    A context manager that ends them.
    """

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        """That the children took to encode."""
        self._idle: queue.SimpleQueue[_Line] = queue.SimpleQueue()
        self._children: list[_Child] = []
        self._starting: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._peak_memory_bytes = 0

    def __enter__(self) -> EncoderProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, count: int) -> None:
        """Begin to start children for so many calls at once: they take half a second to be ready."""
        self._starting = threading.Thread(target=self._start, args=(count,), name="start-encoders", daemon=True)
        self._starting.start()

    def _start(self, count: int) -> None:
        for _ in range(-(-count // ENCODERS)):
            with self._lock:
                if self._closed or len(self._children) * ENCODERS >= count:
                    return
                # Whoever needs one that could not be started tries again, and is told.
                with contextlib.suppress(OSError):
                    self._start_child()

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
        if self._starting is not None:
            self._starting.join()
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
        line = self._take()
        encoded, seconds = line.encode(frames, preset, form)
        with self._lock:
            self.cpu_seconds += seconds.process
        self._idle.put(line)
        return encoded, seconds.thread

    def _take(self) -> _Line:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._idle.get_nowait()
            with self._lock:
                if self._closed:
                    raise EncodeError("the encoder processes have been ended")
                # Others may have waited for the lock with this thread, and started a process.
                if self._idle.empty():
                    self._start_child()

    def _start_child(self) -> None:
        child = _Child()
        self._children.append(child)
        for line in child.lines:
            self._idle.put(line)


@dataclass(frozen=True)
class _Seconds:
    thread: float
    process: float


class _Child:
    """One process, and a line to each of its encoders."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(ENCODERS)]
        memories = [_new_memory() for _ in range(ENCODERS)]
        inherited = [
            number
            for (_, there), memory in zip(pairs, memories, strict=True)
            for number in (there.fileno(), memory.fileno())
        ]
        # In a session of its own: Ctrl-C is for the parent, and the child ends with its lines.
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, *map(str, inherited)],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            start_new_session=True,
            env=child_environment(),
        )
        for _, there in pairs:
            there.close()
        self.process_id = self._process.pid
        self.lines = [_Line(self, here, memory) for (here, _), memory in zip(pairs, memories, strict=True)]

    def how_it_ended(self) -> str:
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
        for line in self.lines:
            line.close()


def _new_memory() -> IO[bytes]:
    """A file in memory, or one on disk that nobody else sees."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("caption-extents-chunk"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


class _Line:
    """To one encoder of a child; one call at a time."""

    def __init__(self, child: _Child, end: socket.socket, memory: IO[bytes]) -> None:
        self._child, self._end, self._memory = child, end, memory
        self._shared = np.empty(0, np.uint8)

    def encode(self, frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat) -> tuple[EncodedChunk, _Seconds]:
        task = _Task(frames.plan, [plane.shape for plane in frames.planes], preset_to_plain(preset), form)
        try:
            for shared, plane in zip(arrays_in(self._room(task.size), task.shapes), frames.planes, strict=True):
                np.copyto(shared, plane)
            message = pickle.dumps(task)
            self._end.sendall(_HEADER.pack(len(message)) + message)
            done, length, thread, process = _REPLY.unpack(receive(self._end, _REPLY.size))
            data = bytes(receive(self._end, length))
        except (OSError, EOFError, ValueError) as error:
            raise EncodeError(f"{_name(frames.plan)} could not be encoded: {self._child.how_it_ended()}") from error
        if not done:
            raise EncodeError(data.decode())
        return EncodedChunk(frames.plan, data), _Seconds(thread, process)

    def _room(self, size: int) -> np.ndarray:
        if len(self._shared) < size:
            self._memory.truncate(size)
            self._shared = mapped(self._memory.fileno(), size)
        return self._shared

    def close(self) -> None:
        self._end.close()
        self._memory.close()


def _name(plan: ChunkPlan) -> str:
    return f"chunk {plan.first_sample} of level {plan.level}"


@dataclass(frozen=True)
class _Task:
    """A chunk whose planes stand in the shared memory, one after the other."""

    plan: ChunkPlan
    shapes: list[tuple[int, ...]]
    preset: dict[str, Any]
    form: ChunkFormat

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)


def preset_to_plain(preset: EncoderPreset) -> dict[str, Any]:
    """A preset's arguments as data that can be sent: its options are a view, which cannot."""
    return {"name": preset.name, "threads": preset.threads, "options": dict(preset.options)}


# From here on: the child.


class _Spent:
    """The CPU seconds of the process, told in parts by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = time.process_time()

    def since_last(self) -> float:
        with self._lock:
            now = time.process_time()
            spent, self._told = now - self._told, now
        return spent


def _serve(end: socket.socket, memory: int, spent: _Spent) -> None:
    shared = np.empty(0, np.uint8)
    while True:
        (length,) = _HEADER.unpack(receive(end, _HEADER.size))
        task: _Task = pickle.loads(receive(end, length))  # noqa: S301 from the parent
        started = time.thread_time()
        try:
            if len(shared) < task.size:
                shared = mapped(memory, task.size)
            y, u, v = arrays_in(shared, task.shapes)
            frames = ChunkFrames(task.plan, (y, u, v))
            done, data = True, encode_chunk(frames, EncoderPreset(**task.preset), task.form).data
        except EncodeError as error:
            done, data = False, str(error).encode()
        except Exception as error:
            done, data = False, f"{_name(task.plan)} could not be encoded: {error!r}".encode()
        end.sendall(_REPLY.pack(done, len(data), time.thread_time() - started, spent.since_last()) + data)


def _serve_until_closed(end: socket.socket, memory: int, spent: _Spent) -> None:
    with end, contextlib.suppress(OSError, EOFError):  # then the parent is gone
        _serve(end, memory, spent)


def main() -> None:
    """The child: its encoders answer the parent until that closes their lines."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    os.dup2(2, 1)  # the parent's output is for its results
    numbers = [int(number) for number in sys.argv[1:]]
    spent = _Spent()
    threads = []
    for end, memory in zip(numbers[::2], numbers[1::2], strict=True):
        line = socket.socket(fileno=end), memory, spent
        threads.append(threading.Thread(target=_serve_until_closed, args=line))
        threads[-1].start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    # Tasks are sent by a process that knows this module by its full name.
    from caption_extents.chunks import encode_process

    encode_process.main()
