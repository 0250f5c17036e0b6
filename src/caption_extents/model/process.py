"""A model in a child process, for several videos at once.

What the GPU's driver does to a process that made it fail cannot be undone there: a process of its own can be ended and
started anew. Planes go to it through shared memory; probabilities come back as bytes.
"""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from caption_extents import errors
from caption_extents.children import Channel, ChannelError, Child, Children, arrays_in, serve_each
from caption_extents.errors import CaptionExtentsError, ProcessingError
from caption_extents.labels import Label
from caption_extents.model.identity import ModelIdentity
from caption_extents.model.opened import PairLabeller, VideoLabeller
from caption_extents.region import CropRegion
from caption_extents.samples import Planes, SampleBatch
from caption_extents.spawning import ChildKind

if TYPE_CHECKING:
    from caption_extents.model.backend import Backend

_ERRORS: dict[str, type[Exception]] = {
    name: getattr(errors, name) for name in ("ProcessingError", "InputError", "ModelError")
}


class ModelProcess:
    """An :class:`~caption_extents.model.opened.OpenedModel` in a child, which starts at once.

    Args:
        kind: of the child; see :func:`caption_extents.spawning.model`. It has a channel for each video at once.
        device: where it computes.
        children: registry in which the child is started.
        identity: of the model, if it is known; the child is asked for it otherwise.
        stall_seconds: the child is given up if it does not answer for this long.
    """

    def __init__(
        self,
        kind: ChildKind,
        device: str,
        children: Children,
        *,
        identity: ModelIdentity | None = None,
        stall_seconds: float | None = None,
    ) -> None:
        self.device, self._identity = device, identity
        self._cannot_load = False
        self._child = children.start(kind, stall_seconds=stall_seconds)
        self._free: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        for channel in self._child.channels:
            self._free.put(channel)

    @property
    def has_failed(self) -> bool:
        """See the protocol."""
        return self._cannot_load or self._child.has_ended

    def identity(self) -> ModelIdentity:
        """See the protocol."""
        if self._identity is None:
            with self._channel() as line:
                self._identity = ModelIdentity(**line.ask({"kind": "identify"})[0])
        return self._identity

    @contextmanager
    def labeller(self) -> Iterator[VideoLabeller]:
        """See the protocol; the child works on as many videos at once as it has channels, and others wait."""
        with closing(_RemoteLabeller(self._channel)) as labeller:
            yield labeller

    def close(self) -> None:
        """See the protocol."""
        self._child.close()

    @contextmanager
    def _channel(self) -> Iterator[_Line]:
        channel = self._free.get()
        line = _Line(self._child, channel)
        try:
            yield line
        finally:
            self._cannot_load = self._cannot_load or line.cannot_load
            if line.is_waiting:
                self._child.kill()  # its answer, if there ever is one, must not reach another video
            self._free.put(channel)


