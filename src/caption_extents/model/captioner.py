"""The caption model as the pipeline uses it: planes in, probabilities out.

A sample is embedded once, whatever the number of pairs that it is part of. Work is cut by sample number alone, never by
arrival, so that every run computes the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch

from caption_extents.model.labels import Label
from caption_extents.model.preprocess import to_input
from caption_extents.model.weights import DEFAULT_WEIGHTS, load_weights

_CPU_SLICE_SAMPLES = 8
"""On a CPU a batch goes through the network in slices whose activations stay in the cache."""


class CaptionModel:
    """Embeds samples and compares embeddings, in both directions.

    Args:
        weights: a ``.safetensors`` file of :mod:`caption_extents.model.network`; by default the package's own.
        device: where to compute.

    Raises:
        ModelError: the weights cannot be loaded.
    """

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        self.path = weights or DEFAULT_WEIGHTS
        self.device = torch.device(device)
        network, self.version = load_weights(self.path)
        self._network = network.to(self.device)
        self._slice = _CPU_SLICE_SAMPLES if self.device.type == "cpu" else 1 << 30

    @torch.inference_mode()
    def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Embeddings of consecutive samples.

        Args:
            y: luma, uint8 (N, H, W).
            u: chroma, uint8 (N, H/2, W/2).
            v: chroma, uint8 (N, H/2, W/2).

        Returns:
            float32 (N, C, h, w) on the model's device.
        """
        parts = []
        for start in range(0, len(y), self._slice):
            planes = (plane[start : start + self._slice].to(self.device) for plane in (y, u, v))
            parts.append(self._network.encoder(to_input(*planes)))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @torch.inference_mode()
    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Probabilities of the five labels for pairs of embeddings (N, C, h, w).

        Returns:
            float32 (N, 2, 5) on the CPU: forward (earlier, later) and backward (later, earlier).
        """
        parts = []
        for start in range(0, len(earlier), self._slice):
            a, b = earlier[start : start + self._slice], later[start : start + self._slice]
            parts.append(torch.stack([self._network.head(a, b), self._network.head(b, a)], dim=1))
        logits = torch.cat(parts) if parts else torch.empty((0, 2, len(Label)))
        return logits.float().softmax(dim=-1).cpu()
