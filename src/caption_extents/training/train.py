"""Training of the caption network on rendered clips: ``python -m caption_extents.training.train --out weights``.

In each round the whole network learns from windows of clips first, then the context head alone from whole clips, with
what the averaged rest of the network says of them. Everything that is random comes from the seed and the step, so a run
can be repeated, and resumed from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from caption_extents.machine import usable_cores
from caption_extents.model.network import CaptionNetwork, NetworkConfig
from caption_extents.model.weights import save_weights
from caption_extents.training import fonts, text
from caption_extents.training.average import average_weights
from caption_extents.training.data import ClipPool, Group, load_groups
from caption_extents.training.losses import Losses, context_losses, losses
from caption_extents.training.steps import Average, Step, make_optimizer, own_stream
from caption_extents.training.team import Team, run_as_team

WEIGHTS_NAME = "caption-network.safetensors"
_CHECKPOINT_NAME = "checkpoint.pt"

_SEEDS_BETWEEN_ROUNDS = 1000
_SEEDS_BETWEEN_MEMBERS = 100_000

_CONTEXT_TIME = 0.15
"""Share of the time that the second part gets, where time is what limits the training."""

_CONTEXT_BATCH = 2
"""Samples in a batch of the second part, for each of the first: nothing is kept for a backward pass."""


@dataclass
class _State:
    """All that a checkpoint holds."""

    network: CaptionNetwork
    average: CaptionNetwork
    optimizer: torch.optim.Optimizer
    context_optimizer: torch.optim.Optimizer
    step: int = 0
    context_step: int = 0
    groups: int = 0
    joint_seconds: float = 0.0
    context_seconds: float = 0.0

    @classmethod
    def start(cls, arguments: argparse.Namespace, device: torch.device) -> _State:
        torch.manual_seed(arguments.seed)
        network, average = CaptionNetwork(NetworkConfig()), CaptionNetwork(NetworkConfig())
        average.load_state_dict(network.state_dict())
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(list(network.parameters()), arguments.rate)
        # In the second part the context head learns in the averaged network, from what that says.
        context = make_optimizer(list(average.context.parameters()), arguments.rate)
        return cls(network.train(), average.eval(), optimizer, context)

    def save_all(self, folder: Path, name: str) -> None:
        """Write the checkpoint, and the averaged weights by a model's name."""
        self.save(folder / _CHECKPOINT_NAME)
        save_weights(self.average, folder / WEIGHTS_NAME, name=name)

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "context_optimizer": self.context_optimizer.state_dict(),
            "numbers": (
                self.step,
                self.context_step,
                self.groups,
                self.joint_seconds,
                self.context_seconds,
            ),
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def start_from(self, weights: Path) -> None:
        """Take over the tensors of other weights that have the same name and shape."""
        with torch.no_grad():
            for name, tensor in load_file(weights).items():
                for network in (self.network, self.average):
                    own = network.state_dict().get(name)
                    if own is not None and own.shape == tensor.shape:
                        own.copy_(tensor)

    def load(self, path: Path, device: torch.device) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.context_optimizer.load_state_dict(state["context_optimizer"])
        (self.step, self.context_step, self.groups, self.joint_seconds, self.context_seconds) = state["numbers"]


def progress(done: int, planned: int, seconds: float, max_seconds: float) -> float:
    """How much of a part of the training is over, 0..1: of its steps or, where its time is limited, of that."""
    return min(1.0, max(done / max(1, planned), seconds / max_seconds))


def learning_rate(peak: float, step: int, over: float) -> float:
    """A short climb, then half a cosine down to a hundredth (Loshchilov and Hutter, 2016)."""
    return peak * min(1.0, (step + 1) / 200) * (0.5 * (1 + math.cos(math.pi * over)) + 0.01)


