"""Encoding tasks as calls of the deployed Modal app's function."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from caption_extents.encoders.modal_settings import ENCODE_FUNCTION, ModalSettings
from caption_extents.encoders.tasks import MAX_IN_FLIGHT, EncodeResult, EncodeTask
from caption_extents.errors import CaptionExtentsError, InputError, ProcessingError


class ModalEncoderWorkers:
    """:class:`~caption_extents.encoders.tasks.EncoderWorkers` on Modal, which scales the number of containers itself.

    Args:
        count: number of workers that the metrics assume.

    Raises:
        InputError: Modal is not installed.
        ProcessingError: the app is not deployed, or Modal cannot be reached.
    """

    name = "modal"

    def __init__(self, count: int) -> None:
        self.count = count
        self._function = find_function(ENCODE_FUNCTION)
        self._calls: dict[Any, None] = {}
        self._lock = threading.Lock()
        self._waiters = ThreadPoolExecutor(MAX_IN_FLIGHT, "modal")

    def submit(self, task: EncodeTask) -> Future[EncodeResult]:
        """See the protocol."""
        return self._waiters.submit(self._call, task)

    def close(self) -> None:
        """See the protocol."""
        self._waiters.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            calls, self._calls = list(self._calls), {}
        for call in calls:
            call.cancel()

    def _call(self, task: EncodeTask) -> EncodeResult:
        try:
            call = self._function.spawn(task)
            with self._lock:
                self._calls[call] = None
            report: EncodeResult = call.get()
        except CaptionExtentsError:
            raise
        except Exception as error:
            raise ProcessingError(f"a Modal worker failed: {type(error).__name__}: {error}") from error
        with self._lock:
            self._calls.pop(call, None)
        return report


def find_function(name: str) -> Any:
    """A function of the deployed app.

    Raises:
        InputError: Modal is not installed.
        ProcessingError: the app is not deployed, or Modal cannot be reached.
    """
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
