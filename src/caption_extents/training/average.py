"""The mean of several runs' weights: ``python -m caption_extents.training.average A B --out FILE``.

Runs that began with the same weights and differ in their data and learning rate end in one valley, and its middle is
better than its sides (Wortsman et al., 2022).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def average_weights(files: list[Path], out: Path) -> None:
    """Write the mean of weights of one network; its name is that of the first.

    Raises:
        ValueError: the files hold weights of different networks.
    """
    loaded = [load_file(file) for file in files]
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in loaded]
    if any(other != shapes[0] for other in shapes):
        raise ValueError(f"{', '.join(map(str, files))} hold weights of different networks")
    mean = {
        name: torch.stack([tensors[name].double() for tensors in loaded]).mean(0).to(first.dtype)
        for name, first in loaded[0].items()
    }
    with safe_open(files[0], framework="pt") as file:
        save_file(mean, out, metadata=file.metadata())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="+", type=Path, help="weights of runs with the same beginning")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    average_weights(arguments.weights, arguments.out)


if __name__ == "__main__":
    main()
