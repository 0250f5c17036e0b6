"""What computes a model: a protocol, so that the labeller needs to know neither PyTorch nor ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from caption_extents.samples import Planes

Features: TypeAlias = Any
"""Embeddings of samples or descriptions of pairs, an array of the back end's own kind and on its own device: a tensor
or a NumPy array. It can be sliced along its first axis and has a length; :meth:`Backend.join` joins several."""


class Backend(Protocol):
    """Computes a model. See :mod:`caption_extents.model.interface` for what each step means."""

    device: str
    """Where it computes: ``cpu``, or ``cuda:N``."""

    version: str
    """Its name in manifests and databases."""

    digest: str
    """Digest of everything that its output depends on; a run continues only versions with the same digest."""

    costs: dict[str, float]
    """Decoding costs that suit it, by name."""

    has_context: bool
    """Whether a pair is labelled with the help of the pairs around it; else each is compared on its own."""

    has_second_look: bool
    """Whether it can describe selected pairs more accurately."""

    reach: int
    """Number of pairs before, and of pairs after, a pair that its label depends on."""

    def embed(self, planes: Planes) -> Features:
        """Embeddings (N, ...) of samples: Y (N, H, W), U and V (N, H/2, W/2), uint8."""
        ...

    def compare(self, earlier: Features, later: Features) -> np.ndarray:
        """Probabilities, float32 (N, 2, 5), of pairs of embeddings; one of both may be of a single sample."""
        ...

    def describe(self, before: Features, earlier: Features, later: Features, after: Features) -> Features:
        """Descriptions (N, ...) of pairs, from the embeddings of samples k-1, k, k+1 and k+2."""
        ...

    def classify(self, descriptions: Features) -> np.ndarray:
        """Probabilities, float32 (N, 2, 5), of consecutive pairs with nothing before and after them."""
        ...

    def needs_second_look(self, probabilities: np.ndarray) -> np.ndarray:
        """Which pairs need a second look; bool (N,)."""
        ...

    def describe_closely(self, planes: Planes, around: np.ndarray) -> Features:
        """More accurate descriptions of P pairs; ``around`` holds the indices of their samples, int64 (4, P)."""
        ...

    def join(self, parts: Sequence[Features]) -> Features:
        """All parts in one new array."""
        ...

    def replaced(self, features: Features, at: np.ndarray, others: Features) -> Features:
        """A copy with others at some indices, int64 (P,)."""
        ...

    def close(self) -> None:
        """Free what it takes."""
        ...
