"""An executor that runs the videos of a list on this machine: an engine for each GPU, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from caption_extents.batch import (
    Lane,
    LaneLostError,
    Outcome,
    longest_first,
    outcomes_of_lanes,
)
from caption_extents.children import ChannelError, Child
from caption_extents.entries import BatchOptions, Entry
from caption_extents.errors import InputError
from caption_extents.job.ahead import kinds_ahead
from caption_extents.model.opened import is_object
from caption_extents.options import CALLS_AT_ONCE, VIDEOS_AT_ONCE, Job, default_samples_mib, encoders_of_machine
from caption_extents.spawning import ChildKind, SpawnedProcess
from caption_extents.video.nvdec.driver import device_count

VIDEOS_ON_CPU = 2

_LANES = CALLS_AT_ONCE // VIDEOS_AT_ONCE

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_END_SECONDS = 11.0
"""How long an engine may take to release its versions, and a moment more, before its process is ended."""


class LocalExecutor:
    """An :class:`~caption_extents.batch.Executor` on this machine.

    What decodes, encodes and computes stays open between videos (:class:`~caption_extents.engine.Engine`). An engine is
    a process of its own, so that a crash costs its videos a second try, and no more.

    Args:
        jobs: videos decoded at once, on all GPUs together; 0 for a few on each.

    Attributes:
        busy: how busy each resource of each engine was, after a list; see
            :class:`~caption_extents.engine.EngineMetrics`.
    """

    def __init__(self, jobs: int = 0) -> None:
        self._jobs = jobs
        self.busy: list[dict[str, float]] = []

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Generator[Outcome]:
        """See the protocol."""
        if not entries:
            return
        asked = str(options.get("device", Job.device))
        gpus = device_count() if asked != "cpu" else 0
        count = max(1, gpus) if asked in {"auto", "cuda"} else 1
        jobs = self._jobs or count * (VIDEOS_AT_ONCE if gpus else VIDEOS_ON_CPU)
        count = min(count, jobs, len(entries))
        options = {"encoder_workers": encoders_of_machine(count), **options}
        is_distant = "://" in str(options.get("store")) or not all(map(_is_local, entries))
        engines: list[_EngineProcess] = []
        try:
            for number in range(count):
                flowing = jobs // count + (number < jobs % count)
                # Those beyond wait meanwhile for encoders, or for the store: they fetch a video, or commit one.
                lanes = flowing * (_LANES if gpus else 1 + is_distant)
                gpu = number if count > 1 else None
                # Of a model that is an object, this process only knows how to pickle it.
                is_known = gpus and not is_object(options.get("model"))
                at_once = min(flowing, -(-len(entries) // count))
                ahead = kinds_ahead(entries[0].job(options), at_once) if is_known else ()
                engines.append(_EngineProcess(options, flowing, lanes, default_samples_mib(count), ahead, gpu))
            each = [[partial(engine.run, lane) for lane in range(engine.lanes)] for engine in engines]
            in_turn: list[Lane] = [lane for row in zip_longest(*each) for lane in row if lane is not None]
            yield from outcomes_of_lanes(longest_first(entries) if count > 1 else entries, in_turn)
            self.busy = [busy for engine in engines if (busy := engine.busy())]
        finally:
            ending = [threading.Thread(target=engine.close) for engine in engines]
            for thread in ending:
                thread.start()
            for thread in ending:
                thread.join()


def _is_local(entry: Entry) -> bool:
    return "://" not in entry.video and Path(entry.video).expanduser().exists()


def _visible(gpu: int) -> str:
    """The GPU of a number, as the variable names it that leaves some out."""
    there = [name for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return there[gpu] if there else str(gpu)


def _pickled(options: BatchOptions) -> bytes:
    model = options.get("model")
    if type(model).__module__ == "__main__":
        raise InputError(
            f"the class {type(model).__name__} of the model is defined in the script that runs, where other processes "
            "do not find it; put it into a module of its own"
        )
    try:
        return pickle.dumps(options)
    except Exception as error:
        raise InputError(f"the options cannot be sent to another process: {error}") from error


class _EngineProcess:
    """A process with an engine, and a channel for each lane; if it dies, another one is started.

    Args:
        options: of all entries.
        videos_at_once: of the engine.
        lanes: entries at once.
        samples_mib: of the engine.
        ahead: what it starts before its own modules are imported.
        gpu: the only one that it sees, by its number; None for all.

    Raises:
        InputError: the options cannot be sent to another process.
    """

    def __init__(
        self,
        options: BatchOptions,
        videos_at_once: int,
        lanes: int,
        samples_mib: int,
        ahead: tuple[ChildKind, ...],
        gpu: int | None,
    ) -> None:
        self.lanes = lanes
        self._options = _pickled(options)
        arguments = str(videos_at_once), str(samples_mib)
        self._kind = ChildKind("caption_extents.deploy.engine_process:serve", lanes, arguments, ahead=ahead)
        self._environment = os.environ if gpu is None else {**os.environ, _VISIBLE: _visible(gpu)}
        self._lock = threading.Lock()
        self._closed = False
        self._child = self._start()

    def _start(self) -> Child:
        return Child(SpawnedProcess(self._kind, self._environment))

    def run(self, lane: int, entry: Entry) -> Outcome:
        """Run an entry; a :data:`~caption_extents.batch.Lane` without its first argument."""
        child = self._child
        request = {"entry": {**asdict(entry), "rate": str(entry.rate)}}
        try:
            return Outcome(**self._ask(child, lane, request)["outcome"])
        except ChannelError as error:
            self._replace(child)
            raise LaneLostError from error

    def busy(self) -> dict[str, float]:
        """How busy each resource was in all that the engine has done; nothing if its process is gone."""
        try:
            busy: dict[str, float] = self._ask(self._child, 0, {})["busy"]
        except ChannelError:
            return {}
        return busy

    def _ask(self, child: Child, lane: int, request: dict[str, Any]) -> dict[str, Any]:
        channel = child.channels[lane]
        channel.send(request, self._options)
        return child.receive(channel)[0]

    def _replace(self, dead: Child) -> None:
        with self._lock:
            if self._child is dead and not self._closed:
                dead.close()
                self._child = self._start()

    def close(self) -> None:
        """End the process; what it runs is given up, so that the next run can go on with it."""
        with self._lock:
            self._closed = True
        self._child.end(_END_SECONDS)
