"""The model of a run: samples in, probabilities of labels out, both NumPy arrays. This module needs no PyTorch.

PyTorch takes seconds to import, and holds the GIL meanwhile and whenever it computes. On a GPU the model therefore has
a process of its own (:mod:`caption_extents.model.process`); decoding and encoding begin while it is being loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from caption_extents.errors import InputError
from caption_extents.model.identity import ModelIdentity, read_identity
from caption_extents.options import check_device, device_number
from caption_extents.region import CropRegion
from caption_extents.samples import Planes, SampleBatch
from caption_extents.video.nvdec import driver

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from caption_extents.model.backend import Backend
    from caption_extents.model.interface import PairModel


class PairLabeller(Protocol):
    """Labels pairs of samples; see :class:`~caption_extents.model.labeller.Labeller`."""

    def add(self, batch: SampleBatch, *, is_last: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Add the next samples; yields the number of the first of some pairs, and their probabilities (P, 2, 5)."""
        ...


class VideoLabeller(PairLabeller, Protocol):
    """A model at work on one video."""

    def compare_with_ends(self, frames: Planes) -> tuple[np.ndarray, np.ndarray]:
        """See :func:`caption_extents.model.labeller.compare_with_ends`."""
        ...


class OpenedModel(Protocol):
    """A model that is loaded, or is being loaded: what needs it waits."""

    device: str
    """Where it computes: ``cpu``, or ``cuda:N``."""

    @property
    def has_failed(self) -> bool:
        """Whether it can be used no more, and should be opened anew."""
        ...

    def identity(self) -> ModelIdentity:
        """What a run records of it. For the package's own weights, whose file is read at once, nothing waits.

        Raises:
            ModelError: it cannot be loaded.
        """
        ...

    def labeller(self) -> AbstractContextManager[VideoLabeller]:
        """Labels the pairs of one video."""
        ...

    def close(self) -> None:
        """Free what it takes; runs that use it fail."""
        ...


def is_object(model: str | os.PathLike[str] | PairModel | None) -> TypeIs[PairModel]:
    """Whether a job's model is an opened one, and not a file or None."""
    return model is not None and not isinstance(model, (str, os.PathLike))


def choose_device(asked: str, model: str | os.PathLike[str] | PairModel | None = None) -> str:
    """Where a job's model computes: ``cpu``, or ``cuda:N``; without importing PyTorch.

    Args:
        asked: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a GPU if there is one.
        model: of the job; one that is opened already has its device.

    Raises:
        InputError: there is no such device, or the model is on another.
    """
    check_device("device", asked)
    if is_object(model):
        return check_model_device(asked, str(model.device))
    if asked == "cpu":
        return asked
    count, number = driver.device_count(), device_number(asked)
    if asked != "auto" and number >= count:
        there = f"this machine has cuda:0 to cuda:{count - 1}" if count else "the driver finds no CUDA device"
        raise InputError(f"device {asked!r} is not there: {there}; install a driver, or use 'auto' or 'cpu'")
    return f"cuda:{number}" if count else "cpu"


def check_model_device(asked: str, device: str) -> str:
    """The device of a model that is given, with its number.

    Raises:
        InputError: it computes elsewhere than was asked for.
    """
    kind, _, number = device.partition(":")
    if asked not in {"auto", kind, device} and asked != f"{kind}:{number or 0}":
        raise InputError(
            f"device is {asked!r}, and the model computes on {device!r}; give device 'auto', or another model"
        )
    return f"cuda:{number or 0}" if kind == "cuda" else device


class LocalModel:
    """An :class:`OpenedModel` in this process, which a thread loads.

    Args:
        model: of the job: None, a file, or an object.
        region: where the captions stand.
        device: where to compute; an object keeps its own.
        threads: of a CPU model.
    """

    def __init__(self, model: Any, region: CropRegion, device: str, threads: int) -> None:
        self.device = device
        self._identity = read_identity() if model is None else None
        self._opened = ExitStack()
        self._loader = ThreadPoolExecutor(1, "load-model")
        self._loading: Future[Backend] = self._loader.submit(self._load, model, region, threads)

    def _load(self, model: Any, region: CropRegion, threads: int) -> Backend:
        from caption_extents.model.opening import open_model

        return self._opened.enter_context(open_model(model, region, self.device, threads))

    @property
    def has_failed(self) -> bool:
        """See the protocol."""
        return self._loading.done() and self._loading.exception() is not None

    def identity(self) -> ModelIdentity:
        """See the protocol."""
        return self._identity or ModelIdentity.of(self._loading.result())

    @contextmanager
    def labeller(self) -> Iterator[VideoLabeller]:
        """See the protocol."""
        yield _LocalLabeller(self._loading)

    def close(self) -> None:
        """See the protocol; an object that was given stays open."""
        self._loader.shutdown()
        self._opened.close()


class _LocalLabeller:
    def __init__(self, loading: Future[Backend]) -> None:
        self._loading = loading
        self._labeller: PairLabeller | None = None

    def add(self, batch: SampleBatch, *, is_last: bool) -> Iterator[tuple[int, np.ndarray]]:
        """See the protocol."""
        if self._labeller is None:
            from caption_extents.model.labeller import Labeller

            self._labeller = Labeller(self._loading.result())
        return self._labeller.add(batch, is_last=is_last)

    def compare_with_ends(self, frames: Planes) -> tuple[np.ndarray, np.ndarray]:
        """See the protocol."""
        from caption_extents.model.labeller import compare_with_ends

        return compare_with_ends(self._loading.result(), frames)
