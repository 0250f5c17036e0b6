"""The back end of models that are computed by PyTorch: the package's own network, and those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from caption_extents.model.identity import ModelIdentity
from caption_extents.model.interface import ContextModel, PairModel, SecondLookModel
from caption_extents.samples import Planes


class TorchBackend:
    """A :class:`~caption_extents.model.backend.Backend` around a model.

    Args:
        model: follows one of the protocols of :mod:`caption_extents.model.interface`.
        close: called by :meth:`close`; whoever passes an opened model closes it.
    """

    def __init__(self, model: PairModel, close: Callable[[], None] = lambda: None) -> None:
        identity = ModelIdentity.of(model)
        self.device, self.version, self.digest, self.costs = (
            str(model.device),
            identity.version,
            identity.digest,
            identity.costs,
        )
        self._model, self._close = model, close
        self._context = model if isinstance(model, ContextModel) else None
        self._closely = model if isinstance(model, SecondLookModel) else None
        self.has_context, self.has_second_look = self._context is not None, self._closely is not None
        self.reach = self._context.reach if self._context is not None else 0

    def embed(self, planes: Planes) -> torch.Tensor:
        """See the protocol."""
        return self._model.embed(*map(torch.from_numpy, planes))

    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> np.ndarray:
        """See the protocol."""
        most = max(len(earlier), len(later))
        both = (part.expand(most, *part.shape[1:]) for part in (earlier, later))
        return self._model.compare(*both).numpy()

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """See the protocol."""
        assert self._context is not None
        return self._context.describe(before, earlier, later, after)

    def classify(self, descriptions: torch.Tensor) -> np.ndarray:
        """See the protocol."""
        assert self._context is not None
        return self._context.classify(descriptions).numpy()

    def needs_second_look(self, probabilities: np.ndarray) -> np.ndarray:
        """See the protocol."""
        assert self._closely is not None
        return self._closely.needs_second_look(torch.from_numpy(probabilities)).numpy()

    def describe_closely(self, planes: Planes, around: np.ndarray) -> torch.Tensor:
        """See the protocol."""
        assert self._closely is not None
        y, u, v = map(torch.from_numpy, planes)
        return self._closely.describe_closely(y, u, v, tuple(map(torch.from_numpy, around)))

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """See the protocol."""
        return torch.cat(list(parts))

    def replaced(self, features: torch.Tensor, at: np.ndarray, others: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        found = features.clone()
        found[torch.from_numpy(at).to(found.device)] = others
        return found

    def close(self) -> None:
        """See the protocol."""
        self._close()
