"""An executor that runs the videos of a list on this machine: an engine for each GPU, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from caption_extents.batch import (
    BatchOptions,
    Entry,
    Lane,
    LaneLostError,
    Outcome,
    longest_first,
    outcomes_of_lanes,
    run_entry,
)
from caption_extents.children import Channel, ChannelError, Child, before_end, serve_each
from caption_extents.engine import CALLS_AT_ONCE, VIDEOS_AT_ONCE, Engine, EngineMetrics, default_samples_mib
from caption_extents.errors import InputError
from caption_extents.interrupts import Interrupted, interrupt_on_signals
from caption_extents.options import Job, encoders_of_machine
from caption_extents.spawning import ChildKind, SpawnedProcess
from caption_extents.video.nvdec.driver import device_count

VIDEOS_ON_CPU = 2

_LANES = CALLS_AT_ONCE // VIDEOS_AT_ONCE

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK_SECONDS = 0.05
_END_SECONDS = 10.0
"""How long an engine may take to release its versions before its process is ended."""


class LocalExecutor:
    """An :class:`~caption_extents.batch.Executor` on this machine.

    What decodes, encodes and computes stays open between videos (:class:`~caption_extents.engine.Engine`). An engine is
    a process of its own, so that a crash costs its videos a second try, and no more.

    Args:
        jobs: videos decoded at once, on all GPUs together; 0 for a few on each.

    Attributes:
        metrics: of each engine, after a list.
    """

    def __init__(self, jobs: int = 0) -> None:
        self._jobs = jobs
        self.metrics: list[EngineMetrics] = []

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Iterator[Outcome]:
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
                engines.append(_EngineProcess(options, flowing, lanes, default_samples_mib(count), gpu))
            each = [[partial(engine.run, lane) for lane in range(engine.lanes)] for engine in engines]
            in_turn: list[Lane] = [lane for row in zip_longest(*each) for lane in row if lane is not None]
            yield from outcomes_of_lanes(longest_first(entries) if count > 1 else entries, in_turn)
            self.metrics = [metrics for engine in engines if (metrics := engine.metrics()) is not None]
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
        gpu: the only one that it sees, by its number; None for all.

    Raises:
        InputError: the options cannot be sent to another process.
    """

    def __init__(
        self, options: BatchOptions, videos_at_once: int, lanes: int, samples_mib: int, gpu: int | None
    ) -> None:
        self.lanes = lanes
        self._options = _pickled(options)
        arguments = str(videos_at_once), str(samples_mib)
        self._kind = ChildKind("caption_extents.deploy.local:serve", lanes, arguments)
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

    def metrics(self) -> EngineMetrics | None:
        """Of all that the engine has done; None if its process is gone."""
        try:
            return EngineMetrics(**self._ask(self._child, 0, {})["metrics"])
        except ChannelError:
            return None

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


# From here on: the child.


def serve(channels: list[Channel], videos_at_once: str, samples_mib: str) -> None:
    """In the child: run the entries that come, until the parent or a signal ends it."""
    interrupt_on_signals()
    engine, options = Engine(int(videos_at_once), int(samples_mib)), _Options()
    before_end(engine.close, _END_SECONDS)
    try:
        serve_each(channels, lambda channel: _serve(channel, engine, options))
    except Interrupted as interrupted:
        exit_ = threading.Timer(_END_SECONDS, os._exit, (128 + interrupted.signal_number,))
        exit_.daemon = True
        exit_.start()
        # First, so that nothing that fails from now on is told as an outcome, and no lane takes another entry.
        for channel in channels:
            channel.shut_down()
        engine.close()
        while engine.is_running:
            threading.Event().wait(_LOOK_SECONDS)


class _Options:
    """The options that all entries share; a model among them is one for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._options: BatchOptions | None = None

    def of(self, pickled: bytes) -> BatchOptions:
        with self._lock:
            if self._options is None:
                self._options = pickle.loads(pickled)  # noqa: S301 from this package's own parent
            assert self._options is not None
            return self._options


def _serve(parent: Channel, engine: Engine, options: _Options) -> None:
    while True:
        request, (pickled,) = parent.receive()
        if "entry" not in request:
            parent.send({"metrics": asdict(engine.metrics())})
            continue
        fields = request["entry"]
        entry = Entry(**{**fields, "crop": tuple(fields["crop"]), "rate": Fraction(fields["rate"])})
        try:
            outcome = run_entry(entry, options.of(bytes(pickled)), engine.run)
        except Exception as error:
            outcome = Outcome(entry.digest, entry.video_id, error=f"{type(error).__name__}: {error}")
        parent.send({"outcome": asdict(outcome)})
