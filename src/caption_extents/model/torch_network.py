"""The package's own caption network, computed by PyTorch: on a GPU, or as the reference on a CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from caption_extents.closing import ClosesItself
from caption_extents.effort import map_counted
from caption_extents.errors import InputError
from caption_extents.model.devices import choose_device, single_threaded_pool
from caption_extents.model.gpu import Replayed
from caption_extents.model.identity import CLOSE_AREA_PX, DEFAULT_WEIGHTS, INPUT_AREA_PX, may_be_two, read_identity
from caption_extents.model.inputs import input_size
from caption_extents.model.network import CaptionNetwork
from caption_extents.model.preprocess import to_input
from caption_extents.model.weights import load_weights
from caption_extents.options import check_count, default_inference_threads

Compute = Callable[..., torch.Tensor]

_CPU_SLICE_SAMPLES = 2
"""Samples per slice on a CPU. A batch is computed in slices, whose activations fit into the cache, several at once."""

_CLOSE_SLICE = 16
"""Samples or pairs per slice of the second look on a GPU. A batch seldom has more, and small slices save memory."""


class TorchNetwork(ClosesItself):
    """A :class:`~caption_extents.model.interface.SecondLookModel` of the package's network; a context manager.

    On a CPU each slice of a few samples is computed by one thread, and several slices are computed at once. Parallelism
    within an operation would be slower, and rounding would depend on the number of threads.

    Args:
        weights: a ``.safetensors`` file of :mod:`caption_extents.model.network`; by default the package's own.
        device: where to compute: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for a GPU if there is one.
        threads: slices computed at once on a CPU; by default one for each core, at most 16.

    Raises:
        InputError: there is no such device.
        ModelError: the weights cannot be loaded.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "auto",
        threads: int | None = None,
    ) -> None:
        self.path = Path(weights) if weights is not None else DEFAULT_WEIGHTS
        self.device = choose_device(str(device))
        if threads is None:
            threads = default_inference_threads()
        threads = check_count("threads", threads, 1)
        identity = read_identity(self.path)
        self.version, self.digest, self.costs = identity.version, identity.digest, identity.costs
        on_cpu = self.device.type == "cpu"
        network = _load_by_one_thread(self.path) if on_cpu else load_weights(self.path)
        self._network = network.to(self.device)
        self._threads, self._thread_count = single_threaded_pool(threads, "caption-model") if on_cpu else None, threads
        if not on_cpu:
            # Half precision takes half the time, which leaves the GPU to decoding; labels stay the same (docs/gpu.md).
            network.encoder.half()
            network.head.half()
        self._slice, self._close_slice = (_CPU_SLICE_SAMPLES,) * 2 if on_cpu else (1 << 30, _CLOSE_SLICE)
        # Bind the network, not self: a reference cycle would keep the model, and with it its threads, alive.
        embed_closely = partial(_embed, area_px=CLOSE_AREA_PX)
        functions: list[Compute] = [_embed, _describe, _label, embed_closely, _describe]
        computed: list[Compute] = [partial(function, self._network) for function in functions]
        if not on_cpu:
            recording = threading.Lock()
            computed = [Replayed(function, recording) for function in computed]
        self._embed_slice, self._describe_slice, self._label, self._embed_closely, self._describe_closely = computed
        self._compare_slice: Compute = partial(_compare, self._network)
        self.reach = self._network.config.reach
        self._closed = False
        self._warming: threading.Thread | None = None
        if not on_cpu:
            self._warming = threading.Thread(target=self._warm_up, name="warm-up", daemon=True)
            self._warming.start()

    def close(self) -> None:
        """Free the threads; the model cannot be used any more."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._warming is not None:
            self._warming.join()

    def _warm_up(self) -> None:
        """Load the GPU's libraries, which takes half a second, while the first samples are decoded."""
        # Errors, such as lack of memory, are ignored here: they occur again, and are raised, in the first batch.
        with suppress(RuntimeError, InputError):
            luma, chroma = (
                torch.zeros(shape, dtype=torch.uint8, device=self.device) for shape in ((2, 64, 512), (2, 32, 256))
            )
            # Not by `embed`, which a model that is closed meanwhile refuses.
            embeddings = self._for_each_slice(self._embed_slice, [luma, chroma, chroma])
            self.classify(self.describe(*[embeddings[:1], embeddings[1:]] * 2))

    def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Embeddings of consecutive samples. May be called from several threads.

        Args:
            y: luma, uint8 (N, H, W).
            u: chroma, uint8 (N, H/2, W/2).
            v: chroma, uint8 (N, H/2, W/2).

        Returns:
            (N, C, h, w) on the model's device; float32 on a CPU, float16 on a GPU.
        """
        planes = [plane.to(self.device) for plane in (y, u, v)]
        return self._for_each_slice(self._embed_slice, planes)

    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Probabilities of the five labels for pairs of embeddings (N, C, h, w), each on its own.

        Returns:
            float32 (N, 2, 5) on the CPU: forward (earlier, later) and backward (later, earlier).
        """
        return _to_cpu(self._for_each_slice(self._compare_slice, [earlier, later]))

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Compute descriptions (feature vectors) of pairs of samples (k, k+1), the input of :meth:`classify`.

        Args:
            before: embeddings (N, C, h, w) of the samples k-1.
            earlier: embeddings of the samples k.
            later: embeddings of the samples k+1.
            after: embeddings of the samples k+2.

        Returns:
            float32 (N, 3, D) on the model's device: forward, backward, and from the samples around the pair.
        """
        return self._for_each_slice(self._describe_slice, [before, earlier, later, after])

    def needs_second_look(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Which pairs need a second look, because they may show one caption or two; bool (N,).

        Args:
            probabilities: probabilities of the pairs after the first look, (N, 2, 5).
        """
        return may_be_two(probabilities)

    def describe_closely(
        self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, around: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The second look: compute descriptions of pairs from twice as many pixels as :meth:`embed` uses.

        The network was trained on pictures of this size too. Its effect on the accuracy is in docs/model-card.md.

        Args:
            y: luma of samples, uint8 (N, H, W).
            u: chroma of samples, uint8 (N, H/2, W/2).
            v: chroma of samples, uint8 (N, H/2, W/2).
            around: indices into these samples of samples k-1, k, k+1 and k+2, for pairs (k, k+1); four int64 (P,).

        Returns:
            float32 (P, 3, D) on the model's device.
        """
        planes = [plane.to(self.device) for plane in (y, u, v)]
        embeddings = self._in_whole_slices(self._embed_closely, planes)
        chosen = [embeddings[numbers] for numbers in torch.stack(around).to(self.device)]
        return self._in_whole_slices(self._describe_closely, chosen)

    def classify(self, descriptions: torch.Tensor) -> torch.Tensor:
        """Probabilities of the five labels for consecutive pairs, each with ``reach`` pairs on both sides.

        Args:
            descriptions: (P, 3, D), as :meth:`describe` returns them. They are taken for the whole video: if more pairs
                precede or follow, the first or the last ``reach`` results are not valid.

        Returns:
            float32 (P, 2, 5) on the CPU, forward and backward.
        """
        self._check_open()
        compute = torch.inference_mode()(self._label)
        found = self._threads.submit(compute, descriptions).result() if self._threads else compute(descriptions)
        return _to_cpu(found)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the model is closed; open it again")

    def _in_whole_slices(self, compute: Compute, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Compute in slices of ``_CLOSE_SLICE``; on a GPU the last is padded, so that a CUDA graph can be replayed."""
        count, size = len(tensors[0]), self._close_slice
        missing = 0 if self._threads else -count % size
        if missing:
            tensors = [torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) for tensor in tensors]
        return self._for_each_slice(compute, tensors, size)[:count]

    def _for_each_slice(self, compute: Compute, tensors: list[torch.Tensor], size: int = 0) -> torch.Tensor:
        size = size or self._slice
        self._check_open()

        @torch.inference_mode()
        def compute_slice(start: int) -> torch.Tensor:
            return compute(*(tensor[start : start + size] for tensor in tensors))

        starts = range(0, len(tensors[0]), size)
        if self._threads:
            done = map_counted(self._threads, self._thread_count, compute_slice, starts)
        else:
            done = list(map(compute_slice, starts))
        return done[0] if len(done) == 1 else torch.cat(done)


def _load_by_one_thread(path: Path) -> CaptionNetwork:
    with single_threaded_pool(1, "load-model") as thread:
        return thread.submit(load_weights, path).result()


def _embed(
    network: CaptionNetwork, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, area_px: int = INPUT_AREA_PX
) -> torch.Tensor:
    picture = to_input(y, u, v, input_size(y.shape[1], y.shape[2], area_px))
    embeddings: torch.Tensor = network.encoder(picture.to(network.encoder.mask.weight.dtype))
    return embeddings


def _compare(network: CaptionNetwork, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    return _probabilities(network.head(earlier, later))


def _describe(network: CaptionNetwork, *embeddings: torch.Tensor) -> torch.Tensor:
    return network.describe(*embeddings).float()


def _label(network: CaptionNetwork, descriptions: torch.Tensor) -> torch.Tensor:
    return _probabilities(network.context(descriptions[None])[0])


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().softmax(dim=-1)


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to host memory; waits until it has been computed."""
    if tensor.is_cuda:
        # By default a thread that waits for a GPU busy-waits, on a core that encoders could use.
        # With a blocking event it sleeps.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(tensor.device))
        done.synchronize()
    return tensor.cpu()
