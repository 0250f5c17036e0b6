"""Processing many videos: running a job for each entry, and recording the outcomes.

Each outcome is appended to a journal file, so that the next run skips the entries that are done. An entry that has
changed, or that is run with another store or preset, counts as a new entry.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from caption_extents.entries import BatchOptions, Entry
from caption_extents.errors import InputError, OutputError, ProcessingError
from caption_extents.job.api import run_job
from caption_extents.options import Job

if TYPE_CHECKING:
    from caption_extents.job.result import CropInferResult

_RESULT_OPTIONS = ("model", "refine", "partial", "max_undecodable_share")
"""Options, in addition to store and preset, that change the result of a job."""
_MOST_DEATHS = 3
"""Processes in which an entry may die."""


def _options_digest(options: BatchOptions) -> str:
    """Digest of the store and of all options that change results; an entry is done only for the same digest."""
    shared = [str(options.get("store")), options.get("preset", Job.preset)]
    # Other options are included only if they are given, so that journals of earlier versions stay valid.
    shared += [
        f"{name}={options[name]}"
        for name in _RESULT_OPTIONS
        if options.get(name) is not None and options[name] is not False
    ]
    return hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one entry.

    Attributes:
        digest: :attr:`Entry.digest` of the entry.
        video_id: video id of the entry.
        error: error message if the job failed; None if it succeeded.
        seconds: wall time of the job.
        samples, captions, version: number of samples, number of captions and version number of the result.
        video_seconds: duration of the video.
        cost: cost at the configured price; None without a price.
        may_succeed_again: whether it failed in a stage, and not because of its input.
        size: of the video in bytes, if it is a file of this machine: another size is another video.
    """

    digest: str
    video_id: str
    error: str | None = None
    seconds: float = 0.0
    samples: int = 0
    captions: int = 0
    version: int = 0
    video_seconds: float = 0.0
    cost: float | None = None
    may_succeed_again: bool = False
    size: int | None = None

    @classmethod
    def of(cls, entry: Entry, result: dict[str, Any]) -> Outcome:
        """The outcome of an entry whose job succeeded; ``result`` is :meth:`CropInferResult.to_dict`."""
        return cls(
            digest=entry.digest,
            video_id=entry.video_id,
            seconds=result["processing_duration_seconds"],
            samples=result["frame_count"],
            captions=result["caption_count"],
            version=result["version"],
            video_seconds=float(result["frame_count"] / entry.rate),
            cost=result["metrics"]["cost"]["money"],
        )


