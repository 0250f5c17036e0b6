"""Saving and loading weights as safetensors, which hold numbers only: loading never executes code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from caption_extents.errors import ModelError
from caption_extents.model.network import CaptionNetwork, NetworkConfig, fold_batch_norms

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "caption-network.safetensors"
"""The weights that the package carries."""

_NETWORK_KIND = "caption-network"
_COSTS = "costs"


def save_weights(network: CaptionNetwork, path: Path, *, name: str) -> None:
    """Write a network's weights; ``name`` becomes the model version of runs that use them."""
    metadata = {"kind": _NETWORK_KIND, "name": name, "config": json.dumps(network.config.to_metadata())}
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, path, metadata=metadata)


def load_weights(path: Path = DEFAULT_WEIGHTS) -> tuple[CaptionNetwork, str]:
    """A network in evaluation mode with batch normalisation folded in, and its name.

    Raises:
        ModelError: the file is missing, damaged, or holds weights of another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read model weights {str(path)!r}: {error}; give a .safetensors file") from error
    if metadata.get("kind") != _NETWORK_KIND:
        raise ModelError(
            f"{str(path)!r} does not hold weights of this network (kind {metadata.get('kind')!r}, "
            f"expected {_NETWORK_KIND!r}); train some with python -m caption_extents.training.train"
        )
    try:
        network = CaptionNetwork(NetworkConfig.from_metadata(json.loads(metadata["config"])))
        network.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"weights {str(path)!r} do not fit their own description: {error}") from error
    fold_batch_norms(network.eval())
    network.requires_grad_(False)
    return network.to(memory_format=torch.channels_last), metadata.get("name", path.stem)  # type: ignore[call-overload]


def read_costs(path: Path = DEFAULT_WEIGHTS) -> dict[str, float]:
    """Read the decoding costs stored in a weights file, by name; empty if it contains none.

    Raises:
        ModelError: the file cannot be read, or its costs are not numbers.
    """
    try:
        with safe_open(path, framework="pt") as file:
            costs = json.loads((file.metadata() or {}).get(_COSTS, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"cannot read model weights {str(path)!r}: {error}; give a .safetensors file") from error
    numbers = isinstance(costs, dict) and all(
        isinstance(cost, (int, float)) and math.isfinite(cost) for cost in costs.values()
    )
    if not numbers:
        raise ModelError(f"weights {str(path)!r} name decoding costs that are no numbers: {costs!r}; choose them anew")
    return {name: float(cost) for name, cost in costs.items()}


def write_costs(path: Path, costs: Mapping[str, float]) -> None:
    """Store decoding costs in a weights file; it is replaced atomically."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    partial = path.with_suffix(".partial")
    save_file(load_file(path), partial, metadata={**metadata, _COSTS: json.dumps(dict(costs))})
    partial.replace(path)
