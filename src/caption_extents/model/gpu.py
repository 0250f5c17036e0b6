"""Computing on a GPU beside threads that decode: computations recorded as CUDA graphs.

The network is some sixty operations, and each of them releases the GIL and takes it back. While the threads of all
decoder sessions compete for the GIL, a batch takes twenty times as long as its kernels. So computations are recorded
once and then replayed by a single call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

Shapes = tuple[torch.Size, ...]


class Replayed:
    """A function of tensors on a GPU, replayed where its arguments have the shapes that it was recorded with.

    Recorded are the first shapes that come a second time: those of a video's full batches. Others are computed in the
    usual way. A recording holds its own memory, so there is one only.

    Args:
        function: of tensors to a tensor; it must not wait for the GPU, nor look at values.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._seen: set[Shapes] = set()
        self._recording: _Recording | None = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        """The function's value, on the current stream; the caller's own."""
        shapes = tuple(argument.shape for argument in arguments)
        with self._lock:
            if self._recording is None and shapes in self._seen:
                self._recording = _Recording(self._function, arguments)
            self._seen.add(shapes)
            if self._recording is not None and self._recording.shapes == shapes:
                return self._recording.replay(arguments)
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
