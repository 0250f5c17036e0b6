"""Waiting for a GPU asleep.

By default a thread that waits for a GPU asks it again and again, and keeps a core busy that encoders could use.
"""

from __future__ import annotations

import torch


def _finish(device: torch.device) -> None:
    """Return when everything is done that was queued on a GPU's current stream."""
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))
    done.synchronize()


def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the host's memory, when it has been computed."""
    if tensor.is_cuda:
        _finish(tensor.device)
    return tensor.cpu()
