"""Protocols of models, so that other models can replace the package's own."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class PairModel(Protocol):
    """A model that classifies how the caption changes between two samples.

    A model may have an attribute ``costs``, a mapping from names to numbers that override the defaults of
    :class:`~caption_extents.captions.extents.DecodingCosts`, because the best decoding costs depend on the training
    data.

    Each sample is embedded once and compared twice, with the sample before it and with the one after it. The shape of
    an embedding is chosen by the model, as long as embeddings of several samples can be sliced and concatenated along
    their first axis. :class:`~caption_extents.model.adapter.PairModuleModel` makes a model out of any PyTorch module.
    """

    device: torch.device
    """Where it computes."""

    version: str
    """Its name in manifests and databases."""

    digest: str
    """Digest of everything that its output depends on; a run continues only versions with the same digest."""

    def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, ...) of samples: Y (N, H, W), U and V (N, H/2, W/2), uint8."""
        ...

    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 (N, 2, 5) on the CPU: forward (earlier, later) and backward (later, earlier)."""
        ...

    def __enter__(self) -> PairModel: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class ContextModel(PairModel, Protocol):
    """A model that labels a pair with the help of the pairs around it; :meth:`compare` labels it on its own."""

    reach: int
    """Number of pairs before, and of pairs after, a pair that its label depends on."""

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Compute descriptions (feature vectors) of pairs (earlier, later), (N, ...), the input of :meth:`classify`.

        Args:
            before, earlier, later, after: embeddings of samples k-1, k, k+1 and k+2; at the ends of the video k for
                k-1, and k+1 for k+2.
        """
        ...

    def classify(self, descriptions: torch.Tensor) -> torch.Tensor:
        """Probabilities as :meth:`compare` gives them, of consecutive pairs with nothing before and after them."""
        ...


@runtime_checkable
class SecondLookModel(ContextModel, Protocol):
    """A model with a second look: it can describe selected pairs more accurately, at a higher cost per pair."""

    def needs_second_look(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Which pairs need a second look; bool (N,).

        Args:
            probabilities: probabilities of the pairs after the first look, (N, 2, 5). Each result must depend only on
                the probabilities of its own pair.
        """
        ...

    def describe_closely(
        self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, around: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Compute more accurate descriptions of pairs, which replace those of :meth:`describe`.

        Args:
            y, u, v: samples, as for :meth:`embed`.
            around: indices into these samples of samples k-1, k, k+1 and k+2 of each pair; four int64 (N,).
        """
        ...