class Journal:
    """The outcomes of a list's entries in a JSON lines file; lines truncated by a killed process are ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def done(self, what_for: str) -> dict[str, Outcome]:
        """Outcomes of the entries that succeeded with the same store and options (see :func:`_options_digest`).

        They are by the digests of the entries, each the newest.
        """
        if not self._path.exists():
            return {}
        outcomes = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                noted = json.loads(line)
                if noted.pop("what_for") == what_for and noted["error"] is None:
                    outcomes[noted["digest"]] = Outcome(**noted)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return outcomes

    def add(self, outcome: Outcome, what_for: str) -> None:
        """Append the outcome of an entry."""
        # If a killed process or a full disk left a truncated last line, start a new line first.
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._cut_off() + json.dumps({**asdict(outcome), "what_for": what_for}) + "\n")
        except OSError as error:
            raise OutputError(
                f"could not note in {str(self._path)!r} that {outcome.video_id!r} is over: {error.strerror or error}. "
                "Free some space, or choose another place with --journal, and give the command again"
            ) from error

    def _cut_off(self) -> bool:
        if not self._path.exists() or self._path.stat().st_size == 0:
            return False
        with self._path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"


_RESOURCES = {"cpu": "cores", "encoders": "encoders", "decoders": "GPU's decoders", "gpu": "GPU's kernels"}


def run_entry(entry: Entry, options: BatchOptions, run: Callable[[Job], CropInferResult] = run_job) -> Outcome:
    """Run the job of an entry; errors of the job are returned in the outcome, not raised."""
    started = time.perf_counter()
    try:
        found = entry if entry.crop is not None else replace(entry, crop=_look_for_crop(entry))
        result = run(found.job(options))
    except (InputError, ProcessingError) as error:
        seconds, again = time.perf_counter() - started, isinstance(error, ProcessingError)
        return Outcome(entry.digest, entry.video_id, error=str(error), seconds=seconds, may_succeed_again=again)
    return Outcome.of(entry, result.to_dict())


_looking = Lock()


def _look_for_crop(entry: Entry) -> tuple[float, float, float, float]:
    """Where captions stand; one video at a time, because each takes all cores."""
    from caption_extents.bands import suggest_crop

    path = entry.file
    if path is None:
        raise InputError(
            f"there is no file {entry.video!r} here, in which the crop could be found; correct its path, or give its "
            "crop"
        )
    with _looking:
        return suggest_crop(path)[0][0].region.as_tuple()


class Executor(Protocol):
    """Runs the jobs of entries: on this machine, on Ray or on Modal."""

    def outcomes(self, entries: list[Entry], options: BatchOptions) -> Generator[Outcome]:
        """Run all entries, and yield each outcome when its job ends, in order of completion."""
        ...


class LaneLostError(Exception):
    """The process that an entry ran in is gone, for a reason that may be another entry; a new one takes its place."""


Lane: TypeAlias = Callable[[Entry], Outcome]
"""Runs one entry after the other, beside other lanes."""


def outcomes_of_lanes(entries: Iterable[Entry], lanes: Sequence[Lane]) -> Iterator[Outcome]:
    """Run all entries, each in whichever lane is free first, and yield each outcome when it is known.

    An entry that failed in a stage is tried once more at the end. Entries whose process died are tried again at the
    end, and those whose process died twice a third time, each while nothing else runs: which of those that it took
    along made it die is not known.
    """
    work = _Work(entries)
    outcomes: SimpleQueue[Outcome | BaseException] = SimpleQueue()

    def serve(lane: Lane) -> None:
        try:
            while (trial := work.take()) is not None:
                outcome: Outcome | None
                try:
                    outcome = lane(trial.entry)
                except LaneLostError:
                    outcome = work.lost(trial)
                except Exception as error:
                    text = f"{type(error).__name__}: {error}"
                    outcome = Outcome(trial.entry.digest, trial.entry.video_id, error=text)
                if outcome is not None and not work.done(trial, outcome):
                    outcomes.put(outcome)
        except BaseException as error:
            outcomes.put(error)

    threads = [Thread(target=serve, args=(lane,), name=f"lane-{n}", daemon=True) for n, lane in enumerate(lanes)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(work.count):
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        work.stop()


@dataclass
class _Trial:
    """An entry that is to be run.

    Attributes:
        entry: the entry.
        deaths: of processes in which it ran.
        is_last: whether an error of its job counts.
    """

    entry: Entry
    deaths: int = 0
    is_last: bool = False


class _Work:
    """The entries that are left, for several lanes."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._left = deque(_Trial(entry) for entry in entries)
        self.count = len(self._left)
        self._alone: list[_Trial] = []
        """Those that are run while nothing else does."""
        self._running = 0
        self._changed = Condition()

    def take(self) -> _Trial | None:
        """The next one, when there is one; None when there is nothing left."""
        with self._changed:
            while not self._left and (self._running or self._alone):
                if self._alone and not self._running:
                    self._left.append(self._alone.pop())
                else:
                    self._changed.wait()
            if not self._left:
                return None
            self._running += 1
            return self._left.popleft()

    def lost(self, trial: _Trial) -> Outcome | None:
        """Its process has died; the outcome, if that has happened too often."""
        trial.deaths += 1
        if trial.deaths == _MOST_DEATHS:
            error = "the process that did it died, again and again"
            return Outcome(trial.entry.digest, trial.entry.video_id, error=error)
        with self._changed:
            (self._left if trial.deaths == 1 else self._alone).append(trial)
        self._end()
        return None

    def done(self, trial: _Trial, outcome: Outcome) -> bool:
        """It has an outcome; whether it is tried again all the same."""
        again = outcome.may_succeed_again and not trial.is_last
        if again:
            trial.is_last = True
            with self._changed:
                self._left.append(trial)
        self._end()
        return again

    def stop(self) -> None:
        """Begin nothing any more."""
        with self._changed:
            self._left.clear()
            self._alone.clear()
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


