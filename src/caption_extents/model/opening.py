"""The model that a job asks for: the package's own, other weights, a checkpoint of another network, or an object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from caption_extents.errors import ModelError
from caption_extents.model.captioner import CaptionModel
from caption_extents.model.fusion import open_fusion
from caption_extents.model.identity import CHECKPOINTS
from caption_extents.model.interface import PairModel
from caption_extents.region import CropRegion


@contextmanager
def open_model(
    model: str | os.PathLike[str] | PairModel | None, region: CropRegion, device: torch.device, threads: int
) -> Iterator[PairModel]:
    """Open the model of a job; it is closed at the end, unless the caller passed an opened model.

    Args:
        model: None for the package's own; a ``.safetensors`` file with weights of the same network; a ``.pt``, ``.pth``
            or ``.ckpt`` checkpoint of the ResNet-50 fusion network; or any object that follows the protocol.
        region: where the captions stand.
        device: where to compute; an object keeps its own.
        threads: of a CPU model.

    Raises:
        ModelError: the file cannot be loaded.
    """
    if model is not None and not isinstance(model, (str, os.PathLike)):
        yield model
        return
    path = None if model is None else Path(model)
    if path is not None and not path.is_file():
        raise ModelError(f"there is no model file {str(path)!r}")
    fusion = path is not None and path.suffix in CHECKPOINTS
    opened = open_fusion(path, region, device) if path and fusion else CaptionModel(path, device, threads)
    with opened:
        yield opened
