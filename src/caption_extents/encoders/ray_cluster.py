"""Tasks on a Ray cluster: the cluster of ``RAY_ADDRESS``, or a local one that is started and stopped by this process.

Ray's driver terminates its own process when it loses the cluster, and prints to stdout and stderr. Therefore it runs in
a child process, where a lost cluster becomes an ordinary error of the caller. Functions are pickled by name, so this
package must be installed on the cluster.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from caption_extents import errors
from caption_extents.children import Channel, ChannelError, Child
from caption_extents.encoders.tasks import EncodeResult, EncodeTask, run_encode_task
from caption_extents.errors import CaptionExtentsError, InputError, ProcessingError
from caption_extents.spawning import ChildKind, SpawnedProcess

T = TypeVar("T")

MAX_RETRIES = 3
"""Maximum number of retries of a task whose worker process or machine has died."""

_START_SECONDS = 90.0
_CONNECT_SECONDS = 10.0
_END_SECONDS = 15.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Resources:
    """Numbers of CPU cores and GPUs: those of a cluster, or those that a task or an actor requires."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Actor:
    """A process on the cluster that stays, with resources of its own; it starts with the first call.

    Attributes:
        number: tells it from others of the same connection.
        calls: how many it runs at once.
    """

    number: int
    calls: int = 1


class ActorLostError(ProcessingError):
    """An actor's process has died, with all calls that it was running; the next call starts it anew."""


class RayCluster:
    """A connection to a Ray cluster, established in the background; must be closed.

    Args:
        cpus: cores of the local cluster that is started if ``RAY_ADDRESS`` is not set; 0 for all cores of this machine.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, cpus: int = 0) -> None:
        if find_spec("ray") is None:
            raise InputError("Ray is not installed; install it with: pip install 'caption-extents[ray]'")
        self.address = os.environ.get("RAY_ADDRESS") or "a local cluster"
        # What Ray prints is dropped; errors come as messages.
        self._child = Child(SpawnedProcess(ChildKind(_TARGET, arguments=(str(cpus),), quiet=True), os.environ))
        self._channel = self._child.channels[0]
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._sent = 0
        self._end: ProcessingError | None = None
        self._resources: Future[Resources] = Future()
        self._reader = threading.Thread(target=self._read, name="ray", daemon=True)
        self._reader.start()

    def submit(
        self, function: Callable[..., T], *args: object, needs: Resources, actor: Actor | None = None
    ) -> Future[T]:
        """Run a function of this package on the cluster.

        Args:
            function: a module-level function; it is sent by name.
            args: its arguments, which must be picklable.
            needs: resources that are reserved for the task, or for the actor.
            actor: where it runs; None for a task of its own.

        Returns:
            A future of the result. It raises the package's own errors unchanged, all others as ``ProcessingError``.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._end is not None:
                future.set_exception(self._end)
                return future
            self._sent += 1
            self._pending[self._sent] = future
            # If the connection is lost, the reader thread fails all pending futures, including this one.
            with suppress(ChannelError):
                self._channel.send({}, pickle.dumps((self._sent, function, args, needs, actor)))
        return future

    def close(self) -> None:
        """End the connection, and the cluster if it was started here. Work that is not done is given up."""
        with self._lock, suppress(ChannelError):
            self._channel.send({"end": True})
        # If the child has not connected to a cluster yet, there is nothing to shut down: do not wait.
        deadline = time.monotonic() + (_END_SECONDS if self._resources.done() else 0)
        while not self._child.has_ended and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._child.close()
        self._reader.join()

    @property
    def resources(self) -> Resources:
        """What the cluster has; waits until it answers.

        Raises:
            ProcessingError: no cluster can be used.
        """
        return self._resources.result()

    def _read(self) -> None:
        end = ProcessingError(f"the Ray cluster at {self.address} is gone; start it, and run this again to finish")
        try:
            if not self._channel.wait(_START_SECONDS):
                end = ProcessingError(f"no Ray cluster answers at {self.address} within {_START_SECONDS:.0f} s")
                raise ChannelError("it has not answered")
            greeting, _ = self._child.receive()
            if "refused" in greeting:
                end = ProcessingError(f"no Ray cluster can be used at {self.address}: {greeting['refused']}")
                raise ChannelError("it has refused")
            self._resources.set_result(Resources(greeting["cpus"], greeting["gpus"]))
            while True:
                _, (outcome,) = self._child.receive()
                number, result, error = pickle.loads(bytes(outcome))  # noqa: S301 from this package's own child
                with self._lock:
                    future = self._pending.pop(number)
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
        except Exception:
            # Whatever it was, nothing more comes; what is pending must not wait for ever.
            with self._lock:
                self._end = end
                pending, self._pending = list(self._pending.values()), {}
            for future in [self._resources, *pending]:
                if not future.done():
                    future.set_exception(end)


