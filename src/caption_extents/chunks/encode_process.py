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
from typing import IO, Any, NamedTuple

import numpy as np

from caption_extents.chunks.assemble import ChunkFrames
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.errors import EncodeError
from caption_extents.interprocess import arrays_in, child_environment, mapped, receive
from caption_extents.memory import own_peak_memory_of
from caption_extents.watchdog import alive

_MODULE = "caption_extents.chunks.encode_process"

ENCODERS = 4
"""In a process: few enough for one lock, many enough that Python and FFmpeg are not in memory once for each core."""

_WAITING = 1
"""Chunks that a process holds beside those that it encodes.

An encoder that is done begins the next at once, while this process takes its result, when it gets Python's lock, and
brings another chunk.
"""

_HEADER = struct.Struct("<Q")
_REPLY = struct.Struct("<?Qddd")  # encoded or not, bytes that follow, and the seconds of Effort
_LIFE = (1 << 64) - 1
"""In place of a number of bytes: the chunk is being encoded."""
_LIFE_SECONDS = 1.0
_NICENESS = 5
"""Encoders have hundreds of chunks to catch up with, and what feeds the GPU has not: it goes first."""


class Effort(NamedTuple):
    """What encoding a chunk took.

    Attributes:
        seconds: from its beginning to its end.
        thread_seconds: CPU time of the encoder's thread.
        process_seconds: CPU time of its process that no other chunk has counted.
    """

    seconds: float
    thread_seconds: float
    process_seconds: float


