"""The model that a job asks for: the package's own, other weights, a checkpoint of another network, or an object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from caption_extents.errors import ModelError
from caption_extents.machine import need_torch
from caption_extents.model.backend import Backend
from caption_extents.model.captioner import CaptionModel
from caption_extents.model.identity import CHECKPOINTS
from caption_extents.region import CropRegion

if TYPE_CHECKING:
    from caption_extents.model.interface import PairModel


@contextmanager
def open_model(
    model: str | os.PathLike[str] | CaptionModel | PairModel | None, region: CropRegion, device: str, threads: int
) -> Iterator[Backend]:
    """Open the model of a job; it is closed at the end, unless the caller passed an opened model.

    Args:
        model: None for the package's own; a ``.safetensors`` file with weights of the same network; a ``.pt``, ``.pth``
            or ``.ckpt`` checkpoint of the ResNet-50 fusion network; or any object that follows the protocol.
        region: where the captions stand.
        device: where to compute; an object keeps its own.
        threads: of a CPU model.

    Raises:
        ModelError: the file cannot be loaded.
        InputError: PyTorch is needed and is not there.
    """
    if isinstance(model, CaptionModel):
        yield model.backend
        return
    if model is not None and not isinstance(model, (str, os.PathLike)):
        from caption_extents.model.torch_backend import TorchBackend

        yield TorchBackend(model)
        return
    path = None if model is None else Path(model)
    if path is not None and not path.is_file():
        raise ModelError(f"there is no model file {str(path)!r}")
    if path is None or path.suffix not in CHECKPOINTS:
        with CaptionModel(path, device, threads) as opened:
            yield opened.backend
        return
    need_torch(f"the checkpoint {path.name!r}")
    from caption_extents.model.devices import choose_device
    from caption_extents.model.fusion import open_fusion
    from caption_extents.model.torch_backend import TorchBackend

    with open_fusion(path, region, choose_device(device)) as fusion:
        yield TorchBackend(fusion)