class _Line:
    """A channel to the child, which answers one question after the other."""

    def __init__(self, child: Child, channel: Channel) -> None:
        self._child, self._channel = child, channel
        self.is_waiting = False
        """Whether a question has no answer: while it is asked, and after it was given up."""
        self.cannot_load = False

    def ask(self, message: dict[str, Any], planes: Planes | None = None) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The answer to a message.

        Raises:
            ProcessingError: the child is gone.
            Exception: what went wrong there.
        """
        self.is_waiting = True
        try:
            if planes is not None:
                shapes = [plane.shape for plane in planes]
                memory = self._channel.memory(sum(plane.size for plane in planes))
                for shared, plane in zip(arrays_in(memory, shapes), planes, strict=True):
                    np.copyto(shared, plane)
                message = {**message, "shapes": shapes}
            self._channel.send(message)
            reply, payloads = self._child.receive(self._channel)
        except ChannelError as error:
            raise ProcessingError(
                f"the model's process {self._child.describe_exit()}; is there too little memory?"
            ) from error
        self.is_waiting = False
        if "failed" in reply:
            self.cannot_load = bool(reply["cannot_load"])
            raise _ERRORS[reply["class"]](reply["text"])
        return reply, payloads


class _RemoteLabeller:
    """Has a channel from a video's first samples to its last.

    Args:
        lend: gives a channel, as soon as one is free.
    """

    def __init__(self, lend: Callable[[], AbstractContextManager[_Line]]) -> None:
        self._lend = lend
        self._line: _Line | None = None
        self._lent = ExitStack()

    def close(self) -> None:
        """Give the channel back, if the video has not come to its end."""
        self._line = None
        self._lent.close()

    def compare_with_ends(self, frames: Planes) -> tuple[np.ndarray, np.ndarray]:
        """See the protocol."""
        with self._lend() as line:
            _, found = line.ask({"kind": "compare"}, frames)
        with_first, with_last = (_labels(part, -1, len(Label)) for part in found)
        return with_first, with_last

    def add(self, batch: SampleBatch, *, is_last: bool) -> Iterator[tuple[int, np.ndarray]]:
        """See the protocol."""
        if self._line is None:
            self._line = self._lent.enter_context(self._lend())
            self._line.ask({"kind": "begin"})
        message = {"kind": "add", "first_sample": batch.first_sample, "is_last": is_last}
        reply, found = self._line.ask(message, batch.planes)
        if is_last:
            self.close()
        for first, part in zip(reply["firsts"], found, strict=True):
            yield first, _labels(part, -1, 2, len(Label))


def _labels(payload: np.ndarray, *shape: int) -> np.ndarray:
    return payload.view(np.float32).reshape(shape)


# From here on: the child.

_LOOK_SECONDS = 0.25


def serve(channels: list[Channel], model: str, region: str, device: str, threads: str) -> None:
    """In the child: label and compare what the parent sends, until it closes the channels."""

    def load() -> Backend:
        from caption_extents.model.opening import open_model

        where = CropRegion(*(json.loads(region) or (0, 0, 1, 1)))
        return opened.enter_context(open_model(json.loads(model), where, device, int(threads)))

    opened = ExitStack()
    loading = ThreadPoolExecutor(1).submit(load)
    serve_each(channels, lambda channel: _serve(channel, loading))


def _serve(parent: Channel, loading: Future[Backend]) -> None:
    answer = _Answers(loading)
    while True:
        request, _ = parent.receive()
        try:
            message, *payloads = answer.to(request, parent)
        except ChannelError:
            raise
        except Exception as error:
            cannot_load = loading.done() and loading.exception() is not None
            parent.send({"failed": True, "cannot_load": cannot_load, **_told(error)})
            if not cannot_load and not isinstance(error, CaptionExtentsError) and not _works(loading):
                os._exit(1)
        else:
            parent.send(message, *payloads)


def _told(error: Exception) -> dict[str, str]:
    """An error's class, as the parent knows it, and its text."""
    known = next((name for name, kind in reversed(_ERRORS.items()) if isinstance(error, kind)), None)
    if known is None:
        return {"class": "ProcessingError", "text": f"the model failed: {type(error).__name__}: {error}"}
    return {"class": known, "text": str(error)}


def _works(loading: Future[Backend]) -> bool:
    """Whether the GPU still answers. It does after too little memory; after other errors, never again in a process."""
    if loading.exception() is not None or loading.result().device == "cpu":
        return True
    import torch

    try:
        torch.ones(1, device=loading.result().device).item()
    except RuntimeError:
        return False
    return True


class _Answers:
    """What one channel asks for; one video after the other."""

    def __init__(self, loading: Future[Backend]) -> None:
        self._loading = loading
        self._labeller: PairLabeller | None = None

    def to(self, request: dict[str, Any], parent: Channel) -> tuple[Any, ...]:
        """The answer: a message, and its payloads."""
        kind = request["kind"]
        if kind == "begin":
            self._labeller = None
            return ({},)
        from caption_extents.model.labeller import Labeller, compare_with_ends

        while not self._loading.done():
            wait([self._loading], _LOOK_SECONDS)
            parent.send_keep_alive()
        model = self._loading.result()
        if kind == "identify":
            return (asdict(ModelIdentity.of(model)),)
        shapes = [tuple(shape) for shape in request["shapes"]]
        y, u, v = arrays_in(parent.memory(sum(int(np.prod(shape)) for shape in shapes)), shapes)
        if kind == "compare":
            return {}, *compare_with_ends(model, (y, u, v))
        if self._labeller is None:
            self._labeller = Labeller(model)
        # Copied: the second look needs samples of earlier batches, and the parent writes the next to the same place.
        batch = SampleBatch(request["first_sample"], y.copy(), u.copy(), v.copy())
        found = list(self._labeller.add(batch, is_last=request["is_last"]))
        return {"firsts": [first for first, _ in found]}, *(part for _, part in found)
