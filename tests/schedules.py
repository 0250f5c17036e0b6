"""Real code under a scheduler: processes whose every request to a store is a step, on a clock that only they move.

Each simulated process is a greenlet, and each of its threads another one. They run one at a time, and only at requests
and sleeps does another get its turn, so a schedule is repeatable. A plan says at which request of which process
something happens: the whole process stands still for longer than any lease, gives way, is killed, or its request fails
or loses its answer. Without a plan a process runs until it sleeps.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, cast

from greenlet import getcurrent, greenlet
from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

PAUSE, YIELD, KILL, ERROR, OUTAGE, LOST, ODD = "pause", "yield", "kill", "error", "outage", "lost", "odd"
KINDS = (PAUSE, YIELD, KILL, ERROR, OUTAGE, LOST, ODD)
"""What can happen at a request.

``pause``: the process stops before it, for longer than any lease. ``yield``: others go first, while no time passes.
``error``: it fails once. ``outage``: all that the process asks for fails for a while. ``lost``: it is done, and the
answer is lost. ``odd``: it fails with an error that no client expects there.
"""

Plan = dict[tuple[str, int], str]
"""What happens, by process and number of its request."""

_MOST_STEPS = 20_000
_EPOCH = 1_700_000_000.0
_REQUEST_SECONDS = 0.002
_OUTAGE_SECONDS = 1.5
_PAUSE_SECONDS = 40.0
"""Longer than any lease, and shorter than anybody waits for a lock."""


class Killed(BaseException):
    """Ends a task of a process that was killed, wherever it is; what it does on its way out has no effect."""


class Violation(AssertionError):  # noqa: N818
    """Something that must never be."""


@dataclass
class Process:
    """A simulated process.

    Attributes:
        name: unique.
        steps: requests that it has made.
        trace: what they were.
        disturbed: something was planned for it that excuses a failure.
        result, error: how its main task ended.
    """

    name: str
    steps: int = 0
    trace: list[tuple[str, str]] = field(default_factory=list)
    dead: bool = False
    disturbed: bool = False
    paused_until: float | None = None
    cut_off_until: float = 0.0
    tasks: list[Task] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None

    files: list[Any] = field(default_factory=list)
    """Open ones; their locks go with the process."""

    def die(self) -> None:
        self.dead = True
        for file in self.files:
            with suppress(ValueError, OSError):
                file.raw.close()

    @property
    def is_over(self) -> bool:
        return self.dead or self.tasks[0].done


class Task(greenlet):
    """A thread of a process."""

    def __init__(self, simulation: Simulation, process: Process, function: Callable[[], Any]) -> None:
        super().__init__(self._work, simulation.hub)
        self.process, self.function = process, function
        self.wake_at: float | None = None
        self.ready: Callable[[], bool] = lambda: True
        self.done = False
        self.error: BaseException | None = None
        process.tasks.append(self)

    def _work(self) -> None:
        try:
            self.process.result = self.function()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.done = True


class Simulation:
    """A clock, processes and a plan of what happens to them."""

    def __init__(self, plan: Plan, failure: type[Exception] = GenericError) -> None:
        self.plan, self.failure = plan, failure
        self.now = _EPOCH
        self.hub = getcurrent()
        self.processes: list[Process] = []
        self.steps = 0
        self._order: list[Process] = []

    def start(self, name: str, function: Callable[[], Any]) -> Process:
        """A process that runs a function."""
        process = Process(name)
        self.processes.append(process)
        self._order.append(process)
        Task(self, process, function)
        return process

    def run(self) -> None:
        """Run all processes to their end."""
        while not all(process.is_over for process in self.processes):
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise Violation("never ends: " + ", ".join(p.name for p in self.processes if not p.is_over))
            task = self._next()
            if task is not None:
                task.wake_at, task.ready = None, lambda: True
                task.switch()
        for process in self.processes:
            process.error = process.tasks[0].error

    def _next(self) -> Task | None:
        for process in self._order:
            if process.dead or process.paused_until is not None:
                continue
            for task in process.tasks:
                if not task.done and task.ready():
                    return task
        sleeping = [
            task.wake_at
            for process in self._order
            if not process.dead and process.paused_until is None
            for task in process.tasks
            if not task.done and task.wake_at is not None and task.wake_at > self.now
        ]
        at_work = [p for p in self._order if not p.is_over and p.paused_until is None]
        paused = [p for p in self._order if not p.dead and p.paused_until is not None]
        first = min(paused, key=lambda process: process.paused_until or 0.0, default=None)
        if first is not None and (not at_work or (first.paused_until or 0.0) <= min([self.now, *sleeping])):
            first.paused_until = None
            return None
        times = [*sleeping, *(p.paused_until for p in paused if p.paused_until)]
        if not times:
            raise Violation("all wait for each other: " + ", ".join(p.name for p in at_work))
        self.now = max(self.now, min(times))
        return None

    def operation(self, name: str, key: str, apply: Callable[[], Any]) -> Any:
        """A request: what the plan says of it happens, then its effect."""
        task = getcurrent()
        if not isinstance(task, Task):
            return apply()
        process = task.process
        if process.dead:
            raise Killed
        process.steps += 1
        process.trace.append((name, key))
        self.now += _REQUEST_SECONDS
        kind = self.plan.get((process.name, process.steps))
        if kind == OUTAGE:
            process.cut_off_until = self.now + _OUTAGE_SECONDS
        if self.now < process.cut_off_until:
            raise self.failure("planned: nothing answers")
        if kind is None:
            return apply()
        process.disturbed |= kind in {PAUSE, KILL}
        if kind == KILL:
            process.die()
            self.hub.switch()
            raise Killed
        if kind == PAUSE:
            process.paused_until = self.now + _PAUSE_SECONDS
            self.hub.switch()
        elif kind == YIELD:
            self._order.remove(process)
            self._order.append(process)
            self.hub.switch()
        elif kind == ERROR:
            raise self.failure("planned: the request failed")
        elif kind == ODD and name in {"list", "put", "create"}:
            raise FileNotFoundError("planned: NoSuchBucket")
        done = apply()
        if kind == LOST:
            raise self.failure("planned: the answer was lost")
        return done

    def sleep(self, seconds: float, ready: Callable[[], bool] = lambda: False) -> None:
        """Sleep, or until something is so."""
        task = getcurrent()
        if not isinstance(task, Task):
            self.now += seconds
            return
        if task.process.dead:
            raise Killed
        task.wake_at = self.now + seconds
        wake_at = task.wake_at
        task.ready = lambda: ready() or self.now >= wake_at
        self.hub.switch()
        if task.process.dead:
            raise Killed

    def spawn(self, function: Callable[[], Any]) -> Task:
        """A further thread of the process that asks."""
        task = getcurrent()
        assert isinstance(task, Task)
        return Task(self, task.process, function)

    def end(self) -> None:
        """Let go of all tasks that have not ended."""
        for process in self.processes:
            process.die()
            for task in process.tasks:
                with suppress(Killed, ValueError, OSError):
                    task.throw(Killed)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """``time`` tells and takes the simulation's time."""
        real_sleep, real_monotonic = time.sleep, time.monotonic
        random.seed(1)
        time.sleep, time.monotonic = cast(Any, self.sleep), lambda: self.now
        try:
            yield
        finally:
            time.sleep, time.monotonic = real_sleep, real_monotonic
            self.end()


