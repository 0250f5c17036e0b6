"""One step of training, and its recordings: one for each input shape, replayed by a single call (CUDA graphs).

A step is more than a thousand operations, most of them shorter than it takes to launch them: one by one they leave a
third of the GPU's time unused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from caption_extents.training.data import Group
from caption_extents.training.losses import Losses
from caption_extents.training.team import Team

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
        optimizer: whose learning rates are tensors; see :func:`make_optimizer`. All its parameters get gradients.
        average: takes in every step.
        team: goes down the mean of its members' gradients.
    """

    def __init__(
        self,
        losses: Callable[[Group, torch.Generator], Losses],
        optimizer: torch.optim.Optimizer,
        average: Average | None = None,
        team: Team | None = None,
    ) -> None:
        self._losses, self._optimizer, self._average, self._team = losses, optimizer, average, team or Team()
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._gradients = _joined_gradients(self._parameters)
        device = self._gradients.device
        self._generator = torch.Generator(device)
        self._seen: dict[torch.Size, int] = {}
        self._recorded: dict[torch.Size, tuple[Group, _Recording[Losses]]] = {}
        self._recorded_descent: _Recording[None] | None = None
        # One step's losses are done with when the next step begins.
        self._memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

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
            found = self._differentiate(group)
            self._team.take_mean([self._gradients])
            self._descend()
            return found
        found = self._differentiate_recorded(group)
        self._team.take_mean([self._gradients])
        if self._recorded_descent is None:
            # In memory of its own: it is replayed while what a step found is still wanted.
            self._recorded_descent = _Recording(self._descend, None)
        self._recorded_descent.replay()
        return found

    def _differentiate(self, group: Group) -> Losses:
        self._gradients.zero_()
        found = self._losses(group, self._generator)
        found.total.backward()  # type: ignore[no-untyped-call]
        return Losses(*(getattr(found, field.name).detach() for field in fields(Losses)))

    def _differentiate_recorded(self, group: Group) -> Losses:
        shape = group.pictures.shape
        if shape not in self._recorded:
            own = group.each(torch.clone)
            recording = _Recording(partial(self._differentiate, own), self._memory, self._generator)
            self._recorded[shape] = own, recording
        own, recording = self._recorded[shape]
        for field in fields(Group):
            getattr(own, field.name).copy_(getattr(group, field.name))
        return recording.replay()

    def _descend(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()


def _joined_gradients(parameters: list[nn.Parameter]) -> torch.Tensor:
    """One tensor that holds the gradients of all parameters, so that one exchange serves them."""
    joined = torch.zeros(sum(map(torch.numel, parameters)), device=parameters[0].device)
    for parameter, part in zip(parameters, torch.split(joined, [p.numel() for p in parameters]), strict=True):
        # In the order in memory that the parameter has: fused optimizers want that.
        parameter.grad = part.as_strided(parameter.shape, parameter.stride())
    return joined


_T = TypeVar("_T")


class _Recording(Generic[_T]):
    """What a function does on the device, to be done again."""

    def __init__(self, function: Callable[[], _T], memory: Any, generator: torch.Generator | None = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(
            self._graph, pool=memory, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            self._returned = function()

    def replay(self) -> _T:
        self._graph.replay()
        return self._returned


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
