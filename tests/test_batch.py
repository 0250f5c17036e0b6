"""Many videos from one list, and what differs between two versions of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pysubs2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import caption_extents
from caption_extents import CropRegion
from caption_extents.batch import (
    Journal,
    LaneLostError,
    Outcome,
    longest_first,
    outcomes_of_lanes,
    run_batch,
    run_entry,
)
from caption_extents.cli import app
from caption_extents.compare import compare_versions, read_version
from caption_extents.deploy import local
from caption_extents.deploy.local import LocalExecutor
from caption_extents.entries import BatchOptions, Entry, read_list
from caption_extents.errors import InputError
from caption_extents.job import ahead
from caption_extents.spawning import READER, ChildKind
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.training import sample_video
from tests.films import make_film
from tests.media import Recipe, make_video
from tests.test_pipeline import _heed_interrupts

CROP = "0,0.2,1,1"
REGION = CropRegion(0, 0.2, 1, 1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(Recipe(f"video {n}", pts=tuple(range(30 + n))), folder) for n in range(5)]


def write_list(path: Path, rows: list[tuple[object, ...]]) -> Path:
    path.write_text("video,crop\n" + "".join(f'"{video}","{crop}"\n' for video, crop in rows))
    return path


def batch(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["batch", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_list_with_two_failures_is_finished_by_the_next_run(videos: list[Path], tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.mp4", tmp_path / "comes-later.mp4"
    broken.write_bytes(b"no video")
    rows = [*((video, CROP) for video in videos), (broken, CROP), (missing, CROP)]
    options = (write_list(tmp_path / "list.csv", rows), "--store", tmp_path / "store", "--jobs", 2)
    code, output = batch(*options)
    assert code == 1, output
    assert "5 done, 2 failed, 0 done before" in output
    assert "failed: broken: cannot open" in output
    assert "failed: comes-later: there is no video" in output
    missing.write_bytes(videos[0].read_bytes())
    code, output = batch(*options)
    assert code == 1
    assert "1 done, 1 failed, 5 done before" in output
    broken.write_bytes(videos[1].read_bytes())
    assert batch(*options)[0] == 0
    code, output = batch(*options, "--json")
    assert code == 0
    assert json.loads(output)["skipped"] == 7
    assert len(list((tmp_path / "store").rglob("manifest.json"))) == 7


def test_an_entry_whose_line_changed_is_done_again(tmp_path: Path) -> None:
    one, other = (Entry("a.mp4", crop, "a", "t", 10.0) for crop in ((0, 0, 1, 1), (0, 0.5, 1, 1)))
    done: list[str] = []

    class Recording:
        def outcomes(self, entries: list[Entry], options: BatchOptions) -> Generator[Outcome]:
            for entry in entries:
                done.append(entry.digest)
                yield Outcome(entry.digest, entry.video_id, samples=10, video_seconds=1.0, cost=0.5)

    journal = Journal(tmp_path / "journal")
    for entries in ([one], [one], [other]):
        summary = run_batch(entries, journal, Recording(), {})
    assert done == [one.digest, other.digest]
    assert summary.cost == 0.5


def test_another_store_or_preset_is_another_run(tmp_path: Path) -> None:
    entry = Entry("a.mp4", (0, 0, 1, 1), "a", "t", 10.0)

    class Counting:
        count = 0

        def outcomes(self, entries: list[Entry], options: BatchOptions) -> Generator[Outcome]:
            self.count += len(entries)
            return (Outcome(entry.digest, entry.video_id) for entry in entries)

    counting, journal = Counting(), Journal(tmp_path / "journal")
    for options in ({"store": "one"}, {"store": "two"}, {"store": "one", "preset": "reference"}, {"store": "one"}):
        run_batch([entry], journal, counting, options)
    assert counting.count == 3


def test_a_journal_that_was_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(Outcome("a", "a"), "here")
    journal.add(Outcome("b", "b"), "elsewhere")
    with (tmp_path / "journal").open("a") as file:
        file.write('{"digest": "b", "vid')
    journal.add(Outcome("c", "c"), "here")
    journal.add(Outcome("d", "d", error="no"), "here")
    assert set(journal.done("here")) == {"a", "c"}


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    rows = [{"video": "x/a b.mp4", "crop": [0, 0.5, 1, 1], "rate": 5}, {"video": "c.mkv", "crop": "0,0,1,1"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    first, second = read_list(path, "team")
    assert first == Entry("x/a b.mp4", (0, 0.5, 1, 1), "a-b", "team", 5.0)
    assert second.rate == 10.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "header"),
        ("video,crop\n", "is empty"),
        ('film,crop\na.mp4,"0,0,1,1"\n', "columns video and crop"),
        ('video,crop\na.mp4,"0,0,1"\n', "line 2"),
        ("video,crop\na.mp4,\n", "line 2.*no crop"),
        ('video,crop,rate\na.mp4,"0,0,1,1",fast\n', "line 2.*fast"),
        ('video,crop,colour\na.mp4,"0,0,1,1",red\n', "unknown column 'colour'"),
        ('video,crop\na.mp4,"0,0,1,1"\nb/a.mkv,"0,0,1,1"\n', "line 3.*'a' of an earlier line"),
    ],
)
def test_lists_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_list(path, "t")


class Deadly:
    """A model whose process ends when it is used, as it would by a crash in native code."""

    version = digest = "deadly"

    @property
    def device(self) -> None:
        os._exit(3)

    def embed(self, *planes: object) -> None:
        """Never called."""


def test_a_process_that_dies_is_an_outcome(videos: list[Path], tmp_path: Path) -> None:
    entries = [Entry(str(video), REGION.as_tuple(), f"v{n}", "t", 10.0) for n, video in enumerate(videos[:2])]
    outcomes = list(LocalExecutor(2).outcomes(entries, {"store": tmp_path / "store", "model": Deadly()}))
    assert {outcome.video_id: outcome.error for outcome in outcomes} == {
        f"v{n}": "the process that did it died, again and again" for n in range(2)
    }
    assert run_entry(entries[0], {"store": tmp_path / "store"}).error is None


class Lanes:
    """Lanes in which entries die or fail as often as it was planned, and the greatest number that ran at once."""

    def __init__(self, deaths: dict[str, int], failures: dict[str, int]) -> None:
        self._deaths, self._failures = dict(deaths), dict(failures)
        self._lock = threading.Lock()
        self._running = set[str]()
        self.tries: list[str] = []
        self.beside: dict[str, list[int]] = {}

    def lane(self, entry: Entry) -> Outcome:
        name = entry.video_id
        with self._lock:
            self._running.add(name)
            self.tries.append(name)
        time.sleep(0.002)
        with self._lock:
            self.beside.setdefault(name, []).append(len(self._running) - 1)
            self._running.remove(name)
            if self._deaths.get(name, 0):
                self._deaths[name] -= 1
                raise LaneLostError
            if self._failures.get(name, 0):
                self._failures[name] -= 1
                return Outcome(entry.digest, name, error="a stage failed", may_succeed_again=True)
        return Outcome(entry.digest, name)


def entries_of(names: str) -> list[Entry]:
    return [Entry(f"{name}.mp4", REGION.as_tuple(), name, "t", Fraction(10)) for name in names]


@settings(max_examples=60, deadline=None)
@given(
    deaths=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 4)),
    failures=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 3)),
    count=st.integers(1, 5),
)
def test_each_entry_has_one_outcome(deaths: dict[str, int], failures: dict[str, int], count: int) -> None:
    lanes = Lanes(deaths, failures)
    outcomes = list(outcomes_of_lanes(entries_of("abcdefgh"), [lanes.lane] * count))
    assert sorted(outcome.video_id for outcome in outcomes) == list("abcdefgh")
    for outcome in outcomes:
        name = outcome.video_id
        if deaths.get(name, 0) >= 3:
            assert outcome.error == "the process that did it died, again and again"
        elif failures.get(name, 0) >= 2:
            assert outcome.error == "a stage failed"
        else:
            assert outcome.error is None
        if deaths.get(name, 0) == 2:
            assert lanes.beside[name][2] == 0, "nothing else runs beside one whose process died twice"


def test_what_fails_in_a_stage_is_tried_again_when_the_others_are_done() -> None:
    lanes = Lanes({}, {"b": 1})
    outcomes = list(outcomes_of_lanes(entries_of("abcd"), [lanes.lane]))
    assert lanes.tries == ["a", "b", "c", "d", "b"]
    assert [outcome.error for outcome in outcomes] == [None] * 4


def test_a_batch_that_is_given_up_begins_nothing_more() -> None:
    lanes = Lanes({}, {})
    outcomes = outcomes_of_lanes(entries_of("abcdefgh"), [lanes.lane] * 2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert len(lanes.tries) <= 4


class FakeEngineProcess:
    """Does every entry at once."""

    lanes = 0

    def run(self, lane: int, entry: Entry) -> Outcome:
        return Outcome(entry.digest, entry.video_id)

    def busy(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("gpus", "jobs", "options", "engines"),
    [
        (0, 0, {}, [(None, 2, 2, 32)]),
        (0, 3, {"device": "cpu"}, [(None, 3, 3, 32)]),
        (1, 0, {}, [(None, 4, 48, 32)]),
        (2, 0, {}, [(0, 4, 48, 16), (1, 4, 48, 16)]),
        (2, 3, {}, [(0, 2, 24, 16), (1, 1, 12, 16)]),
        (2, 1, {}, [(None, 1, 12, 32)]),
        (2, 0, {"device": "cuda:1"}, [(None, 4, 48, 32)]),
        (2, 0, {"encoder_workers": 5}, [(0, 4, 48, 5), (1, 4, 48, 5)]),
        (1, 0, {"store": "s3://bucket"}, [(None, 4, 48, 32)]),
        (0, 0, {"store": "s3://bucket"}, [(None, 2, 4, 32)]),
    ],
)
def test_there_is_an_engine_for_each_gpu(
    gpus: int, jobs: int, options: dict[str, Any], engines: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the only GPU that it sees, videos at once, lanes, and share of the cores for encoding."""
    begun = list[tuple[object, ...]]()

    class Fake(FakeEngineProcess):
        def __init__(
            self,
            options: BatchOptions,
            videos_at_once: int,
            lanes: int,
            samples_mib: int,
            ahead: object,
            gpu: int | None,
        ) -> None:
            self.lanes = lanes
            begun.append((gpu, videos_at_once, lanes, options["encoder_workers"]))

    monkeypatch.setattr(local, "_EngineProcess", Fake)
    monkeypatch.setattr(local, "device_count", lambda: gpus)
    monkeypatch.setattr("caption_extents.options.usable_cores", lambda: 32)
    monkeypatch.setattr(local, "_is_local", lambda entry: True)
    executor = LocalExecutor(jobs)
    assert len(list(executor.outcomes(entries_of("abcdef"), {"store": "folder", **options}))) == 6
    assert begun == engines