class SimulatedEvent:
    """As :class:`threading.Event`."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation, self._set = simulation, False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float) -> bool:
        if not self._set:
            self._simulation.sleep(timeout, self.is_set)
        return self._set


class SimulatedLock:
    """As :class:`threading.Lock`, and as a lock that the system takes from a process that dies."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._holder: Any = None

    def __enter__(self) -> None:
        since, task = self._simulation.now, getcurrent()
        while not self._is_free():
            self._simulation.sleep(1e3, self._is_free)
        if isinstance(task, Task) and self._simulation.now - since > _PAUSE_SECONDS / 2:
            task.process.disturbed = True  # it has stood still with the one that kept the lock
        self._holder = task

    def __exit__(self, *_: object) -> None:
        self._holder = None

    def _is_free(self) -> bool:
        return self._holder is None or (isinstance(self._holder, Task) and self._holder.process.dead)


class SimulatedThread:
    """As :class:`threading.Thread`."""

    def __init__(self, simulation: Simulation, target: Callable[[], Any]) -> None:
        self._simulation, self._target = simulation, target
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._simulation.spawn(self._target)

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        if task is not None and task is not getcurrent():
            self._simulation.sleep(timeout or 1e6, lambda: task.done)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done


@dataclass(frozen=True)
class Object:
    """An object of a simulated store."""

    data: bytes
    e_tag: str
    modified: float