class RayEncoderWorkers:
    """:class:`~caption_extents.encoders.tasks.EncoderWorkers` on a Ray cluster, a core for each task."""

    name = "ray"

    def __init__(self, count: int) -> None:
        self._cluster = RayCluster(cpus=count)

    @property
    def count(self) -> int:
        """Cores of the cluster."""
        return max(1, int(self._cluster.resources.cpus))

    def submit(self, task: EncodeTask) -> Future[EncodeResult]:
        """See the protocol."""
        return self._cluster.submit(run_encode_task, task, needs=Resources(cpus=1))

    def close(self) -> None:
        """See the protocol."""
        self._cluster.close()


# From here on: the child.

_TARGET = "caption_extents.encoders.ray_cluster:serve"


def serve(channels: list[Channel], cpus: str) -> None:
    """In the child: submit tasks from the parent to Ray and return their results, until the parent or Ray is gone."""
    import ray

    api: Any = ray
    (parent,) = channels
    try:
        # ray.init() reads RAY_ADDRESS itself, and waits for minutes if nothing answers: try to connect first.
        address = os.environ.get("RAY_ADDRESS", "")
        own: dict[str, Any] = {} if address else {"num_cpus": int(cpus) or None}
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        api.init(**own, include_dashboard=False, log_to_driver=False, configure_logging=False)
        total = api.cluster_resources()
    except Exception as error:
        parent.send({"refused": f"{type(error).__name__}: {error}".split("\n")[0]})
        return
    parent.send({"cpus": total.get("CPU", 0.0), "gpus": total.get("GPU", 0.0)})
    _hand_over(api, parent)
    api.shutdown()


class _Caller:
    """What an actor runs."""

    def call(self, function: Callable[..., T], *args: object) -> T:
        return function(*args)


def _hand_over(api: Any, parent: Channel) -> None:
    running: dict[Any, int] = {}
    actors: dict[int, Any] = {}
    while True:
        if parent.wait(_POLL_SECONDS):
            message, payloads = parent.receive()
            if "end" in message:
                return
            # From this package's own parent.
            number, function, args, needs, actor = pickle.loads(bytes(payloads[0]))  # noqa: S301
            resources = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
            if actor is None:
                reference = api.remote(**resources, max_retries=MAX_RETRIES)(function).remote(*args)
            else:
                if actor.number not in actors:
                    kind = api.remote(**resources, max_restarts=-1, max_concurrency=actor.calls)(_Caller)
                    actors[actor.number] = kind.remote()
                reference = actors[actor.number].call.remote(function, *args)
            running[reference] = number
            continue
        ready, _ = api.wait(list(running), num_returns=len(running), timeout=0) if running else ([], [])
        for reference in ready:
            parent.send({}, pickle.dumps((running.pop(reference), *_outcome(api, reference))))


def _outcome(ray: Any, reference: Any) -> tuple[Any, Exception | None]:
    try:
        return ray.get(reference), None
    except ray.exceptions.RayTaskError as error:
        return None, _own_error(error.cause)
    except ray.exceptions.RayActorError:
        return None, ActorLostError("its process died")
    except ray.exceptions.RayError as error:
        return None, ProcessingError(f"Ray could not do it: {str(error).strip().splitlines()[0]}")


def _own_error(cause: Exception) -> Exception:
    if isinstance(cause, CaptionExtentsError):
        # Ray raises a class that derives from the error's and from its own.
        known: type[CaptionExtentsError] = next(c for c in type(cause).__mro__ if c.__module__ == errors.__name__)
        return known(str(cause))
    return ProcessingError(f"a worker failed unexpectedly: {type(cause).__name__}: {cause}")
