"""The ResNet-50 channel-fusion network, for teams that have a checkpoint of it.

Three RGB pictures (one of OCR boxes and the two samples) are mixed from nine channels to three by a 1x1 convolution and
go through ResNet-50 (He et al., 2015); where the caption stands goes beside. Checkpoints hold rank-16 LoRA weights (Hu
et al., 2021) for every convolution, which are merged when they are loaded.

Names in a checkpoint are those of :class:`FusionNetwork`; the backbone's are torchvision's. For a convolution ``X`` the
low-rank weights are ``X.lora_down.weight`` (rank, in, h, w) and ``X.lora_up.weight`` (out, rank, 1, 1), scaled by
``X.lora_alpha`` / rank (a number; by default the rank).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from caption_extents.errors import ModelError
from caption_extents.model.adapter import PairModuleModel, module_digest
from caption_extents.region import CropRegion

INPUT_SIZE = (48, 480)
ANCHORS = ("left", "center", "right")


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a skip connection."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        skip = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn3(self.conv3(y)) + skip)


class ResNet50(nn.Module):
    """Pictures (N, 3, h, w) to features (N, 2048), with torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = self._layer(64, 64, 3, 1)
        self.layer2 = self._layer(256, 128, 4, 2)
        self.layer3 = self._layer(512, 256, 6, 2)
        self.layer4 = self._layer(1024, 512, 3, 2)

    @staticmethod
    def _layer(channels_in: int, width: int, count: int, stride: int) -> nn.Sequential:
        first = _Bottleneck(channels_in, width, stride)
        return nn.Sequential(first, *(_Bottleneck(4 * width, width, 1) for _ in range(count - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


class FusionNetwork(nn.Module):
    """Two pictures, a picture of OCR boxes, and where the caption stands, to five logits."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(9, 3, 1)
        self.backbone = ResNet50()
        self.spatial = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(2048 + 128, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 5)
        )

    def forward(self, boxes: torch.Tensor, a: torch.Tensor, b: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, 48, 480) and spatial features (N, 6) to logits (N, 5)."""
        features = self.backbone(self.mix(torch.cat([boxes, a, b], dim=1)))
        logits: torch.Tensor = self.head(torch.cat([features, self.spatial(spatial)], dim=1))
        return logits


def spatial_features(region: CropRegion, anchor: str | None = None) -> torch.Tensor:
    """Position of the crop in the frame, float32 (6,): one-hot anchor (left, center, right), centre x, centre y, width.

    Args:
        region: the crop; coordinates are fractions of the frame.
        anchor: alignment of the captions; by default the third of the frame that contains the crop's centre.
    """
    x, y = (region.crop_left + region.crop_right) / 2, (region.crop_top + region.crop_bottom) / 2
    anchor = anchor or ANCHORS[min(2, int(x * 3))]
    return torch.tensor([*(float(anchor == name) for name in ANCHORS), x, y, region.crop_right - region.crop_left])


def merge_lora(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A checkpoint's weights with the low-rank parts added to those that they change."""
    merged = {name: value for name, value in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if not name.endswith(".lora_down.weight"):
            continue
        conv = name.removesuffix(".lora_down.weight")
        up, rank = state[f"{conv}.lora_up.weight"], down.shape[0]
        scale = float(state.get(f"{conv}.lora_alpha", rank)) / rank
        merged[f"{conv}.weight"] = merged[f"{conv}.weight"] + scale * torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    return merged


def load_fusion(path: Path) -> FusionNetwork:
    """The network of a checkpoint (``torch.save`` of a state dict, or of a dict with one under ``state_dict``).

    Raises:
        ModelError: the file cannot be read as numbers alone, or does not fit.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises many types for files that are not checkpoints
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot read checkpoint {str(path)!r}: {reason}; give a file that torch.save wrote of a state dict alone"
        ) from error
    network = FusionNetwork()
    try:
        network.load_state_dict(merge_lora(state.get("state_dict", state)))
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ModelError(f"checkpoint {str(path)!r} is not of the ResNet-50 fusion network: {error}") from error
    return network.eval()


def open_fusion(
    path: Path, region: CropRegion, device: torch.device, boxes: torch.Tensor | None = None
) -> PairModuleModel:
    """A checkpoint as a model for one crop region.

    Args:
        path: see :func:`load_fusion`.
        region: where the captions stand.
        device: where to compute.
        boxes: picture of OCR boxes, float32 (3, 48, 480) in 0..1; black without.
    """
    network = load_fusion(path).to(device)
    spatial = spatial_features(region).to(device)
    picture = (torch.zeros(3, *INPUT_SIZE) if boxes is None else boxes).to(device)

    def logits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        count = len(a)
        return network(picture.expand(count, -1, -1, -1), a, b, spatial.expand(count, -1))  # type: ignore[no-any-return]

    return PairModuleModel(logits, INPUT_SIZE, version=path.stem, device=device, digest=module_digest(network))
