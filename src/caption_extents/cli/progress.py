"""Progress of a run on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from caption_extents.pipeline.clocks import Progress

_LINE_SECONDS = 5.0


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """Show what the callback is told, until the block is left."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as update:
            yield update
    else:
        yield _Lines(console)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description:<10}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with rich.Progress(*columns, console=console, transient=True) as bars:

        def update(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total)
            bars.update(tasks[progress.stage], completed=progress.done)

        yield update


class _Lines:
    """One line for all stages, every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done: dict[str, str] = {}
        self._next = time.monotonic() + _LINE_SECONDS
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._done[progress.stage] = f"{progress.stage} {100 * progress.done // progress.total}%"
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _LINE_SECONDS
                self._console.print(", ".join(self._done.values()), highlight=False)


@contextmanager
def progress_of(stage: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of an operation outside of a run; yields a callback that takes the done and the total count."""
    from caption_extents.pipeline.clocks import Progress

    if quiet:
        yield lambda done, total: None
        return
    with progress_display() as show:
        yield lambda done, total: show(Progress(stage, done, max(1, total)))