@pytest.mark.parametrize(
    ("visible", "names"), [("", ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_an_engine_sees_one_gpu(visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [local._visible(number) for number in range(2)] == names


@pytest.mark.parametrize(("gpus", "count"), [(0, 0), (1, 2)])
def test_what_an_engine_starts_ahead(gpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing without a GPU that works; no more than two videos need; a model that suits any crop."""
    kinds = list[tuple[ChildKind, ...]]()

    class Fake(FakeEngineProcess):
        def __init__(self, options: object, at_once: int, lanes: int, mib: int, started: Any, gpu: object) -> None:
            self.lanes = lanes
            kinds.append(started)

    monkeypatch.setattr(local, "_EngineProcess", Fake)
    monkeypatch.setattr(local, "device_count", lambda: gpus)
    monkeypatch.setattr(ahead, "_GPU_DEVICES", ("/dev/null",))
    first, second = entries_of("ab")
    for entries in ([first, second], [replace(first, crop=(0.1, 0.2, 0.3, 0.4)), second]):
        list(LocalExecutor().outcomes(entries, {"store": "folder"}))
    assert kinds[0] == kinds[1]
    assert sum(kind == READER for kind in kinds[0]) == count
    assert sum(kind.target.endswith("model.process:serve") for kind in kinds[0]) == bool(gpus)


def test_options_that_other_processes_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadly, "__module__", "__main__")
    for model, message in ((Deadly(), "put it into a module of its own"), (lambda: None, "cannot be sent")):
        with pytest.raises(InputError, match=message):
            list(LocalExecutor(1).outcomes(entries_of("a"), {"store": "s", "model": model}))


def test_the_largest_come_first(tmp_path: Path) -> None:
    entries = entries_of("abc")
    for number, entry in enumerate(entries[:2]):
        (tmp_path / entry.video).write_bytes(bytes(10 * number + 1))
    entries = [replace(entry, video=str(tmp_path / entry.video)) for entry in entries]
    assert [entry.video_id for entry in longest_first(entries)] == ["b", "a", "c"]


@pytest.mark.undisturbed
@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGINT, True),
        (signal.SIGINT, False),
        (signal.SIGTERM, True),
        (signal.SIGTERM, False),
        (signal.SIGHUP, False),
        (signal.SIGKILL, False),
    ],
)
def test_a_list_is_ended_with_all_of_its_processes(
    number: signal.Signals, to_all: bool, videos: list[Path], tmp_path: Path
) -> None:
    """Also where only the command itself is told, and not the processes that do the videos."""
    lines = [f'"{videos[0]}","{CROP}",v{n}' for n in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["video,crop,video_id", *lines]))
    store = tmp_path / "store"
    command = [sys.executable, "-m", "caption_extents", "batch", str(tmp_path / "list.csv"), "--store", str(store)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed_interrupts
    ) as process:
        deadline = time.monotonic() + 60
        while not list(store.rglob("manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = psutil.Process(process.pid).children(recursive=True)
        assert processes
        ended = time.monotonic()
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert process.stderr is not None
        message = process.stderr.read().decode()
    assert not alive
    assert time.monotonic() - ended < 10
    assert len(list(store.rglob("manifest.json"))) <= 3
    if not (to_all and number == signal.SIGTERM):
        # What was begun is given back, so that the next run need not wait for a lease to run out.
        assert "running" not in [json.loads(claim.read_text())["state"] for claim in store.rglob("claim.json")]
    if number == signal.SIGKILL:
        return
    assert process.returncode == 128 + number, message
    assert "interrupted; the same command goes on from here" in message
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def two_versions(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("versions")

    def run(region: CropRegion = REGION, **options: str) -> None:
        caption_extents.crop_and_infer_caption_frame_extents(
            str(videos[4]), "local", "v", region, store=store, **options
        )

    run(implementation="sequential")
    run(implementation="pipelined")
    run(preset="reference")
    run(CropRegion(0, 0, 1, 1))
    return store


def compare(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return result.exit_code, result.output


def test_two_implementations_are_identical(two_versions: Path) -> None:
    code, output = compare("v", 1, 2, "--store", two_versions, "--price-per-hour", 3600)
    assert code == 0
    assert output.startswith("identical")
    assert "implementation sequential and pipelined" in output
    assert "cost" in output


def test_another_preset_gives_other_chunks_and_the_same_captions(two_versions: Path) -> None:
    code, output = compare("v", 2, 3, "--store", two_versions, "--json")
    found = json.loads(output)
    assert code == 0
    assert found["same_results"]
    assert not found["identical"]
    assert found["other_chunks"] == found["chunks"] > 0
    assert found["changed"] == {"preset": ["fast", "reference"]}


def test_what_differs_is_counted(two_versions: Path) -> None:
    a = read_version(open_store(two_versions), VideoKeys("local", "v"), 1)
    b = replace(a, labels=("changed", *a.labels[1:]), captions=(*a.captions, (30, 33)))
    found = compare_versions(a, b)
    assert found.other_labels == 1
    assert found.captions_only_b == ((30, 33),)
    assert found.captions_only_a == ()
    assert not found.same_results
    assert "only in B: samples 30 to 33" in str(found)


def test_versions_of_other_crops_are_not_compared(two_versions: Path) -> None:
    code, output = compare("v", 1, 4, "--store", two_versions)
    assert code == 2
    assert "cannot be compared: crop" in output


def test_implementations_are_run_to_be_compared(videos: list[Path], tmp_path: Path) -> None:
    code, output = compare(videos[0], "sequential", "pipelined", "--crop", CROP, "--store", tmp_path / "store")
    assert code == 0, output
    assert output.startswith("identical")
    for wrong in (("v", "1", "pipelined"), ("v", "sequential", "pipelined"), ("v", "7", "8")):
        assert compare(*wrong, "--store", tmp_path / "store")[0] == 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two films with captions that are found, and a file that is none."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(2):
        make_film(folder / f"film {number}.mp4", [(start, start + 40) for start in range(10, 160, 50)])
    (folder / "notes.doc").write_text("not a film")
    return folder


def test_a_folder_gets_subtitles_beside_its_videos(folder: Path, tmp_path: Path) -> None:
    kept = folder / "film 1.srt"
    kept.write_text("mine")
    options = (folder, "--store", tmp_path / "store")
    code, output = batch(*options, "--dry-run")
    assert code == 0
    assert output.count("to do") == 2
    code, output = batch(*options)
    assert code == 0, output
    assert "2 done, 0 failed" in output
    assert len(pysubs2.load(str(folder / "film 0.srt"))) == 3
    assert kept.read_text() == "mine"
    assert "film 1.srt is there already, and is kept; --overwrite" in " ".join(output.split())
    assert sorted(path.name for path in folder.iterdir()) == [
        *("caption-extents.journal", "film 0.mp4", "film 0.srt", "film 1.mp4", "film 1.srt", "notes.doc")
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, output = batch(*options)
    assert code == 0
    assert "0 done, 0 failed, 2 done before" in output
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_is_asked_for_later_is_made_without_doing_a_video_again(folder: Path, tmp_path: Path) -> None:
    crop = ",".join(map(str, sample_video.CROP))
    options = (folder, "--store", tmp_path / "store", "--crop", crop)
    (folder / "film 1.srt").write_text("mine")
    assert batch(*options)[0] == 0
    (folder / "film 0.srt").unlink()
    code, output = batch(*options)
    assert code == 0, output
    assert "0 done, 0 failed, 2 done before" in output
    assert len(pysubs2.load(str(folder / "film 0.srt"))) == 3
    assert (folder / "film 1.srt").read_text() == "mine"
    assert "2 done before" in batch(*options, "--subtitles", "vtt")[1]
    assert len(list(folder.glob("*.vtt"))) == 2
    assert "2 done before" in batch(*options, "--overwrite")[1]
    assert len(pysubs2.load(str(folder / "film 1.srt"))) == 3
    assert len(list((tmp_path / "store").rglob("manifest.json"))) == 2


def test_another_file_of_the_same_name_is_another_video(folder: Path, tmp_path: Path) -> None:
    crop = ",".join(map(str, sample_video.CROP))
    options = (folder, "--store", tmp_path / "store", "--crop", crop, "--subtitles", "none")
    assert batch(*options)[0] == 0
    make_film(folder / "film 0.mp4", [(20, 60)])
    code, output = batch(*options)
    assert code == 0, output
    assert "1 done, 0 failed, 1 done before" in output
    assert "2 done before" in batch(*options)[1]


def test_a_file_may_stand_beside_its_list(folder: Path, tmp_path: Path) -> None:
    written = write_list(folder / "list.csv", [("film 0.mp4", CROP)])
    (entry,) = read_list(written, "t")
    assert entry.video == str(folder / "film 0.mp4")
    assert "no crop; give left, top, right and bottom, or auto" in batch(write_list(written, [("film 0.mp4", "")]))[1]


def test_single_videos_with_a_crop_and_other_subtitles(folder: Path, tmp_path: Path) -> None:
    crop = ",".join(map(str, sample_video.CROP))
    options = ("--store", tmp_path / "store", "--journal", tmp_path / "journal", "--crop", crop)
    code, output = batch(*sorted(folder.glob("*.mp4")), *options, "--subtitles", "vtt")
    assert code == 0, output
    assert len(list(folder.glob("*.vtt"))) == 2
    (folder / "film 0.vtt").write_text("old")
    assert batch(folder / "film 0.mp4", *options, "--subtitles", "none", "--preset", "balanced")[0] == 0
    assert (folder / "film 0.vtt").read_text() == "old"
    again = (folder / "film 0.mp4", *options, "--subtitles", "vtt", "--overwrite", "--preset", "archive")
    assert batch(*again)[0] == 0
    assert (folder / "film 0.vtt").read_text() != "old"


def test_folders_and_lists_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    code, output = batch(tmp_path / "a")
    assert code == 2
    assert "there is no video in" in output
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "film.mp4").write_bytes(b"")
    code, output = batch(tmp_path / "a", tmp_path / "b")
    assert code == 2
    assert "has the video id 'film' of" in " ".join(output.split())
    assert batch(tmp_path / "a", "--subtitles", "doc")[0] == 2
    code, output = batch(tmp_path / "nowhere")
    assert code == 2
    assert "there is no file or folder" in output
    assert not (tmp_path / "nowhere.journal").exists()


def test_a_list_may_leave_the_crop_open(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("video,crop\na.mp4,auto\n")
    (entry,) = read_list(path, "t")
    assert entry.crop is None
    outcome = run_entry(entry, {"store": str(tmp_path / "store")})
    assert outcome.error is not None
    assert "there is no file 'a.mp4' here" in outcome.error