def _size(entry: Entry) -> int | None:
    """Of its file in bytes; None if it is none of this machine."""
    try:
        return entry.file.stat().st_size if entry.file is not None else None
    except OSError:  # it is gone since
        return None


def longest_first(entries: Iterable[Entry]) -> list[Entry]:
    """Entries whose files are here, the largest first, and then the others; so that no lane ends long after others."""
    return sorted(entries, key=lambda entry: _size(entry) or 0, reverse=True)


@dataclass
class Summary:
    """Totals of a batch.

    Attributes:
        done, failed, skipped: number of entries that succeeded, that failed, and that an earlier run had done.
        seconds: wall time of the batch.
        video_seconds: total duration of the videos processed by this batch.
        cost: total cost of these videos; None without a price.
        reasons: error messages of failed entries, by video id.
        busy: how busy each resource of each engine was; see :class:`~caption_extents.engine.EngineMetrics`. Empty for
            engines on other machines.
    """

    done: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    video_seconds: float = 0.0
    cost: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    busy: list[dict[str, float]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        if outcome.error is not None:
            self.failed += 1
            self.reasons[outcome.video_id] = outcome.error
            return
        self.done += 1
        self.video_seconds += outcome.video_seconds
        if outcome.cost is not None:
            self.cost = (self.cost or 0.0) + outcome.cost

    def __str__(self) -> str:
        lines = [f"{self.done} done, {self.failed} failed, {self.skipped} done before"]
        if self.done and self.seconds:
            lines[0] += (
                f"; {self.video_seconds / 60:.1f} minutes of video in {self.seconds:.1f} s, "
                f"{self.video_seconds / self.seconds:.1f} times as fast as they play"
            )
        for shares in self.busy:
            told = ", ".join(f"{_RESOURCES[name]} {share:.0%}" for name, share in shares.items())
            lines.append(f"busy: {told}")
        if self.cost is not None:
            lines.append(f"cost {self.cost:.4f}")
        lines += [f"failed: {video_id}: {reason}" for video_id, reason in sorted(self.reasons.items())]
        return "\n".join(lines)


def missing_first(entries: list[Entry], journal: Journal, options: BatchOptions) -> list[tuple[Entry, Outcome | None]]:
    """The entries, and what came of each that an earlier run has done; those that it has not come first."""
    before = journal.done(_options_digest(options))

    def earlier(entry: Entry) -> Outcome | None:
        outcome = before.get(entry.digest)
        if outcome is None or outcome.size is None:
            return outcome
        return outcome if _size(entry) in {None, outcome.size} else None

    return sorted(((entry, earlier(entry)) for entry in entries), key=lambda one: one[1] is not None)


def run_batch(
    entries: list[Entry],
    journal: Journal,
    executor: Executor,
    options: BatchOptions,
    tell: Callable[[Outcome], None] = lambda outcome: None,
    tell_earlier: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Run all entries of a list that are not done yet.

    Args:
        entries: all entries of the list.
        journal: outcomes of earlier runs; new outcomes are appended.
        executor: runs the jobs.
        options: options that all jobs share.
        tell: called with each outcome when its job ends.
        tell_earlier: called, before any job is started, with the outcome of each entry that an earlier run has done.

    Raises:
        InputError: an option or an entry cannot be used; no job has been started.
        OutputError: an outcome could not be written to the journal.
    """
    started = time.perf_counter()
    for entry in entries:
        entry.job(options)  # all are checked before any is started
    what_for = _options_digest(options)
    missing = []
    for entry, earlier in missing_first(entries, journal, options):
        if earlier is None:
            missing.append(entry)
        else:
            tell_earlier(earlier)
    sizes = {entry.digest: _size(entry) for entry in missing}
    summary = Summary(skipped=len(entries) - len(missing))
    with closing(executor.outcomes(missing, options)) as outcomes:
        for outcome in outcomes:
            journal.add(replace(outcome, size=sizes.get(outcome.digest)), what_for)
            summary.add(outcome)
            tell(outcome)
    summary.seconds = time.perf_counter() - started
    summary.busy = list(getattr(executor, "busy", ()))
    return summary
