"""Executors that run the videos of a list on a Ray cluster or with the deployed Modal app."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path

from caption_extents.batch import (
    Lane,
    LaneLostError,
    Outcome,
    longest_first,
    outcomes_of_lanes,
    run_entry,
)
from caption_extents.encoders.modal_settings import JOB_FUNCTION
from caption_extents.encoders.modal_workers import find_function
from caption_extents.encoders.ray_cluster import Actor, ActorLostError, RayCluster, Resources
from caption_extents.engine import engine_of_process
from caption_extents.entries import BatchOptions, Entry
from caption_extents.errors import InputError, ProcessingError
from caption_extents.options import CALLS_AT_ONCE


class RayExecutor:
    """An :class:`~caption_extents.batch.Executor` on a Ray cluster: an actor with an engine for each GPU.

    Args:
        cpus: of each actor. On a cluster without GPUs there are as many actors as have room.
    """

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Generator[Outcome]:
        """See the protocol."""
        cluster = RayCluster()
        try:
            there = cluster.resources
            gpus = int(there.gpus)
            needs = Resources(min(self._cpus, there.cpus / max(1, gpus)), gpus=1.0 if gpus else 0.0)
            count, calls = (gpus, CALLS_AT_ONCE) if gpus else (max(1, int(there.cpus / needs.cpus)), 1)
            actors = [Actor(number, calls) for number in range(min(count, len(entries)))]

            def run(actor: Actor, entry: Entry) -> Outcome:
                try:
                    future = cluster.submit(_run_on_engine, _for_workers(entry), options, needs=needs, actor=actor)
                    return replace(future.result(), digest=entry.digest)
                except ActorLostError as error:
                    raise LaneLostError from error
                except ProcessingError as error:
                    return Outcome(entry.digest, entry.video_id, error=str(error))

            lanes: list[Lane] = [partial(run, actor) for _ in range(calls) for actor in actors]
            yield from outcomes_of_lanes(longest_first(entries), lanes)
        finally:
            cluster.close()


def _run_on_engine(entry: Entry, options: BatchOptions) -> Outcome:
    return run_entry(entry, options, engine_of_process().run)


def _for_workers(entry: Entry) -> Entry:
    """The same video by a name that does not depend on where a process runs."""
    path = Path(entry.video)
    return replace(entry, video=str(path.absolute())) if path.is_file() else entry


class ModalExecutor:
    """An :class:`~caption_extents.batch.Executor` on Modal: each video is a call of the job's function.

    The store's credentials are the app's secrets, so they are not among the options that are sent.

    Args:
        jobs: videos at once.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Generator[Outcome]:
        """See the protocol."""
        if "://" not in str(options.get("store")):
            raise InputError(f"Modal cannot reach the store {options.get('store')!r}; give the URL of one")
        function = find_function(JOB_FUNCTION)

        def run(entry: Entry) -> Outcome:
            if entry.crop is None:
                error = "Modal is not given files of this machine, in which the crop could be found; give it"
                return Outcome(entry.digest, entry.video_id, error=error)
            try:
                result = function.remote(
                    entry.video, entry.tenant, entry.video_id, list(entry.crop), entry.rate, **options
                )
            except Exception as error:
                return Outcome(entry.digest, entry.video_id, error=f"{type(error).__name__}: {error}")
            return Outcome.of(entry, result)

        yield from outcomes_of_lanes(entries, [run] * self._jobs)
