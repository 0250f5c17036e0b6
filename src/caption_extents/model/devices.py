"""Which device computes: chosen once for a run, and handed down."""

from __future__ import annotations

import torch

from caption_extents.errors import InputError
from caption_extents.options import check_device


def choose_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a GPU if there is one.

    Raises:
        InputError: there is no such device.
    """
    check_device("device", name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return parse_device(name) if name.startswith("cuda") else torch.device(name)


def parse_device(name: str) -> torch.device:
    """``cuda`` or ``cuda:N`` as a device that is there.

    Raises:
        InputError: there is no such device; says which there are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name)
    if count == 0:
        raise InputError(
            f"device {name!r} is not there: PyTorch {torch.__version__} finds no CUDA device; "
            "install a driver and a CUDA build of PyTorch, or use 'auto' or 'cpu'"
        )
    index = device.index or 0
    if index >= count:
        raise InputError(f"device {name!r} is not there; this machine has cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)
