"""Ray: encoding offloaded to a cluster of processes, lists of videos, and what happens when processes die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from caption_extents import CropRegion
from caption_extents.errors import ProcessingError
from tests.media import Recipe, make_video
from tests.models import QuickModel
from tests.test_batch import CROP, batch, write_list
from tests.test_pipeline import files, outcome
from tests.test_pipeline import run as run_with

pytest.importorskip("ray")

pytestmark = pytest.mark.undisturbed

REGION = CropRegion(0, 0.2, 1, 1)
OPTIONS: dict[str, Any] = {"model": QuickModel(), "frame_rate": 30.0, "encoder_workers": 2}

TO_BE_KILLED = """
import sys
from tests.test_ray import REGION, OPTIONS, run_with
run_with(sys.argv[1], sys.argv[2], REGION, **OPTIONS, encoder="ray")
"""


@pytest.fixture(autouse=True)
def a_home_that_can_be_written(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps a folder there."""
    if not os.access(Path.home(), os.W_OK):
        monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,600 samples at 30 a second: four segments."""
    recipe = Recipe("long", pts=tuple(range(1600)), options={"preset": "ultrafast"})
    return make_video(recipe, tmp_path_factory.mktemp("video"))


@pytest.fixture(autouse=True)
def _no_processes_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while (left := ray_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def ray_processes(name: str = "") -> list[psutil.Process]:
    """Descendants of this process that belong to a cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if ("ray" in command or "raylet" in process.name()) and name in f"{process.name()} {command}":
                found.append(process)
        except psutil.Error:
            continue
    return found


def run(video: Path, store: Path, **options: Any) -> Any:
    return run_with(video, store, REGION, **{**OPTIONS, **options})


def when_running(name: str, act: Callable[[psutil.Process], None]) -> threading.Thread:
    """Do something to the first process of a cluster that does a task of this name."""

    def watch() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            for process in ray_processes(name):
                act(process)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_worker_that_is_killed_changes_nothing(video: Path, tmp_path: Path) -> None:
    here = run(video, tmp_path / "here")
    killed: list[int] = []

    def kill(process: psutil.Process) -> None:
        killed.append(process.pid)
        process.kill()

    killer = when_running("ray::run_encode_task", kill)
    there = run(video, tmp_path / "there", encoder="ray")
    killer.join()
    assert killed
    assert outcome(there, tmp_path / "there") == outcome(here, tmp_path / "here")
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert there.metrics.offload.worker_count == 2


def test_a_cluster_that_is_gone_fails_the_run_clearly(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray hopes for its head to come back for a minute otherwise.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")

    def kill(_: psutil.Process) -> None:
        for process in [*ray_processes("gcs_server"), *ray_processes("raylet/raylet")]:
            process.kill()

    killer = when_running("ray::run_encode_task", kill)
    started = time.monotonic()
    with pytest.raises(ProcessingError, match=r"cluster .* is gone|Ray could not"):
        run(video, tmp_path, encoder="ray")
    killer.join()
    assert time.monotonic() - started < 120
    assert not [name for name in files(tmp_path) if "temporary" in name]
    assert run(video, tmp_path, lease_seconds=1.0).version == 1


def test_a_run_that_is_killed_is_finished_by_the_next(video: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", TO_BE_KILLED, str(video), str(store)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while not [name for name in files(store) if "temporary" in name] and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert [name for name in files(store) if "temporary" in name]
    again = run(video, store, encoder="ray", lease_seconds=1.0)
    here = run(video, tmp_path / "here")
    assert outcome(again, store) == outcome(here, tmp_path / "here")
    assert files(store) == files(tmp_path / "here")


def test_a_cluster_that_does_not_answer(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ProcessingError, match=r"no Ray cluster can be used at 127\.0\.0\.1:1"):
        run(video, tmp_path, encoder="ray")
    assert not [name for name in files(tmp_path) if "temporary" in name]


def test_twenty_videos_of_which_two_fail(tmp_path: Path) -> None:
    videos = [make_video(Recipe(f"video {n}", pts=tuple(range(30 + n))), tmp_path) for n in range(18)]
    broken, missing = tmp_path / "broken.mp4", tmp_path / "comes-later.mp4"
    broken.write_bytes(b"no video")
    rows = [*((video, CROP) for video in videos), (broken, CROP), (missing, CROP)]
    options = (write_list(tmp_path / "list.csv", rows), "--store", tmp_path / "store", "--on", "ray")
    code, output = batch(*options)
    assert code == 1, output
    assert "18 done, 2 failed, 0 done before" in output
    assert "failed: broken: cannot open" in output
    assert "failed: comes-later: there is no video" in output
    missing.write_bytes(videos[0].read_bytes())
    code, output = batch(*options)
    assert code == 1
    assert "1 done, 1 failed, 18 done before" in output
    assert len(list((tmp_path / "store").rglob("manifest.json"))) == 19
