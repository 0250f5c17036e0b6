"""One step of training, and its recordings: one for each input shape, replayed by a single call (CUDA graphs).

A step is more than a thousand operations, most of them shorter than it takes to launch them: one by one they leave a
third of the GPU's time unused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from caption_extents.training.data import Group
from caption_extents.training.losses import Losses

_MAX_GRADIENT_NORM = 2.0

_UNRECORDED = 2
"""Steps of each shape that are not replayed: cuDNN chooses its algorithms in them."""


class Average:
    """A network's weights and statistics, averaged over steps (Polyak averaging).

    Args:
        network: that is averaged.
        into: a network of the same shape, which becomes the average.
    """

    def __init__(self, network: nn.Module, into: nn.Module) -> None:
        pairs = zip(into.state_dict().values(), network.state_dict().values(), strict=True)
        self._kept, self._new = map(list, zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True))
        self._decay = torch.zeros((), device=self._kept[0].device)

    def set_decay(self, decay: float) -> None:
        """What the average so far weighs from the next :meth:`update` on, 0..1."""
        self._decay.fill_(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it is."""
        torch._foreach_mul_(self._kept, self._decay)
        torch._foreach_add_(self._kept, torch._foreach_mul(self._new, 1 - self._decay))


class Step:
    """Losses of a group, and one step of an optimizer down from there.

    Args:
        losses: of a group, with random numbers from a generator; it must not wait for the device, nor look at values.
        optimizer: whose learning rates are tensors; see :func:`make_optimizer`.
        average: takes in every step.
    """

    def __init__(
        self,
        losses: Callable[[Group, torch.Generator], Losses],
        optimizer: torch.optim.Optimizer,
        average: Average | None = None,
    ) -> None:
        self._losses, self._optimizer, self._average = losses, optimizer, average
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._device = self._parameters[0].device
        self._generator = torch.Generator(self._device)
        self._seen: dict[torch.Size, int] = {}
        self._recordings: dict[torch.Size, _Recording] = {}
        # Recordings are replayed one after the other, and what one leaves in memory no other needs.
        self._memory = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None

    def __call__(self, group: Group, *, seed: int, rate: float) -> Losses:
        """Go one step.

        Args:
            group: on the optimizer's device.
            seed: of what is random.
            rate: of learning.

        Returns:
            What it found; overwritten by the next step with this shape.
        """
        self._generator.manual_seed(seed)
        for parameters in self._optimizer.param_groups:
            parameters["lr"].fill_(rate)
        shape = group.pictures.shape
        seen = self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._memory is None or seen <= _UNRECORDED:
            return self._go(group)
        if shape not in self._recordings:
            self._recordings[shape] = _Recording(self._go, group, self._generator, self._memory)
        return self._recordings[shape].replay(group)

    def _go(self, group: Group) -> Losses:
        self._optimizer.zero_grad(set_to_none=True)
        found = self._losses(group, self._generator)
        found.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        return Losses(*(getattr(found, field.name).detach() for field in fields(Losses)))


class _Recording:
    def __init__(
        self,
        function: Callable[[Group], Losses],
        group: Group,
        generator: torch.Generator,
        memory: Any,
    ) -> None:
        self._group = group.each(torch.clone)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        with torch.cuda.graph(
            self._graph, pool=memory, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            self._found = function(self._group)

    def replay(self, group: Group) -> Losses:
        for field in fields(Group):
            getattr(self._group, field.name).copy_(getattr(group, field.name))
        self._graph.replay()
        return self._found


def make_optimizer(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """AdamW that can be recorded: its rate is a tensor on the device, and it takes one kernel for many parameters."""
    device = parameters[0].device
    rate_tensor = torch.tensor(rate, device=device)
    return torch.optim.AdamW(
        parameters, lr=rate_tensor, weight_decay=0.02, fused=True, capturable=device.type == "cuda"
    )


def own_stream(device: torch.device) -> AbstractContextManager[object]:
    """A stream on which all of a training runs: what is recorded must not touch the default stream."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
