"""Saving and loading weights as safetensors, which hold numbers only: loading never executes code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from caption_extents.errors import ModelError
from caption_extents.model.identity import COSTS, DEFAULT_WEIGHTS, GRAPHS, cannot_read, new_metadata, read_metadata
from caption_extents.model.network import CaptionNetwork, NetworkConfig, fold_batch_norms


def save_weights(network: CaptionNetwork, path: Path, *, name: str) -> None:
    """Write a network's weights; ``name`` becomes the model version of runs that use them."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, path, metadata=new_metadata(name, network.config.to_metadata()))


def load_weights(path: Path = DEFAULT_WEIGHTS) -> CaptionNetwork:
    """A network in evaluation mode with batch normalisation folded in.

    Raises:
        ModelError: the file is missing, damaged, or holds weights of another network.
    """
    metadata = read_metadata(path)
    try:
        tensors = {name: tensor for name, tensor in load_file(path).items() if name not in GRAPHS.values()}
    except (OSError, SafetensorError) as error:
        raise cannot_read(path, error) from error
    try:
        network = CaptionNetwork(NetworkConfig.from_metadata(json.loads(metadata["config"])))
        network.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"weights {str(path)!r} do not fit their own description: {error}") from error
    fold_batch_norms(network.eval())
    network.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def write_costs(path: Path, costs: Mapping[str, float]) -> None:
    """Store decoding costs in a weights file; it is replaced atomically."""
    _change(path, {}, {COSTS: json.dumps(dict(costs))})


def write_graphs(path: Path, graphs: Mapping[str, bytes]) -> None:
    """Store the network's graphs for a CPU in a weights file, by name; it is replaced atomically."""
    tensors = {GRAPHS[name]: torch.frombuffer(bytearray(graph), dtype=torch.uint8) for name, graph in graphs.items()}
    _change(path, tensors, {})


def _change(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    with safe_open(path, framework="pt") as file:
        before = file.metadata() or {}
    partial = path.with_suffix(".partial")
    save_file({**load_file(path), **tensors}, partial, metadata={**before, **metadata})
    partial.chmod(path.stat().st_mode)  # safetensors makes files that only their owner can read
    partial.replace(path)
