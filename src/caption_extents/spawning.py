"""Starting child processes, and which kinds there are; imports next to nothing, so that a run starts them first.

:mod:`caption_extents.children` talks to them.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

COMMAND = [sys.executable, "-m", "caption_extents.child"]

SESSIONS = 4
"""Decoder sessions per process: few, so that they do not compete for its GIL, but more than one, because each process
has a CUDA context, which takes GPU memory."""

ENCODERS = 4
"""Encoders per process: few, so that they do not compete for its GIL, but more than one, so that not every core needs
its own process with Python and FFmpeg in memory."""

WAITING_CHUNKS = 1
"""Chunks queued in each process of encoders, in addition to those being encoded.

An idle encoder takes the queued chunk at once. In the meantime the parent, which may have to wait for its GIL, takes
the result and sends another chunk.
"""


@dataclass(frozen=True)
class ChildKind:
    """What a child process runs; any child of a kind can do the work of any other.

    Attributes:
        target: function that the child runs, as ``module:function``; its first argument is the list of channels.
        channels: number of channels.
        arguments: strings that are passed to the function after the channels.
        quiet: whether to discard the output of the child's libraries (stdout and stderr).
        ahead: what the child starts before its own modules are imported; passed to the function as ``ready``, for its
            :class:`~caption_extents.children.Children`, if there is any.
    """

    target: str
    channels: int = 1
    arguments: tuple[str, ...] = ()
    quiet: bool = False
    ahead: tuple[ChildKind, ...] = ()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ChildKind:
        """Inverse of :func:`dataclasses.asdict`, also after a way through JSON."""
        ahead = tuple(map(cls.from_json, fields["ahead"]))
        return cls(**{**fields, "arguments": tuple(fields["arguments"]), "ahead": ahead})


# What goes wrong in a reader comes as a message; what its libraries print is dropped.
READER = ChildKind("caption_extents.video.decoders.isolated:serve", quiet=True)


def decoder_sessions(
    ordinal: int, module: str = "caption_extents.video.nvdec.engine", name: str = "NvdecEngine"
) -> ChildKind:
    """Sessions that decode with the engines of a class, on a device by its number."""
    engine = json.dumps({"module": module, "name": name, "ordinal": ordinal})
    return ChildKind("caption_extents.video.nvdec.worker:serve", SESSIONS, (engine,))


def model(
    path: str | None, region: tuple[float, ...] | None, device: str, threads: int, videos_at_once: int
) -> ChildKind:
    """A model: the package's own, or a file, which may be for one region."""
    arguments = json.dumps(path), json.dumps(region), device, str(threads)
    return ChildKind("caption_extents.model.process:serve", videos_at_once, arguments)


def encoders(count: int) -> list[ChildKind]:
    """Processes that together encode so many chunks at once."""
    processes = -(-count // ENCODERS)
    sizes = [count // processes + (index < count % processes) for index in range(processes)]
    target = "caption_extents.encoders.processes:serve"
    return [ChildKind(target, size + WAITING_CHUNKS, (str(size),)) for size in sizes]


class SpawnedProcess:
    """A child that runs, and the ends of its channels here.

    Args:
        kind: what it runs.
        environment: of the child; by default that of this process, adapted for a child that only encodes or decodes.
    """

    def __init__(self, kind: ChildKind, environment: Mapping[str, str] | None = None) -> None:
        pairs = [socket.socketpair() for _ in range(kind.channels)]
        self.ends = [here for here, _ in pairs]
        """A socket for each channel."""
        self.memories = [_new_memory() for _ in range(kind.channels)]
        """A file that both sides can map for each channel."""
        theirs = [(there.fileno(), memory.fileno()) for (_, there), memory in zip(pairs, self.memories, strict=True)]
        inherited = [number for both in theirs for number in both]
        ahead = json.dumps([asdict(other) for other in kind.ahead])
        try:
            # In a new session: Ctrl-C goes to the parent only, and the child ends when its channels close.
            self.process = subprocess.Popen(
                [*COMMAND, kind.target, ",".join(map(str, inherited)), ahead, *kind.arguments],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if kind.quiet else None,
                pass_fds=inherited,
                start_new_session=True,
                env=_environment() if environment is None else environment,
            )
        except BaseException:
            self.close_channels()
            raise
        finally:
            for _, there in pairs:
                there.close()

    def close_channels(self) -> None:
        """Close the ends that nothing has taken over."""
        for end, memory in zip(self.ends, self.memories, strict=True):
            with suppress(OSError):
                end.close()
                memory.close()


def _environment() -> dict[str, str]:
    """The environment of a child that only decodes or encodes.

    OpenMP would start one thread per core that is never used. With a single malloc arena for all threads (glibc's
    ``M_ARENA_MAX``), memory freed by one encoder can be reused by another: four encoders with 25 frames of lookahead
    then take 190 MiB instead of 230 MiB.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def _new_memory() -> IO[bytes]:
    """An in-memory file that cannot be shrunk (memfd); an unnamed temporary file on systems without memfd."""
    if not hasattr(os, "memfd_create"):
        return tempfile.TemporaryFile(buffering=0)
    number = os.memfd_create("caption-extents", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    file = os.fdopen(number, "r+b", buffering=0)
    # Otherwise a child could truncate the file, and the parent would die of SIGBUS when it accesses the mapping.
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return file
