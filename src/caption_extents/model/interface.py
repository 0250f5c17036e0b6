"""What a job asks of a model, so that others can stand in for the package's own."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class PairModel(Protocol):
    """Tells how the caption changes between two samples.

    A model may have an attribute ``costs``, numbers by name that take the place of those of
    :class:`~caption_extents.captions.extents.DecodingCosts`: what a boundary ought to cost depends on what a model was
    trained on.

    A sample is embedded once and compared twice, with the sample before it and the one after it. What an embedding is,
    is the model's own business, as long as embeddings of several samples can be sliced and joined along their first
    axis. :class:`~caption_extents.model.adapter.PairModuleModel` makes one out of any PyTorch module.
    """

    device: torch.device
    """Where it computes."""

    version: str
    """Its name in manifests and databases."""

    digest: str
    """Of everything that its answers depend on: runs with another digest do not continue each other."""

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
    """Pairs on either side of a pair that its label depends on."""

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """What the model needs to know of pairs (earlier, later), (N, ...), to label them or pairs around them.

        Args:
            before, earlier, later, after: embeddings of samples k-1, k, k+1 and k+2; at the ends of the video k for
                k-1, and k+1 for k+2.
        """
        ...

    def classify(self, descriptions: torch.Tensor) -> torch.Tensor:
        """Probabilities as :meth:`compare` gives them, of consecutive pairs with nothing before and after them."""
        ...


@runtime_checkable
class LookingModel(ContextModel, Protocol):
    """A model that can look at a few pairs more closely than at all the others, for what that costs."""

    def is_worth_a_look(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Whether pairs with these probabilities (N, 2, 5) should be looked at closely; bool (N,).

        It depends on nothing but each pair's own probabilities.
        """
        ...

    def look_closely(
        self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, around: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Better descriptions of pairs, in place of what :meth:`describe` gives for them.

        Args:
            y, u, v: samples, as :meth:`embed` takes them.
            around: for each pair, which of these are samples k-1, k, k+1 and k+2; four times int64 (N,).
        """
        ...
