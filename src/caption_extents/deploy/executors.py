"""Executors that run the videos of a list on a Ray cluster or with the deployed Modal app."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from caption_extents.batch import BatchOptions, Entry, Outcome, run_entry
from caption_extents.encoders.modal_settings import JOB_FUNCTION
from caption_extents.encoders.modal_workers import find_function
from caption_extents.encoders.ray_cluster import RayCluster, Resources
from caption_extents.errors import InputError, ProcessingError


class RayExecutor:
    """An :class:`~caption_extents.batch.Executor` on a Ray cluster.

    Args:
        cpus: of each video's job; jobs take a GPU each where the cluster has GPUs.
    """

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Iterator[Outcome]:
        """See the protocol."""
        cluster = RayCluster()
        try:
            needs = Resources(min(self._cpus, cluster.resources.cpus), gpus=1.0 if cluster.resources.gpus >= 1 else 0.0)
            futures = {cluster.submit(run_entry, _for_workers(e), options, needs=needs): e for e in entries}
            for future in as_completed(futures):
                entry = futures[future]
                try:
                    yield replace(future.result(), digest=entry.digest)
                except ProcessingError as error:
                    yield Outcome(entry.digest, entry.video_id, error=str(error))
        finally:
            cluster.close()


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

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Iterator[Outcome]:
        """See the protocol."""
        if "://" not in str(options.get("store")):
            raise InputError(f"Modal cannot reach the store {options.get('store')!r}; give the URL of one")
        function = find_function(JOB_FUNCTION)

        def run(entry: Entry) -> Outcome:
            try:
                result = function.remote(
                    entry.video, entry.tenant, entry.video_id, list(entry.crop), entry.rate, **options
                )
            except Exception as error:
                return Outcome(entry.digest, entry.video_id, error=f"{type(error).__name__}: {error}")
            return Outcome.of(entry, result)

        calls = ThreadPoolExecutor(self._jobs, "modal")
        try:
            for future in as_completed([calls.submit(run, entry) for entry in entries]):
                yield future.result()
        finally:
            # When it is interrupted, what has not begun does not begin.
            calls.shutdown(wait=False, cancel_futures=True)
