"""The back end of the package's network on a CPU: ONNX Runtime, with integers of 8 bits where that loses nothing.

A weights file can hold the network once more, as graphs that :mod:`caption_extents.training.export` has made of it:
``embed`` takes planes, ``describe`` embeddings, ``classify`` descriptions. Convolutions are computed with 8-bit weights
and activations (Jacob et al., 2018), which takes a third of the time of PyTorch's in float32, and PyTorch need not be
installed.

Each slice of a few samples is computed by one thread, and several slices at once. Slices are cut by sample number, and
sums of integers do not depend on their order, so the results do not depend on threads or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors import SafetensorError, safe_open

from caption_extents.effort import map_counted
from caption_extents.errors import InputError, ModelError
from caption_extents.model.identity import (
    CLOSE_AREA_PX,
    GRAPHS,
    cannot_read,
    may_be_two,
    read_identity,
)
from caption_extents.model.inputs import input_size
from caption_extents.samples import Planes

_FOLDER_OF_NUMBERS = "session.model_external_initializers_file_folder_path"

_SLICE_SAMPLES = 2
"""Samples or pairs per slice, whose activations fit into the cache."""


def read_graphs(path: Path) -> dict[str, bytes] | None:
    """The graphs of a weights file, serialised; None if it holds none.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="np") as file:
            if not set(GRAPHS.values()) <= set(file.keys()):
                return None
            return {name: file.get_tensor(key).tobytes() for name, key in GRAPHS.items()}
    except (OSError, SafetensorError) as error:
        raise cannot_read(path, error) from error


def need_graphs(path: Path) -> dict[str, bytes]:
    """As :func:`read_graphs`.

    Raises:
        ModelError: the file cannot be read, or holds none.
    """
    graphs = read_graphs(path)
    if graphs is None:
        raise ModelError(f"{str(path)!r} holds no graphs for a CPU: python -m caption_extents.training.export {path}")
    return graphs


class PortableNetwork:
    """A :class:`~caption_extents.model.backend.Backend` on a CPU.

    Args:
        path: the weights file.
        graphs: of that file.
        threads: slices computed at once.

    Raises:
        ModelError: ONNX Runtime cannot use the graphs.
    """

    device = "cpu"
    has_context = has_second_look = True

    def __init__(self, path: Path, graphs: Mapping[str, bytes], threads: int) -> None:
        identity = read_identity(path)
        self.version, self.digest, self.costs = identity.version, identity.digest, identity.costs
        try:
            self._embed, self._describe, self._classify = (_session(graphs[name]) for name in GRAPHS)
            self.reach = int(self._classify.get_modelmeta().custom_metadata_map["reach"])
        except Exception as error:  # ONNX Runtime's own classes are not public
            raise ModelError(
                f"ONNX Runtime cannot use the graphs in {str(path)!r}: {error}; export them anew"
            ) from error
        self._threads, self._thread_count = ThreadPoolExecutor(threads, "caption-model"), threads
        self._closed = False

    def close(self) -> None:
        """See the protocol."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)

    def embed(self, planes: Planes) -> np.ndarray:
        """See the protocol; float32 (N, C, h, w)."""
        _, height, width = planes[0].shape
        return self._embedded(planes, input_size(height, width))

    def _embedded(self, planes: Planes, size: tuple[int, int]) -> np.ndarray:
        sides = np.array(size, np.int64)

        def embed(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
            found: np.ndarray = self._embed.run(["embeddings"], {"y": y, "u": u, "v": v, "size": sides})[0]
            return found

        return self._in_slices(embed, planes)

    def letters(self, planes: Planes, size: tuple[int, int]) -> np.ndarray:
        """How surely letters of captions stand in each cell of pictures, float32 (N, h/8, w/8) in 0..1.

        Args:
            planes: whole pictures or crops, Y (N, H, W), U and V (N, H/2, W/2), uint8.
            size: height and width to which they are resized, multiples of 8; letters should be 12 to 40 pixels high.
        """
        logits = self._embedded(planes, size)[:, -1]
        found: np.ndarray = (1 + np.tanh(logits / 2)) / 2  # the logistic function, without overflow
        return found

    def compare(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """See the protocol."""
        earlier, later = np.broadcast_arrays(earlier, later)
        return self._in_slices(
            lambda a, b: self._of_pairs("probabilities", a, a, b, b), list(map(np.ascontiguousarray, (earlier, later)))
        )

    def describe(self, before: np.ndarray, earlier: np.ndarray, later: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See the protocol; float32 (N, 3, D): forward, backward, and from the samples around the pair."""
        return self._in_slices(lambda *around: self._of_pairs("descriptions", *around), [before, earlier, later, after])

    def _of_pairs(self, output: str, *around: np.ndarray) -> np.ndarray:
        feeds = dict(zip(("before", "earlier", "later", "after"), around, strict=True))
        found: np.ndarray = self._describe.run([output], feeds)[0]
        return found

    def classify(self, descriptions: np.ndarray) -> np.ndarray:
        """See the protocol."""
        self._check_open()
        found: np.ndarray = self._classify.run(["probabilities"], {"descriptions": descriptions})[0]
        return found

    def needs_second_look(self, probabilities: np.ndarray) -> np.ndarray:
        """Pairs that may show one caption or two."""
        return may_be_two(probabilities)

    def describe_closely(self, planes: Planes, around: np.ndarray) -> np.ndarray:
        """See the protocol: from twice as many pixels as :meth:`embed` uses."""
        _, height, width = planes[0].shape
        embeddings = self._embedded(planes, input_size(height, width, CLOSE_AREA_PX))
        before, earlier, later, after = (embeddings[numbers] for numbers in around)
        return self.describe(before, earlier, later, after)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """See the protocol."""
        return np.concatenate(parts)

    def replaced(self, features: np.ndarray, at: np.ndarray, others: np.ndarray) -> np.ndarray:
        """See the protocol."""
        found = features.copy()
        found[at] = others
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the model is closed; open it again")

    def _in_slices(self, compute: Callable[..., np.ndarray], arrays: Sequence[np.ndarray]) -> np.ndarray:
        self._check_open()
        starts = range(0, len(arrays[0]), _SLICE_SAMPLES)
        cuts = ([array[start : start + _SLICE_SAMPLES] for array in arrays] for start in starts)
        return np.concatenate(map_counted(self._threads, self._thread_count, lambda cut: compute(*cut), cuts))


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A graph may name files with its numbers, and a hostile one any file: there are none in this folder.
    options.add_session_config_entry(_FOLDER_OF_NUMBERS, str(Path(__file__) / "none"))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
