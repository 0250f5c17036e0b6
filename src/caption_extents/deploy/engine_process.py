"""The process of an engine: what :mod:`caption_extents.deploy.local` starts for each GPU."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterable
from dataclasses import asdict
from fractions import Fraction

from caption_extents.batch import Outcome, run_entry
from caption_extents.children import Channel, before_end, serve_each
from caption_extents.engine import Engine
from caption_extents.entries import BatchOptions, Entry
from caption_extents.interrupts import Interrupted, interrupt_on_signals
from caption_extents.spawning import ChildKind, SpawnedProcess

_LOOK_SECONDS = 0.05
_END_SECONDS = 10.0
"""How long an engine may take to release its versions."""


def serve(
    channels: list[Channel],
    videos_at_once: str,
    samples_mib: str,
    ready: Iterable[tuple[ChildKind, SpawnedProcess]] = (),
) -> None:
    """In the child: run the entries that come, until the parent or a signal ends it."""
    interrupt_on_signals()
    engine, options = Engine(int(videos_at_once), int(samples_mib)), _Options()
    engine.children.take_over(ready)
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
            parent.send({"busy": engine.metrics().busy})
            continue
        fields = request["entry"]
        crop = None if fields["crop"] is None else tuple(fields["crop"])
        entry = Entry(**{**fields, "crop": crop, "rate": Fraction(fields["rate"])})
        try:
            outcome = run_entry(entry, options.of(bytes(pickled)), engine.run)
        except Exception as error:
            outcome = Outcome(entry.digest, entry.video_id, error=f"{type(error).__name__}: {error}")
        parent.send({"outcome": asdict(outcome)})