class SimulatedStore:
    """Takes the place of ``obstore`` and of its store: each function is a step of the simulation.

    Modification times are whole seconds, as in S3.

    Args:
        simulation: whose steps they are.
        conditional: whether it honours conditional writes.
        on_change: called before an object is written or removed, with its key and its new data or None.
    """

    def __init__(
        self,
        simulation: Simulation,
        conditional: bool = True,
        on_change: Callable[[str, bytes | None], None] = lambda key, data: None,
    ) -> None:
        self.simulation, self.conditional, self.on_change = simulation, conditional, on_change
        self.objects: dict[str, Object] = {}

    # obstore's functions, which take the store first.

    def put(self, _: object, key: str, data: bytes, *, mode: Any = "overwrite", **__: Any) -> dict[str, Any]:
        return self._step("put" if mode == "overwrite" else "create", key, lambda: self._put(key, data, mode))

    def get(self, _: object, key: str, **__: Any) -> Any:
        return self._step("get", key, lambda: self._get(key))

    def head(self, _: object, key: str) -> dict[str, Any]:
        return self._step("head", key, lambda: self._facts(key, self._find(key)))

    def delete(self, _: object, key: str) -> None:
        self._step("delete", key, lambda: self._remove(key))

    def list(self, _: object, prefix: str = "") -> Any:
        return self._step("list", prefix, lambda: [[self._facts(k, o) for k, o in self._below(prefix)]])

    def list_with_delimiter(self, _: object, prefix: str = "") -> dict[str, Any]:
        def folders() -> dict[str, Any]:
            found = {prefix + key.removeprefix(prefix).partition("/")[0] for key, _ in self._below(prefix)}
            return {"common_prefixes": sorted(found)}

        return self._step("list", prefix, folders)

    def copy(self, _: object, source: str, target: str, **__: Any) -> None:
        self._step("copy", target, lambda: self._put(target, self._find(source).data, "overwrite"))

    def _step(self, name: str, key: str, apply: Callable[[], Any]) -> Any:
        return self.simulation.operation(name, key, apply)

    def _find(self, key: str) -> Object:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def _below(self, prefix: str) -> Sequence[tuple[str, Object]]:
        return [(key, found) for key, found in sorted(self.objects.items()) if key.startswith(prefix)]

    def _get(self, key: str) -> Any:
        found = self._find(key)
        return SimpleNamespace(bytes=lambda: found.data, meta=self._facts(key, found))

    @staticmethod
    def _facts(key: str, found: Object) -> dict[str, Any]:
        modified = datetime.fromtimestamp(int(found.modified), UTC)
        return {
            "path": key,
            "size": len(found.data),
            "e_tag": found.e_tag,
            "version": None,
            "last_modified": modified,
        }

    def _put(self, key: str, data: bytes, mode: Any) -> dict[str, Any]:
        there = self.objects.get(key)
        if self.conditional and mode == "create" and there is not None:
            raise AlreadyExistsError(key)
        if self.conditional and isinstance(mode, dict) and (there is None or there.e_tag != mode["e_tag"]):
            raise PreconditionError(key)
        self.on_change(key, data)
        # As S3 gives it: of the content, so that the same content has the same tag again.
        self.objects[key] = Object(bytes(data), hashlib.md5(data).hexdigest(), self.simulation.now)
        return {"e_tag": self.objects[key].e_tag, "version": None}

    def _remove(self, key: str) -> None:
        self._find(key)
        self.on_change(key, None)
        del self.objects[key]


class SteppedPath(PosixPath):
    """A path of a real folder; what is done with it and can matter to others is a step of the simulation."""

    world: Any = None
    """Simulation, root and a function for changes; set for a class of each simulation."""

    def _step(self, name: str, apply: Callable[[], Any]) -> Any:
        return self.world.simulation.operation(name, self.name, apply)

    def _change(self, data: bytes | None) -> None:
        if "#" not in self.name:
            self.world.on_change(self.relative_to(self.world.root).as_posix(), data)

    def open(self, *arguments: Any, **options: Any) -> Any:
        file = self._step("open", lambda: PosixPath(self).open(*arguments, **options))
        task = getcurrent()
        if isinstance(task, Task):
            task.process.files.append(file)
        return file

    def read_bytes(self) -> bytes:
        return self._step("read", lambda: PosixPath(self).read_bytes())

    def unlink(self, missing_ok: bool = False) -> None:
        def unlink() -> None:
            found = PosixPath(self)
            if found.exists():
                self._change(None)
            found.unlink(missing_ok)

        self._step("unlink", unlink)

    def rmdir(self) -> None:
        self._step("rmdir", lambda: PosixPath(self).rmdir())

    def mkdir(self, *arguments: Any, **options: Any) -> None:
        self._step("mkdir", lambda: PosixPath(self).mkdir(*arguments, **options))

    def replace(self, target: Any) -> Any:
        return target._placed("rename", self, PosixPath(self).replace)

    def rename(self, target: Any) -> Any:
        return target._placed("rename", self, PosixPath(self).rename)

    def hardlink_to(self, target: Any) -> None:
        if not self.world.links:
            raise PermissionError(errno.EPERM, "planned: no hard links")
        self._placed("link", target, lambda _: PosixPath(self).hardlink_to(target))

    def _placed(self, name: str, source: Path, apply: Callable[[PosixPath], Any]) -> Any:
        """Give a file this name, by a function."""

        def place() -> Any:
            there, here = PosixPath(source), PosixPath(self)
            if there.exists() and not (name == "link" and here.exists()):
                self._change(there.read_bytes())
            apply(here)
            now = self.world.simulation.now
            os.utime(here, (now, now))

        return self._step(name, place)
