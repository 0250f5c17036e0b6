"""The package's own caption model: cropped samples in, probabilities of the labels of their pairs out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from caption_extents.closing import ClosesItself
from caption_extents.machine import has_torch, need_torch
from caption_extents.model.backend import Backend
from caption_extents.model.identity import DEFAULT_WEIGHTS
from caption_extents.model.labeller import label_parts, label_samples
from caption_extents.model.portable import PortableNetwork, read_graphs
from caption_extents.options import check_count, check_device, default_inference_threads
from caption_extents.samples import SampleBatch
from caption_extents.video.nvdec import driver


class CaptionModel(ClosesItself):
    """The caption model: classifies how the caption changes between consecutive samples of a video. A context manager.

    On a CPU it is computed by ONNX Runtime, on a GPU by PyTorch, which the extra ``gpu`` installs. Its single steps are
    those of its ``backend``; a model of another kind follows :mod:`caption_extents.model.interface`.

    Args:
        weights: a ``.safetensors`` file of :mod:`caption_extents.model.network`; by default the package's own.
        device: where to compute: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for a GPU if PyTorch can use one.
        threads: slices computed at once on a CPU; by default one for each core, at most 16.

    Attributes:
        device: where it computes: ``cpu``, or ``cuda:N``.
        version: its name in manifests and databases.
        digest: of everything that its output depends on.
        costs: decoding costs that suit it, by name.

    Raises:
        InputError: there is no such device, or PyTorch is needed and is not there.
        ModelError: the weights cannot be loaded.
    """

    def __init__(
        self, weights: str | os.PathLike[str] | None = None, device: str = "auto", threads: int | None = None
    ) -> None:
        self.path = Path(weights) if weights is not None else DEFAULT_WEIGHTS
        if threads is None:
            threads = default_inference_threads()
        self.backend: Backend = _open(self.path, _chosen(str(device)), check_count("threads", threads, 1))
        of = self.backend
        self.device, self.version, self.digest, self.costs = of.device, of.version, of.digest, of.costs

    def close(self) -> None:
        """Free what it takes; the model cannot be used any more."""
        self.backend.close()

    def label(self, samples: Iterable[SampleBatch]) -> np.ndarray:
        """Label the pairs of a video's samples.

        Args:
            samples: cropped samples of the whole video, in order, as :meth:`Video.samples` gives them.

        Returns:
            Probabilities of the pairs (0, 1), (1, 2) and so on, float32 of shape (pairs, 2, 5), forward (from the
            earlier to the later sample) and backward, of the labels ``same``, ``different``, ``empty_empty``,
            ``empty_valid`` and ``valid_empty``.
        """
        return label_samples(self.backend, samples)

    def label_parts(self, samples: Iterable[SampleBatch]) -> Iterator[np.ndarray]:
        """As :meth:`label`, in parts, as soon as they are known, while later samples are still decoded."""
        return label_parts(self.backend, samples)


def _chosen(device: str) -> str:
    check_device("device", device)
    if device != "auto":
        return device
    if not driver.device_count() or not has_torch():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _open(path: Path, device: str, threads: int) -> Backend:
    graphs = read_graphs(path) if device == "cpu" else None
    if graphs is not None:
        return PortableNetwork(path, graphs, threads)
    need_torch(f"device {device!r}" if device != "cpu" else f"the model {path.name!r}, which holds no graphs,")
    from caption_extents.model.torch_backend import TorchBackend
    from caption_extents.model.torch_network import TorchNetwork

    network = TorchNetwork(path, device, threads)
    return TorchBackend(network, network.close)
