"""An adapter that makes a model out of any PyTorch module that maps two pictures to five logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn

from caption_extents.model.preprocess import to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PairModuleModel:
    """A :class:`~caption_extents.model.interface.PairModel` around a module.

    The embedding of a sample is the module's input picture; for every pair the whole module is computed twice (forward
    and backward).

    Args:
        module: maps pictures (N, 3, h, w) of the earlier and the later sample to logits (N, 5), in the order of
            :class:`~caption_extents.labels.Label`.
        size: height and width of the input pictures, in pixels.
        version: name of the model in manifests and databases.
        device: device on which the module computes.
        mean, std: normalisation of each RGB channel in 0..1: the mean is subtracted, the result is divided by std.
        digest: see the protocol; by default a digest of the module's parameters and buffers.
        batch: number of pairs per call of the module.
    """

    def __init__(
        self,
        module: nn.Module | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        size: tuple[int, int],
        *,
        version: str,
        device: torch.device | str = "cpu",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        digest: str | None = None,
        batch: int = 32,
    ) -> None:
        self.device, self.version = torch.device(device), version
        self.digest = digest or (module_digest(module) if isinstance(module, nn.Module) else version)
        if isinstance(module, nn.Module):
            module = module.eval().requires_grad_(False).to(self.device)
        self._module, self._size, self._batch = module, size, batch
        self._mean, self._std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (mean, std))

    def __enter__(self) -> PairModuleModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @torch.inference_mode()
    def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Normalised pictures, float32 (N, 3, h, w)."""
        rgb = to_rgb(y.to(self.device), u.to(self.device), v.to(self.device), self._size)
        return (rgb - self._mean) / self._std

    @torch.inference_mode()
    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        both = [self._logits(earlier, later), self._logits(later, earlier)]
        return torch.stack(both, dim=1).float().softmax(dim=-1).cpu()

    def _logits(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        cuts = [slice(at, at + self._batch) for at in range(0, len(first), self._batch)]
        return torch.cat([self._module(first[cut], second[cut]) for cut in cuts])


def module_digest(module: nn.Module) -> str:
    """SHA-256 of a module's kind, parameters and buffers."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
