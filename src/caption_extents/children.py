"""Child processes: how all parts of this package start, talk to and end them.

A child is ``python -m caption_extents.child MODULE:FUNCTION`` with some channels. A channel is a socket for messages
(a JSON object and any number of binary payloads) and a file in memory that both sides can map. Nothing that comes from
a child is unpickled or executed, and sizes are checked before memory is allocated, because a child may have been taken
over by the file that it decodes. A child ends when its parent closes it or is gone.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import IO, Any, Generic, Protocol, TypeVar, cast

import numpy as np

from caption_extents import errors
from caption_extents.errors import StallError
from caption_extents.machine import cpu_seconds_of, own_peak_memory_of
from caption_extents.spawning import ChildKind, SpawnedProcess
from caption_extents.watchdog import install_waker, report_progress, wake_threads

_HEADER = struct.Struct("<II")
"""Bytes of the JSON object, and number of payloads. A header of zeros is a sign of life."""
_MAX_JSON_BYTES = 1 << 24
_MAX_PAYLOADS = 16
_MAX_PAYLOAD_BYTES = 1 << 32
_POLL_MILLISECONDS = 60_000
_LIFE_SECONDS = 0.2
_ASK_SECONDS = 2.0
_SOCKET_BYTES = 1 << 20
_MESSAGE_CHARACTERS = 500
_MOST_KNOWN = 64

_ERRORS = {name: getattr(errors, name) for name in ("VideoError", "DecodeError", "EncodeError", "StallError")}
"""Errors that a child may report, by the names of their classes."""


class ChannelError(Exception):
    """The other end of the channel has closed, or has sent an invalid message; the text says which."""


class Channel:
    """Messages and shared memory between a parent and a child. Each side uses it from one thread at a time.

    Args:
        end: this side's socket.
        memory: the shared file.
        errors: further errors that the other side may report, by the names of their classes.
    """

    def __init__(
        self, end: socket.socket, memory: IO[bytes], errors: Mapping[str, type[Exception]] | None = None
    ) -> None:
        self._end, self._memory = end, memory
        self._mapped = np.empty(0, np.uint8)
        self._errors = {**_ERRORS, **(errors or {})}
        self._told = time.monotonic()
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)

    def send(self, message: Mapping[str, Any], *payloads: np.ndarray | bytes | bytearray) -> None:
        """Send a message.

        Raises:
            ChannelError: the other end has closed.
        """
        text = json.dumps(message).encode()
        views = [memoryview(cast(Any, _contiguous(payload))).cast("B") for payload in payloads]
        sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
        try:
            with self._sending:
                self._end.sendall(_HEADER.pack(len(text), len(views)) + sizes + text)
                for view in views:
                    self._end.sendall(view)
        except OSError as error:
            raise ChannelError("it has ended") from error

    def send_error(self, error: Exception) -> None:
        """Send an error, which the other side raises; as a RuntimeError if it does not know the class."""
        self.send({"error": str(error)[:_MESSAGE_CHARACTERS], "kind": type(error).__name__})

    def send_keep_alive(self) -> None:
        """Send a keep-alive, at most every 0.2 s, so that the other side knows that this process makes progress."""
        now = time.monotonic()
        if now - self._told > _LIFE_SECONDS:
            self._told = now
            with suppress(OSError), self._sending:
                self._end.sendall(bytes(_HEADER.size))

    def receive(
        self, wait: Callable[[Channel], None] | None = None, limit_bytes: int = _MAX_PAYLOAD_BYTES
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Receive the next message and its payloads, each uint8 (size,).

        Args:
            wait: called with this channel before each read; it must return when data can be read.
            limit_bytes: maximum size of all payloads together.

        Raises:
            ChannelError: the other end has closed, or sent something else.
            Exception: the error that the other side sent.
        """
        with self._receiving:
            message, payloads = self._receive(wait, limit_bytes)
        if "error" in message:
            text = str(message["error"])[:_MESSAGE_CHARACTERS]
            raise self._errors.get(str(message.get("kind")), RuntimeError)(text)
        return message, payloads

    def _receive(
        self, wait: Callable[[Channel], None] | None, limit_bytes: int
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        size, count = _HEADER.unpack(bytes(self._read(_HEADER.size, wait)))
        while size == 0:
            size, count = _HEADER.unpack(bytes(self._read(_HEADER.size, wait)))
        if size > _MAX_JSON_BYTES or count > _MAX_PAYLOADS:
            raise ChannelError(f"a message of {size} bytes with {count} payloads")
        sizes = struct.unpack(f"<{count}Q", bytes(self._read(8 * count, wait)))
        if sum(sizes) > limit_bytes:
            raise ChannelError(f"payloads of {sum(sizes)} bytes")
        try:
            message = json.loads(bytes(self._read(size, wait)))
        except (ValueError, RecursionError) as error:
            raise ChannelError("a message that is no JSON") from error
        if not isinstance(message, dict):
            raise ChannelError("a message that is no object")
        return message, [self._read(payload, wait) for payload in sizes]

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds``; whether data can be read, or the other end has closed."""
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self._end, selectors.EVENT_READ)
            except ValueError as error:
                raise ChannelError("it has been closed") from error
            return bool(selector.select(seconds))

    def _read(self, size: int, wait: Callable[[Channel], None] | None) -> np.ndarray:
        # Pages of this buffer are committed only when data arrives, not when the sender announces a size.
        data = np.empty(size, np.uint8)
        view = memoryview(cast(Any, data))
        try:
            while view:
                if wait is not None:
                    wait(self)
                got = self._end.recv_into(view)
                if got == 0:
                    raise ChannelError("it has ended")
                view = view[got:]
                report_progress()
        except OSError as error:
            raise ChannelError("it has ended") from error
        return data

    def memory(self, size: int) -> np.ndarray:
        """The first bytes of the shared memory, uint8 (size,), which grows as needed."""
        if len(self._mapped) < size:
            if os.fstat(self._memory.fileno()).st_size < size:
                os.ftruncate(self._memory.fileno(), size)
            self._mapped = np.frombuffer(mmap.mmap(self._memory.fileno(), size), np.uint8)
        return self._mapped[:size]

    def shut_down(self) -> None:
        """Shut down the socket, so that a thread that waits for the other side gets an error."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shut down, wait until no thread uses the channel any more, and close the socket and the shared file."""
        self.shut_down()
        # Take the locks first: a closed descriptor number may be reused while a thread still reads from it.
        with self._receiving, self._sending:
            self._end.close()
            self._memory.close()


def _contiguous(payload: np.ndarray | bytes | bytearray) -> np.ndarray | bytes | bytearray:
    return np.ascontiguousarray(payload) if isinstance(payload, np.ndarray) else payload


class Child:
    """A child process, which runs already.

    Args:
        spawned: the process; the child takes over its channels.
        stall_seconds: :meth:`receive` raises StallError if nothing arrives for this long; None to wait without limit.
        errors: additional exception classes that the child may report, by their names.
    """

    def __init__(
        self,
        spawned: SpawnedProcess,
        *,
        stall_seconds: float | None = None,
        errors: Mapping[str, type[Exception]] | None = None,
    ) -> None:
        self.stall_seconds = stall_seconds
        self._closing = threading.Lock()
        self._closed = False
        self._peak_memory_bytes, self._ask_again_at, self._cpu_seconds = 0, 0.0, 0.0
        self._process = spawned.process
        self.channels = [
            Channel(end, memory, errors) for end, memory in zip(spawned.ends, spawned.memories, strict=True)
        ]

    @property
    def process_id(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def receive(
        self, channel: Channel | None = None, limit_bytes: int = _MAX_PAYLOAD_BYTES
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The next message of a channel, by default of the first; see :meth:`Channel.receive`.

        Raises:
            ChannelError: the child has ended, or cannot be trusted.
            StallError: it gave no sign of life; its threads have been woken once.
            Exception: the error that the child reports.
        """
        wait = None if self.stall_seconds is None else self._wait
        return (channel or self.channels[0]).receive(wait, limit_bytes)

    def _wait(self, channel: Channel) -> None:
        assert self.stall_seconds is not None
        if channel.wait(self.stall_seconds / 2):
            return
        wake_threads(self.process_id)
        if not channel.wait(self.stall_seconds / 2):
            raise StallError(f"nothing came from the process for {self.stall_seconds:g} s")

    def describe_exit(self) -> str:
        """How the child ended, as a phrase for an error message; waits up to a second for it to end."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "does not answer"
        return f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`kill` or :meth:`close` was called."""
        with self._closing:
            return self._closed

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, by itself or because it was closed."""
        return self._process.poll() is not None

    @property
    def peak_memory_bytes(self) -> int:
        """Largest resident set of the child until a moment ago, in bytes; shared pages count proportionally.

        The system counts pages for that, which takes it 10 ms for a process with much memory: it is not asked again
        for a while.
        """
        with self._closing:
            if self._runs() and time.monotonic() >= self._ask_again_at:
                self._count_memory()
        return self._peak_memory_bytes

    def _count_memory(self) -> None:
        self._peak_memory_bytes = own_peak_memory_of(self.process_id)
        self._ask_again_at = time.monotonic() + _ASK_SECONDS

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds that the child took so far."""
        with self._closing:
            if self._runs():
                self._cpu_seconds = cpu_seconds_of(self.process_id)
        return self._cpu_seconds

    def _runs(self) -> bool:
        return not self._closed and self._process.poll() is None

    def kill(self) -> None:
        """End the child without waiting for it; threads that wait for it fail. Calling it twice is harmless."""
        # What it took is still asked for when it is gone.
        _ = self.cpu_seconds
        with self._closing:
            if self._runs():
                self._count_memory()
            self._closed = True
            for channel in self.channels:
                channel.shut_down()
            self._process.kill()

    def end(self, seconds: float) -> None:
        """Close the child's channels, give it some time to end by itself, and then :meth:`close` it."""
        for channel in self.channels:
            channel.shut_down()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.close()

    def close(self) -> None:
        """End the child and free what belongs to it."""
        self.kill()
        self._process.wait()
        with self._closing:
            for channel in self.channels:
                channel.close()


class Children:
    """The child processes of one run, or of many: started here, counted together and closed together.

    Args:
        ready: processes that run already, for calls of :meth:`start`.
    """

    def __init__(self, ready: Iterable[tuple[ChildKind, SpawnedProcess]] = ()) -> None:
        self._all: list[Child] = []
        self._ready = list(ready)
        self._forgotten_cpu_seconds = 0.0
        self._lock = threading.Lock()

    def take_over(self, ready: Iterable[tuple[ChildKind, SpawnedProcess]]) -> None:
        """More processes that run already, for calls of :meth:`start`."""
        with self._lock:
            self._ready += ready

    def start(
        self,
        kind: ChildKind,
        *,
        stall_seconds: float | None = None,
        errors: Mapping[str, type[Exception]] | None = None,
    ) -> Child:
        """A :class:`Child` of a kind: one that was started ahead, or a new one."""
        with self._lock:
            running = (ready for ready in self._ready if ready[0] == kind and ready[1].process.poll() is None)
            there = next(running, None)
            if there is not None:
                self._ready.remove(there)
        child = Child(there[1] if there else SpawnedProcess(kind), stall_seconds=stall_seconds, errors=errors)
        with self._lock:
            self._all.append(child)
            if len(self._all) > _MOST_KNOWN:
                self._forget_ended()
        return child

    def _forget_ended(self) -> None:
        """Keep only the CPU time of those that have ended: of many runs there may be thousands."""
        ended = [child for child in self._all if child.is_closed]
        self._forgotten_cpu_seconds += sum(child.cpu_seconds for child in ended)
        self._all = [child for child in self._all if child not in ended]

    @property
    def peak_memory_bytes(self) -> int:
        """Their largest resident sets together; pages that they share are counted once."""
        with self._lock:
            known = list(self._all)
        return sum(child.peak_memory_bytes for child in known)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds that they took so far."""
        with self._lock:
            return self._forgotten_cpu_seconds + sum(child.cpu_seconds for child in self._all)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            children, ready = list(self._all), self._ready
            self._ready = []
        children += [Child(spawned) for _, spawned in ready]
        for child in children:
            child.kill()
        for child in children:
            child.close()


class Reusable(Protocol):
    """A child process, or what wraps one."""

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        ...

    def close(self) -> None:
        """End it."""
        ...


R = TypeVar("R", bound=Reusable)


class Pool(Generic[R]):
    """Processes that work on one video after the other, each on one at a time.

    A process is given back only after a video with which it has got to the end, and only to another video of the same
    owner: a hostile file that has taken over the process could change what it gives of later videos.

    Args:
        start: starts a process.
        most_idle: processes that are kept while no video needs them; 0 to end each after its video.
    """

    def __init__(self, start: Callable[[], R], most_idle: int = 0) -> None:
        self._start, self._most_idle = start, most_idle
        self._idle: list[tuple[str, R]] = []
        """With whose videos they have worked on; the one that was given back last is the last."""
        self._lock = threading.Lock()

    def take(self, owner: str = "") -> R:
        """A process that no other video uses, and that has worked for nobody else."""
        with self._lock:
            dead = [process for _, process in self._idle if process.has_ended]
            self._idle = [(whose, process) for whose, process in self._idle if process not in dead]
            found = next((entry for entry in reversed(self._idle) if entry[0] == owner), None)
            if found is not None:
                self._idle.remove(found)
        for process in dead:
            process.close()
        return self._start() if found is None else found[1]

    def give_back(self, process: R, owner: str = "") -> None:
        """Keep a process, which has nothing left to do, for the owner's next video, in place of the oldest."""
        with self._lock:
            self._idle.append((owner, process))
            surplus = self._idle[: -self._most_idle] if self._most_idle else self._idle
            self._idle = self._idle[len(surplus) :]
        for _, one in surplus:
            one.close()

    def close(self) -> None:
        """End the idle processes; those given back later end at once."""
        with self._lock:
            idle, self._idle, self._most_idle = self._idle, [], 0
        for _, process in idle:
            process.close()


def arrays_in(memory: np.ndarray, shapes: Iterable[tuple[int, ...]]) -> list[np.ndarray]:
    """Views of consecutive regions of ``memory``, uint8 (size,), with the given shapes."""
    arrays, at = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(memory[at : at + size].reshape(shape))
        at += size
    return arrays


def serve_each(channels: list[Channel], serve: Callable[[Channel], None]) -> None:
    """In a child process: run ``serve`` for each channel in its own thread, until the parent closes all channels."""

    def until_closed(channel: Channel) -> None:
        try:
            with suppress(ChannelError):
                serve(channel)
        finally:
            channel.shut_down()  # also after an error that nobody foresaw: the parent must not wait for ever

    threads = [threading.Thread(target=until_closed, args=(channel,), daemon=True) for channel in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_last: tuple[Callable[[], None], float] | None = None


def before_end(function: Callable[[], None], seconds: float) -> None:
    """In a child process: call a function when the parent is gone, and go on for at most so long before the exit."""
    global _last
    _last = function, seconds


def _end_with_parent(ends: list[int]) -> None:
    """Exit this process when its parent has closed all sockets or has died, whatever its threads are doing."""
    poll = select.poll()
    for end in ends:
        poll.register(end, 0)  # a hang-up is always told
    left = set(ends)
    while left:
        for end, _ in poll.poll(_POLL_MILLISECONDS):
            poll.unregister(end)
            left.discard(end)
    if _last is not None:
        function, seconds = _last
        threading.Timer(seconds, os._exit, (1,)).start()
        function()
        time.sleep(seconds)
    os._exit(1)


def _inherited_channel(end: int, memory: int) -> Channel:
    return Channel(socket.socket(fileno=end), os.fdopen(memory, "r+b", buffering=0))


def run_child(
    target: str, inherited: list[int], arguments: list[str], ready: list[tuple[ChildKind, SpawnedProcess]]
) -> None:
    """In a child process: run a function, and exit when it returns or the parent is gone.

    Args:
        target: the function, as ``module:function``.
        inherited: file descriptors, those of a socket and of a memory for each channel.
        arguments: strings for the function, after the channels.
        ready: processes that were started ahead, for a function of which the kind says so.
    """
    os.dup2(2, 1)  # redirect stdout to stderr: output of libraries must not mix with the parent's results
    install_waker()
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    ends = list(zip(inherited[::2], inherited[1::2], strict=True))
    threading.Thread(target=_end_with_parent, args=(inherited[::2],), name="parent", daemon=True).start()
    with suppress(ChannelError):  # then the parent is gone
        channels = [_inherited_channel(*numbers) for numbers in ends]
        function(channels, *arguments, **({"ready": ready} if ready else {}))
    os._exit(0)  # without waiting for threads that are inside a codec
