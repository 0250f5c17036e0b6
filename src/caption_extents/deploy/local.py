"""An executor that runs the videos of a list on this machine: an engine for each GPU, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from functools import lru_cache, partial
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
from caption_extents.engine import VIDEOS_AT_ONCE, Engine, EngineMetrics
from caption_extents.interrupts import Interrupted, interrupt_on_signals
from caption_extents.options import Job, encoders_of_machine
from caption_extents.spawning import ChildKind, SpawnedProcess
from caption_extents.video.nvdec.driver import device_count

VIDEOS_ON_CPU = 2

_END_SECONDS = 10.0
"""How long an engine may take to release its versions before its process is ended."""


class LocalExecutor:
    """An :class:`~caption_extents.batch.Executor` on this machine.

    What decodes, encodes and computes stays open between videos (:class:`~caption_extents.engine.Engine`). An engine is
    a process of its own, so that a crash costs its videos a second try, and no more.

    Args:
        jobs: videos at once, on all GPUs together; 0 for a few on each.

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
        engines = max(1, gpus) if asked in {"auto", "cuda"} else 1
        jobs = self._jobs or engines * (VIDEOS_AT_ONCE if gpus else VIDEOS_ON_CPU)
        engines = min(engines, jobs, len(entries))
        options = {"encoder_workers": encoders_of_machine(engines), **options}
        flowing = -(-jobs // engines)
        is_distant = "://" in str(options.get("store")) or not all(map(_is_local, entries))
        # Those beyond wait for the store meanwhile: they fetch a video, or commit one.
        count = flowing * (1 + is_distant)
        opened = [
            _EngineProcess({**options, "device": f"cuda:{number}"} if engines > 1 else options, flowing, count)
            for number in range(engines)
        ]
        lanes: list[Lane] = [partial(engine.run, lane) for lane in range(count) for engine in opened]
        try:
            yield from outcomes_of_lanes(longest_first(entries) if engines > 1 else entries, lanes)
            self.metrics = [metrics for engine in opened if (metrics := engine.metrics()) is not None]
        finally:
            ending = [threading.Thread(target=engine.close) for engine in opened]
            for thread in ending:
                thread.start()
            for thread in ending:
                thread.join()


def _is_local(entry: Entry) -> bool:
    return "://" not in entry.video and Path(entry.video).expanduser().exists()


class _EngineProcess:
    """A process with an engine, and a channel for each lane; if it dies, another one is started.

    Args:
        options: of all entries.
        videos_at_once: of the engine.
        lanes: entries at once.
    """

    def __init__(self, options: BatchOptions, videos_at_once: int, lanes: int) -> None:
        self._options = pickle.dumps(options)
        self._kind = ChildKind("caption_extents.deploy.local:serve", lanes, (str(videos_at_once),))
        self._lock = threading.Lock()
        self._closed = False
        self._child = self._start()

    def _start(self) -> Child:
        return Child(SpawnedProcess(self._kind, os.environ))

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


def serve(channels: list[Channel], videos_at_once: str) -> None:
    """In the child: run the entries that come, until the parent or a signal ends it."""
    interrupt_on_signals()
    engine = Engine(int(videos_at_once))
    before_end(engine.close, _END_SECONDS)
    try:
        serve_each(channels, lambda channel: _serve(channel, engine))
    except Interrupted as interrupted:
        exit_ = threading.Timer(_END_SECONDS, os._exit, (128 + interrupted.signal_number,))
        exit_.daemon = True
        exit_.start()
        engine.close()
        for channel in channels:
            channel.shut_down()
        while engine.is_running:
            threading.Event().wait(0.05)


def _serve(parent: Channel, engine: Engine) -> None:
    while True:
        request, (options,) = parent.receive()
        if "entry" not in request:
            parent.send({"metrics": asdict(engine.metrics())})
            continue
        fields = request["entry"]
        entry = Entry(**{**fields, "crop": tuple(fields["crop"]), "rate": Fraction(fields["rate"])})
        outcome = run_entry(entry, _options(bytes(options)), engine.run)
        parent.send({"outcome": asdict(outcome)})


@lru_cache(1)
def _options(pickled: bytes) -> BatchOptions:
    """The options that all entries share; a model among them is one for all."""
    return pickle.loads(pickled)  # type: ignore[no-any-return]  # noqa: S301 from this package's own parent