class _Learning:
    """Both parts of the training, a step at a time."""

    def __init__(self, state: _State, pool: ClipPool, arguments: argparse.Namespace, team: Team) -> None:
        self._state, self._pool, self._arguments, self._team = state, pool, arguments, team
        self._seed = _own_seed(arguments.seed, team)
        # The more clips there are to a step, the surer is its way (Malladi et al., 2022).
        self._rate = arguments.rate * math.sqrt(team.size)
        self._average = Average(state.network, state.average)
        self._joint = Step(partial(losses, state.network), state.optimizer, self._average, team)
        self._context = Step(partial(context_losses, state.average), state.context_optimizer, team=team)

    def all(self, over: float) -> tuple[Losses, int]:
        """The whole network, from windows; what was found, and of how many samples."""
        state, arguments = self._state, self._arguments
        seed, rng = _dice(self._seed, state.step)
        self._average.set_decay(min(0.9995, (state.step + 1) / (state.step + 20)))
        group = draw_together(self._pool, self._team, rng, arguments.clips, arguments.window)
        found = self._joint(group, seed=seed, rate=learning_rate(self._rate, state.step, over))
        state.step += 1
        return found, group.caption_ids.numel() * self._team.size

    def context(self, over: float) -> tuple[Losses, int]:
        """The context head, from whole clips."""
        state, arguments = self._state, self._arguments
        if state.context_step == 0:
            # Each member has the statistics of its own clips.
            self._team.take_mean(tensor for tensor in state.average.buffers() if tensor.is_floating_point())
        seed, rng = _dice(self._seed + 1, state.context_step)
        clips = max(1, arguments.clips * arguments.window * _CONTEXT_BATCH // arguments.samples)
        group = draw_together(self._pool, self._team, rng, clips)
        found = self._context(group, seed=seed, rate=learning_rate(self._rate, state.context_step, over))
        state.context_step += 1
        return found, group.caption_ids.numel() * self._team.size


def draw_together(pool: ClipPool, team: Team, rng: random.Random, clip_count: int, samples: int = 0) -> Group:
    """Clips of a shape that the whole team agrees on: its first steps take seconds, for which all others would wait.

    Args:
        pool: this member's.
        team: all of which come here.
        rng: decides which clips and, if it is the leader's, which shape.
        clip_count: as in :meth:`ClipPool.draw`.
        samples: as there.
    """
    height, width = team.agree_on(*pool.draw_shape(rng))
    return pool.draw(rng, (int(height), int(width)), clip_count, samples)


def _own_seed(seed: int, team: Team) -> int:
    """What a member's clips and dice come from."""
    return seed + _SEEDS_BETWEEN_MEMBERS * team.member


def _dice(seed: int, step: int) -> tuple[int, random.Random]:
    """A seed for what is random on the device, and what draws the clips."""
    return seed * 1_000_003 + step, random.Random(seed * 7_777_777 + step)


class _Log:
    """Losses, averaged over the steps between two lines, and how long the device waited for clips."""

    def __init__(self, path: Path, every: int) -> None:
        self._file, self._every = path.open("a"), every
        self._started = self._since = time.perf_counter()
        self._waited = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._steps = self._samples = 0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def add(self, state: _State, found: Losses, samples: int) -> None:
        # Sums stay on the device: reading a loss at every step would make the device wait for this thread.
        for name in (field.name for field in fields(Losses)):
            self._sums[name] = getattr(found, name) + self._sums.get(name, 0.0)
        self._steps += 1
        self._samples += samples
        if (state.step + state.context_step) % self._every == 0:
            self.write(state)

    def write(self, state: _State) -> None:
        """A line for the steps since the last one, if there were any."""
        if not self._steps:
            return
        record: dict[str, float] = {name: round(float(value) / self._steps, 5) for name, value in self._sums.items()}
        now = time.perf_counter()
        record |= {
            "step": state.step,
            "context_step": state.context_step,
            "seconds": round(now - self._started, 1),
            "samples_per_second": round(self._samples / (now - self._since)),
            "waited_for_data": round(self._waited / (now - self._since), 3),
            "groups": state.groups,
        }
        print(json.dumps(record), flush=True)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._sums, self._steps, self._samples, self._since, self._waited = {}, 0, 0, now, 0.0


def train(arguments: argparse.Namespace) -> Path:
    """Run the training that the arguments describe; returns the file of the weights.

    Each round begins with the weights of the round before, at a lower rate and with clips of its own (warm restarts,
    Loshchilov and Hutter, 2016); the mean of the last two rounds' weights is the result. What a run before this one has
    done, in the same folder, is not done again.
    """
    _check_shaping(arguments.assets)
    run_as_team(_train_all_rounds, arguments.gpus, arguments)
    result = Path(arguments.out) / WEIGHTS_NAME
    average_weights([folder / WEIGHTS_NAME for folder in _round_folders(arguments)[-2:]], result)
    return result


def _round_folders(arguments: argparse.Namespace) -> list[Path]:
    """Where each round keeps its checkpoint, log and weights."""
    return [Path(arguments.out) / f"round-{number + 1}" for number in range(arguments.rounds)]


def _train_all_rounds(team: Team, arguments: argparse.Namespace) -> None:
    device = torch.device(f"cuda:{team.member}" if arguments.device == "cuda" else arguments.device)
    # Two dozen input shapes come again and again; to try all that cuDNN has for each would take minutes.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 4
    weights: Path | None = arguments.init
    for number, folder in enumerate(_round_folders(arguments)):
        folder.mkdir(parents=True, exist_ok=True)
        own = {
            "init": weights,
            "rate": arguments.rate / (1 + number),
            "seed": arguments.seed + _SEEDS_BETWEEN_ROUNDS * number,
        }
        with own_stream(device):
            _train_round(argparse.Namespace(**{**vars(arguments), **own}), folder, device, team)
        team.meet()
        weights = folder / WEIGHTS_NAME


def _check_shaping(assets: Path | None) -> None:
    if fonts.can_shape():
        return
    left_out = sorted(set(text.scripts()) - set(fonts.drawable_scripts()))
    message = f"Pillow finds no {fonts.SHAPING_LIBRARY} and cannot draw {', '.join(left_out)}"
    if assets is not None:
        raise SystemExit(f"{message}: install Debian's libfribidi0, or start again with LD_LIBRARY_PATH={assets}")
    print(f"{message}; they are left out", flush=True)


def _train_round(arguments: argparse.Namespace, out: Path, device: torch.device, team: Team) -> None:
    state, checkpoint = _State.start(arguments, device), out / _CHECKPOINT_NAME
    if checkpoint.exists() and not arguments.fresh:
        state.load(checkpoint, device)
        if _over(state, arguments)[1] >= 1:
            return
    elif arguments.init is not None:
        state.start_from(arguments.init)
    groups = load_groups(
        _own_seed(arguments.seed, team),
        state.groups,
        assets=arguments.assets,
        clip_count=arguments.group_clips,
        samples=arguments.samples,
        workers=arguments.workers // team.size,
    )
    with closing(_Supply(groups, ClipPool(device, arguments.pool), state)) as supply:
        started = time.monotonic()
        supply.wait_for(max(1, arguments.warm_groups // team.size))
        team.meet()
        log = _Log(out / "log.jsonl", arguments.log_every) if team.leads else None
        if team.leads:
            print(f"{arguments.warm_groups} groups rendered in {time.monotonic() - started:.1f} s", flush=True)
        for found, samples in _steps(state, supply, arguments, team, log):
            if log is not None:
                log.add(state, found, samples)
                if (state.step + state.context_step) % arguments.save_every == 0:
                    state.save_all(out, arguments.name)
    if log is not None:
        log.write(state)
        state.save_all(out, arguments.name)


def _over(state: _State, arguments: argparse.Namespace) -> tuple[float, float]:
    """How much of both parts is over."""
    for_all = arguments.max_seconds * (1 - _CONTEXT_TIME)
    for_context = max(1.0, arguments.max_seconds - min(state.joint_seconds, for_all))
    return (
        progress(state.step, arguments.steps, state.joint_seconds, for_all),
        progress(state.context_step, arguments.context_steps, state.context_seconds, for_context),
    )


def _steps(
    state: _State, supply: _Supply, arguments: argparse.Namespace, team: Team, log: _Log | None
) -> Iterator[tuple[Losses, int]]:
    """What each step of both parts found, and of how many samples."""
    learning = _Learning(state, supply.pool, arguments, team)
    since = time.perf_counter()
    while True:
        # One clock for all, so that all take the same steps.
        state.joint_seconds, state.context_seconds = team.agree_on(state.joint_seconds, state.context_seconds)
        joint_over, context_over = _over(state, arguments)
        if context_over >= 1:
            return
        if arguments.reuse and (state.step + state.context_step) % arguments.reuse == 0:
            start = time.perf_counter()
            supply.wait_for(1)
            if log is not None:
                log.waited(time.perf_counter() - start)
        elif not arguments.reuse:
            supply.take()
        yield learning.all(joint_over) if joint_over < 1 else learning.context(context_over)
        # The device's work is waited for here and there; all of it counts, wherever that is.
        now = time.perf_counter()
        if joint_over < 1:
            state.joint_seconds += now - since
        else:
            state.context_seconds += now - since
        since = now


class _Supply:
    """A thread that brings groups to the device as they are rendered, and the pool that they go into.

    Args:
        groups: without end.
        pool: on the device.
        state: counts the groups that went in.
    """

    def __init__(self, groups: Iterator[Group], pool: ClipPool, state: _State) -> None:
        self.pool = pool
        self._groups, self._state = groups, state
        self._fetched: queue.Queue[Group | BaseException] = queue.Queue(4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name="groups", daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        try:
            # To read what a process has rendered takes as long as a step: the thread that feeds the device must not.
            with own_stream(self.pool.device):
                for group in self._groups:
                    self._offer(group.to(self.pool.device))
                    if self._stopped.is_set():
                        return
        except BaseException as error:
            self._fetched.put(error)

    def _offer(self, group: Group) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._fetched.put(group, timeout=0.1)
                return

    def _keep(self, fetched: Group | BaseException) -> None:
        if isinstance(fetched, BaseException):
            raise fetched
        self.pool.add(fetched)
        fetched.used_here()
        self._state.groups += 1

    def wait_for(self, count: int) -> None:
        """Take so many groups, however long they take."""
        for _ in range(count):
            self._keep(self._fetched.get())

    def take(self) -> None:
        """Take the groups that are there."""
        with suppress(queue.Empty):
            while True:
                self._keep(self._fetched.get_nowait())

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for weights, checkpoint and log")
    parser.add_argument("--name", default="caption-network", help="model version written into the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gpus", type=int, help="that train together; by default all, if the device is just 'cuda'")
    parser.add_argument("--assets", type=Path, help="a folder that caption_extents.training.assets packed")
    parser.add_argument(
        "--rounds", type=int, default=1, help="trainings, each from the one before; the last two's mean counts"
    )
    parser.add_argument("--steps", type=int, default=40_000, help="of a round's first part")
    parser.add_argument("--context-steps", type=int, default=2_500, help="of a round's second part")
    parser.add_argument("--clips", type=int, default=16, help="windows in a batch of the first part")
    parser.add_argument("--window", type=int, default=24, help="samples in a window")
    parser.add_argument("--samples", type=int, default=48, help="samples in a clip")
    parser.add_argument("--group-clips", type=int, default=4, help="clips that a process renders at a time")
    parser.add_argument("--reuse", type=int, default=0, help="steps for each group of clips; 0 for groups as they come")
    parser.add_argument("--pool", type=int, default=400, help="clips of each input shape kept on the device")
    parser.add_argument("--warm-groups", type=int, default=150, help="groups rendered before the first step")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=max(1, usable_cores() - 1), help="processes that render, in all")
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, help="what a round may take; the learning rate falls in time"
    )
    parser.add_argument("--init", type=Path, help="weights to start from, as far as they fit")
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in the folder")
    arguments = parser.parse_args()
    if arguments.gpus is None:
        arguments.gpus = max(1, torch.cuda.device_count()) if arguments.device == "cuda" else 1
    train(arguments)


if __name__ == "__main__":
    main()
