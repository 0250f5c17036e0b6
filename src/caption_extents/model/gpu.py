"""Computations recorded as CUDA graphs, so that the CPU launches them with a single call.

The network consists of about sixty operations, each of which releases and reacquires the GIL. While many other threads
compete for the GIL, launching them one by one takes twenty times as long as the kernels of a batch. Therefore they are
recorded once as a CUDA graph, which is then replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

Shapes = tuple[torch.Size, ...]

RECORDINGS = 4
"""Recorded shapes of a function: an engine runs videos with crops of several sizes."""


class Replayed:
    """A function of GPU tensors that is replayed from a CUDA graph when its arguments have the recorded shapes.

    Shapes that occur a second time are recorded: those of a video's full batches. Arguments of other shapes are
    computed without a graph. There are at most :data:`RECORDINGS`, because each keeps its own memory; the one that was
    not used for longest makes room for the next.

    Args:
        function: maps tensors to a tensor; it must not synchronise with the GPU or depend on tensor values on the CPU.
        lock: held while it is recorded or replayed; the functions of a model share one, because PyTorch replays nothing
            while it records.
    """

    def __init__(self, function: Callable[..., torch.Tensor], lock: threading.Lock) -> None:
        self._function, self._lock = function, lock
        self._seen: set[Shapes] = set()
        self._recordings: dict[Shapes, _Recording] = {}
        """The one that was used last is the last."""

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        """Compute the function on the current stream; the result is a new tensor that the caller owns."""
        shapes = tuple(argument.shape for argument in arguments)
        with self._lock:
            recording = self._recordings.pop(shapes, None)
            if recording is None and shapes in self._seen:
                if len(self._recordings) == RECORDINGS:
                    del self._recordings[next(iter(self._recordings))]
                recording = _Recording(self._function, arguments)
            if recording is not None:
                self._recordings[shapes] = recording
                return recording.replay(arguments)
            self._seen.add(shapes)
        return self._function(*arguments)


class _Recording:
    def __init__(self, function: Callable[..., torch.Tensor], arguments: tuple[torch.Tensor, ...]) -> None:
        self.shapes = tuple(argument.shape for argument in arguments)
        self._arguments = [argument.clone(memory_format=torch.contiguous_format) for argument in arguments]
        self._graph = torch.cuda.CUDAGraph()
        device = self._arguments[0].device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        # The stream's device becomes the current one of this thread: of several GPUs, others are not recorded.
        with torch.cuda.stream(stream):
            # Libraries that this thread has not used yet get ready now: they cannot while it records.
            function(*self._arguments)
            # Decoder sessions go on calling CUDA from threads of their own meanwhile.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._result = function(*self._arguments)
            finally:
                self._graph.capture_end()
        current.wait_stream(stream)

    def replay(self, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for target, source in zip(self._arguments, arguments, strict=True):
            target.copy_(source)
        self._graph.replay()
        return self._result.clone()