class EncoderProcesses:
    """Encodes chunks in child processes, :data:`ENCODERS` at once in each; they are started as they are needed.

    A context manager that ends them.

    Args:
        encoders: chunks encoded at once.
    """

    def __init__(self, encoders: int) -> None:
        self.cpu_seconds = 0.0
        """That the children took to encode."""
        count = -(-encoders // ENCODERS)
        self._sizes = [encoders // count + (index < encoders % count) for index in range(count)]
        """Encoders in each child."""
        self._children: list[_Child] = []
        self._starting: threading.Thread | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._peak_memory_bytes = 0

    def __enter__(self) -> EncoderProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def calls(self) -> int:
        """Calls of :meth:`encode` at once that leave no encoder without a chunk."""
        return sum(self._sizes) + len(self._sizes) * _WAITING

    def start(self) -> None:
        """Begin to start all children: they take half a second to be ready."""
        self._starting = threading.Thread(target=self._start, name="start-encoders", daemon=True)
        self._starting.start()

    def _start(self) -> None:
        for _ in self._sizes:
            with self._changed:
                if self._closed or not self._can_start():
                    return
                # Whoever needs one that could not be started tries again, and is told.
                with contextlib.suppress(OSError):
                    self._start_child()

    def end(self) -> None:
        """Have the children end, without waiting for them; calls that are under way fail."""
        with self._changed:
            if not self._closed:
                self._closed, self._peak_memory_bytes = True, self._measured_peak()
                for child in self._children:
                    child.kill()
                self._changed.notify_all()

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
        with self._changed:
            return self._peak_memory_bytes if self._closed else self._measured_peak()

    def _measured_peak(self) -> int:
        return sum(own_peak_memory_of(child.process_id) for child in self._children)

    def encode(self, frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        """Encode a chunk, from several threads at once.

        Raises:
            EncodeError: the encoder refused, or its process has died; names the chunk.
        """
        child, line = self._take()
        try:
            encoded, effort = line.encode(frames, preset, form)
        except _LineError as error:
            child.is_lost = True
            raise EncodeError(f"{_name(frames.plan)} could not be encoded: {child.how_it_ended()}") from error
        finally:
            self._give_back(child, line)
        with self._changed:
            self.cpu_seconds += effort.process_seconds
        return encoded, effort

    def _take(self) -> tuple[_Child, _Line]:
        """A line of the child with the least to do; a new child rather than one whose encoders are all at work."""
        with self._changed:
            while not self._closed:
                children = [child for child in self._children if child.idle and not child.is_lost]
                child = min(children, key=lambda child: child.load, default=None)
                if (child is None or child.load >= 0) and self._can_start():
                    child = self._start_child()
                if child is not None:
                    return child, child.idle.pop()
                self._changed.wait()
            raise EncodeError("the encoder processes have been ended")

    def _give_back(self, child: _Child, line: _Line) -> None:
        with self._changed:
            child.idle.append(line)
            self._changed.notify()

    def _can_start(self) -> bool:
        return self._running() < len(self._sizes)

    def _running(self) -> int:
        return sum(not child.is_lost for child in self._children)

    def _start_child(self) -> _Child:
        child = _Child(self._sizes[self._running()])
        self._children.append(child)
        return child


class _Child:
    """One process, and lines to it: one for each of its encoders, and for each chunk that waits there."""

    def __init__(self, encoders: int) -> None:
        lines = encoders + _WAITING
        pairs = [socket.socketpair() for _ in range(lines)]
        memories = [_new_memory() for _ in range(lines)]
        inherited = [
            number
            for (_, there), memory in zip(pairs, memories, strict=True)
            for number in (there.fileno(), memory.fileno())
        ]
        # In a session of its own: Ctrl-C is for the parent, and the child ends with its lines.
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(encoders), *map(str, inherited)],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            start_new_session=True,
            env=child_environment(),
        )
        for _, there in pairs:
            there.close()
        self.process_id = self._process.pid
        self.is_lost = False
        self._encoders = encoders
        self._lines = [_Line(here, memory) for (here, _), memory in zip(pairs, memories, strict=True)]
        self.idle = list(self._lines)

    @property
    def load(self) -> int:
        """Chunks that it has above its encoders; below zero while some have none."""
        return len(self._lines) - len(self.idle) - self._encoders

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
        for line in self._lines:
            line.close()


def _new_memory() -> IO[bytes]:
    """A file in memory, or one on disk that nobody else sees."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("caption-extents-chunk"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


class _LineError(Exception):
    """The child at the other end has gone."""


class _Line:
    """To a child, one chunk at a time."""

    def __init__(self, end: socket.socket, memory: IO[bytes]) -> None:
        self._end, self._memory = end, memory
        self._shared = np.empty(0, np.uint8)

    def encode(self, frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        task = _Task(frames.plan, [plane.shape for plane in frames.planes], preset_to_plain(preset), form)
        try:
            for shared, plane in zip(arrays_in(self._room(task.size), task.shapes), frames.planes, strict=True):
                np.copyto(shared, plane)
            message = pickle.dumps(task)
            self._end.sendall(_HEADER.pack(len(message)) + message)
            done, length, *seconds = _REPLY.unpack(receive(self._end, _REPLY.size))
            while length == _LIFE:
                alive()
                done, length, *seconds = _REPLY.unpack(receive(self._end, _REPLY.size))
            data = bytes(receive(self._end, length))
        except (OSError, EOFError, ValueError) as error:
            raise _LineError from error
        if not done:
            raise EncodeError(data.decode())
        return EncodedChunk(frames.plan, data), Effort(*seconds)

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


class _Life:
    """Tells the parent now and then that its chunk is being encoded."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._told = end, time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if now - self._told > _LIFE_SECONDS:
            self._told = now
            self._end.sendall(_REPLY.pack(True, _LIFE, 0.0, 0.0, 0.0))


def _serve(end: socket.socket, memory: int, turn: threading.Semaphore, spent: _Spent) -> None:
    shared = np.empty(0, np.uint8)
    while True:
        (length,) = _HEADER.unpack(receive(end, _HEADER.size))
        task: _Task = pickle.loads(receive(end, length))  # noqa: S301 from the parent
        with turn:
            started, started_thread = time.perf_counter(), time.thread_time()
            try:
                if len(shared) < task.size:
                    shared = mapped(memory, task.size)
                y, u, v = arrays_in(shared, task.shapes)
                frames = ChunkFrames(task.plan, (y, u, v))
                show_life = _Life(end).show
                done, data = True, encode_chunk(frames, EncoderPreset(**task.preset), task.form, show_life).data
            except EncodeError as error:
                done, data = False, str(error).encode()
            except Exception as error:
                done, data = False, f"{_name(task.plan)} could not be encoded: {error!r}".encode()
            seconds, thread_seconds = time.perf_counter() - started, time.thread_time() - started_thread
        end.sendall(_REPLY.pack(done, len(data), seconds, thread_seconds, spent.since_last()) + data)


def _serve_until_closed(end: socket.socket, memory: int, turn: threading.Semaphore, spent: _Spent) -> None:
    with end, contextlib.suppress(OSError, EOFError):  # then the parent is gone
        _serve(end, memory, turn, spent)


def main() -> None:
    """The child: its encoders answer the parent until that closes their lines."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    os.dup2(2, 1)  # the parent's output is for its results
    encoders, *numbers = map(int, sys.argv[1:])
    turn, spent = threading.Semaphore(encoders), _Spent()
    threads = []
    for end, memory in zip(numbers[::2], numbers[1::2], strict=True):
        line = socket.socket(fileno=end), memory, turn, spent
        threads.append(threading.Thread(target=_serve_until_closed, args=line))
        threads[-1].start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    # Tasks are sent by a process that knows this module by its full name.
    from caption_extents.chunks import encode_process

    encode_process.main()
