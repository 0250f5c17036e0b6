"""Several processes that train one network together, each with a GPU and with clips of its own.

All begin with the same weights and take the same steps, down the mean of what each of them found (data parallelism;
Goyal et al., 2017), so that the weights stay the same everywhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn


class Team:
    """What a member knows of the others.

    Args:
        member: its number, from 0 on.
        size: how many members there are.
    """

    def __init__(self, member: int = 0, size: int = 1) -> None:
        self.member, self.size = member, size

    @property
    def leads(self) -> bool:
        """Whether this is the member that keeps time and writes files."""
        return self.member == 0

    def take_mean(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put the mean of all members' tensors in their place; on a GPU this waits for nothing."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor.div_(self.size)

    def agree_on(self, *numbers: float) -> list[float]:
        """The leader's numbers, once all have come here."""
        if self.size == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)
        distributed.broadcast(told, src=0)
        return told.tolist()

    def meet(self) -> None:
        """Return once all have come here."""
        self.take_mean([torch.zeros(())])


def run_as_team(function: Callable[..., None], size: int, *arguments: Any) -> None:
    """Call ``function(team, *arguments)`` in so many processes; in this one if it is the only one.

    Member ``n`` has the GPU ``n``, if there are GPUs. One that fails ends the others.
    """
    if size == 1:
        function(Team(), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_join, (function, size, Path(folder) / "meeting", arguments), nprocs=size)  # type: ignore[no-untyped-call]


def _join(
    member: int, function: Callable[..., None], size: int, meeting_place: Path, arguments: tuple[Any, ...]
) -> None:
    # All are on one machine.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # What a member computes on the CPU it computes alone: more threads than cores wait for each other for minutes.
    torch.set_num_threads(1)
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(member)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        init_method=meeting_place.as_uri(),
        rank=member,
        world_size=size,
    )
    try:
        function(Team(member, size), *arguments)
    finally:
        distributed.destroy_process_group()
