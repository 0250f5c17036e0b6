"""Calls of the deployed Modal app's functions: encoding tasks of a job, and whole jobs of a list."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from typing import Any

from caption_extents.batch import BatchOptions, Entry, Outcome
from caption_extents.deploy.modal_settings import ENCODE_FUNCTION, JOB_FUNCTION, ModalSettings
from caption_extents.errors import CaptionExtentsError, InputError, ProcessingError
from caption_extents.pipeline.offload import MAX_IN_FLIGHT, EncodeReport, EncodeTask


class ModalEncoderWorkers:
    """:class:`~caption_extents.pipeline.offload.EncoderWorkers` on Modal, which starts as many as there are tasks.

    Args:
        count: how many are counted on, for the metrics.

    Raises:
        InputError: Modal is not installed.
        ProcessingError: the app is not deployed, or Modal cannot be reached.
    """

    name = "modal"

    def __init__(self, count: int) -> None:
        self.count = count
        self._function = _find_function(ENCODE_FUNCTION)
        self._calls: dict[Any, None] = {}
        self._lock = threading.Lock()
        self._waiters = ThreadPoolExecutor(MAX_IN_FLIGHT, "modal")

    def submit(self, task: EncodeTask) -> Future[EncodeReport]:
        """See the protocol."""
        return self._waiters.submit(self._call, task)

    def close(self) -> None:
        """See the protocol."""
        self._waiters.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            calls, self._calls = list(self._calls), {}
        for call in calls:
            call.cancel()

    def _call(self, task: EncodeTask) -> EncodeReport:
        try:
            call = self._function.spawn(task)
            with self._lock:
                self._calls[call] = None
            report: EncodeReport = call.get()
        except CaptionExtentsError:
            raise
        except Exception as error:
            raise ProcessingError(f"a Modal worker failed: {type(error).__name__}: {error}") from error
        with self._lock:
            self._calls.pop(call, None)
        return report


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
        function = _find_function(JOB_FUNCTION)

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


def _find_function(name: str) -> Any:
    if find_spec("modal") is None:
        raise InputError("Modal is not installed; install it with: pip install 'caption-extents[modal]'")
    import modal

    settings = ModalSettings.from_environment()
    function: Any = modal.Function.from_name(settings.app_name, name)
    try:
        function.hydrate()
    except Exception as error:
        raise ProcessingError(
            f"the Modal app {settings.app_name!r} cannot be used ({type(error).__name__}: {error}); deploy it "
            "with: modal deploy -m caption_extents.deploy.modal_app"
        ) from error
    return function
