"""What a run records of a model, read from its weights file without PyTorch."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError, safe_open

from caption_extents.errors import ModelError
from caption_extents.labels import Label

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "caption-network.safetensors"
"""The weights that the package carries."""

INPUT_AREA_PX = 64 * 512
"""Pixels that the network sees of one sample, whatever the shape of the crop.

A constant area (and so a constant cost) with the crop's own aspect ratio keeps letters in proportion; a fixed shape
would squeeze a one-line crop of 40:1 five times narrower than it is high.
"""

CLOSE_AREA_PX = 2 * INPUT_AREA_PX
"""Pixels that it sees of the few samples that it looks at closely."""

CLOSE_BETWEEN = 0.05, 0.95
"""Range of the probability of ``different`` in which a pair gets a second look, because it may be one caption or two.

Most mistakes are captions that differ by one small letter. On the validation set 0.4% of the pairs get a second look.
"""

CHECKPOINTS = frozenset({".pt", ".pth", ".ckpt"})
"""Endings of the files of another network, which is opened for one crop region."""

GRAPHS = {"embed": "graphs.embed", "describe": "graphs.describe", "classify": "graphs.classify"}
"""The network as graphs for a CPU, and the tensors of a weights file that hold them, as bytes; see
:mod:`caption_extents.model.portable`."""

_Probabilities = TypeVar("_Probabilities", bound=Any)


def may_be_two(probabilities: _Probabilities) -> _Probabilities:
    """Which pairs may show one caption or two, and so need a second look; bool (N,).

    Args:
        probabilities: after the first look, (N, 2, 5), a tensor or a NumPy array.
    """
    least, most = CLOSE_BETWEEN
    two = probabilities[..., Label.DIFFERENT.value].mean(1)
    return cast(_Probabilities, (two >= least) & (two <= most))


_NETWORK_KIND = "caption-network"
COSTS = "costs"
"""Name of the decoding costs in the metadata of a weights file."""


@dataclass(frozen=True)
class ModelIdentity:
    """A model as a run records it.

    Attributes:
        version: its name in manifests and databases.
        digest: digest of everything that its output depends on; a run continues only versions with the same digest.
        costs: its decoding costs by name, for :meth:`~caption_extents.captions.extents.DecodingCosts.of`.
    """

    version: str
    digest: str
    costs: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: object) -> ModelIdentity:
        """The identity in the attributes of a model (see :class:`~caption_extents.model.interface.PairModel`)."""
        return cls(str(model.version), str(model.digest), dict(getattr(model, "costs", {})))  # type: ignore[attr-defined]


def read_identity(path: Path = DEFAULT_WEIGHTS) -> ModelIdentity:
    """Identity of the package's network with the weights of a file.

    Raises:
        ModelError: the file is missing or damaged, or holds weights of another network.
    """
    metadata = read_metadata(path)
    looks = f"closely {CLOSE_AREA_PX} {CLOSE_BETWEEN}"
    digest = hashlib.sha256(path.read_bytes() + looks.encode()).hexdigest()
    return ModelIdentity(metadata.get("name", path.stem), digest, _costs(metadata, path))


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a file with weights of the package's network.

    Raises:
        ModelError: the file is missing or damaged, or holds weights of another network.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise cannot_read(path, error) from error
    if metadata.get("kind") != _NETWORK_KIND:
        raise ModelError(
            f"{str(path)!r} does not hold weights of this network (kind {metadata.get('kind')!r}, "
            f"expected {_NETWORK_KIND!r}); train some with python -m caption_extents.training.train"
        )
    return metadata


def new_metadata(name: str, config: dict[str, str]) -> dict[str, str]:
    """Metadata of a new weights file: the model's version and the configuration of its network."""
    return {"kind": _NETWORK_KIND, "name": name, "config": json.dumps(config)}


def cannot_read(path: Path, error: Exception) -> ModelError:
    """The error for a weights file that cannot be read."""
    return ModelError(f"cannot read model weights {str(path)!r}: {error}; give a .safetensors file")


def _costs(metadata: dict[str, str], path: Path) -> dict[str, float]:
    try:
        costs = json.loads(metadata.get(COSTS, "{}"))
    except ValueError as error:
        raise cannot_read(path, error) from error
    numbers = isinstance(costs, dict) and all(
        isinstance(cost, (int, float)) and math.isfinite(cost) for cost in costs.values()
    )
    if not numbers:
        raise ModelError(f"weights {str(path)!r} name decoding costs that are no numbers: {costs!r}; choose them anew")
    return {name: float(cost) for name, cost in costs.items()}
