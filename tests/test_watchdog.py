"""Whatever waits for foreign code comes to an end: it is woken, or given up, and the process ends."""

from __future__ import annotations

import ctypes
import platform
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

import caption_extents
from caption_extents import CropRegion
from caption_extents.bands import suggest_crop
from caption_extents.children import Channel, Child
from caption_extents.encoders import base as encoders
from caption_extents.errors import StallError
from caption_extents.job import run as runs
from caption_extents.ocr import captions as ocr_captions
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import list_versions
from caption_extents.video import demux
from caption_extents.video.decoders import cpu
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess
from caption_extents.video.info import probe
from caption_extents.video.timeline import build_timeline
from caption_extents.watchdog import Watchdog, report_progress
from tests.media import Recipe, make_video

KEYS = VideoKeys("t1", "v1")
IMPLEMENTATIONS = ("pipelined", "sequential")
linux = pytest.mark.skipif(sys.platform != "linux", reason="threads of a process are found in /proc")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(Recipe("long", pts=tuple(range(400))), tmp_path_factory.mktemp("watched"))


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set when the test is over, so that what hangs for ever in it does not."""
    event = threading.Event()
    yield event
    event.set()


def run(video: Path, store: Path, **options: Any) -> caption_extents.CropInferResult:
    return caption_extents.crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", CropRegion(0, 0, 1, 1), store=store, lease_seconds=1.0, **options
    )


def test_progress_renews_the_limit() -> None:
    def work() -> str:
        for _ in range(8):
            time.sleep(0.2)
            report_progress()
        return "done"

    assert Watchdog(0.6).call("working", work) == "done"


def test_what_waits_for_its_consumer_is_not_still() -> None:
    iterator = iter(Watchdog(0.4).items("items", iter(range(3))))
    assert next(iterator) == 0
    time.sleep(1.5)
    assert list(iterator) == [1, 2]


def test_what_gives_no_sign_of_life_is_given_up(over: threading.Event) -> None:
    started = time.monotonic()
    with pytest.raises(StallError, match=r"reading 'film' gave no sign of life for 0\.5 s"):
        Watchdog(0.5).call("reading 'film'", lambda: over.wait(60))
    assert time.monotonic() - started < 5


def _wait_for_a_futex() -> int:
    """As a condition waits (``FUTEX_WAIT`` for a value that never changes)."""
    number = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
    if number is None:
        pytest.skip("the number of the system call is not known")
    word = ctypes.c_int(0)
    found: int = ctypes.CDLL(None).syscall(number, ctypes.byref(word), 0, 0, None)
    return found


@linux
@pytest.mark.parametrize("wait", [ctypes.CDLL(None).pause, _wait_for_a_futex], ids=["pause", "futex"])
def test_a_thread_that_has_missed_its_wake_up_is_woken(wait: Callable[[], int]) -> None:
    """Both return when their thread has handled a signal; a condition is then looked at again."""
    started = time.monotonic()
    assert Watchdog(4.0).call("waiting", wait) == -1
    assert 1.5 < time.monotonic() - started < 4


@linux
@pytest.mark.undisturbed
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_run_whose_decoder_has_missed_its_wake_up_goes_on(
    implementation: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, count = demux.decode_or_skip, 0

    def sleeping(packet: Any) -> Any:
        nonlocal count
        count += 1
        if count == 100:
            ctypes.CDLL(None).pause()
        return decode(packet)

    monkeypatch.setattr(cpu, "decode_or_skip", sleeping)
    assert run(video, tmp_path / "s", implementation=implementation, stall_seconds=6.0, device="cpu").frame_count == 134


def _hang(over: threading.Event) -> Any:
    def hang(*_: Any, **__: Any) -> Any:
        over.wait(120)
        raise OSError("over")

    return hang


@pytest.mark.undisturbed
@pytest.mark.parametrize(
    ("where", "implementation"),
    [(where, "pipelined") for where in ("index", "decode", "close", "encode", "refine")] + [("encode", "sequential")],
)
def test_a_run_fails_when_something_hangs_and_the_next_goes_on(
    where: str,
    implementation: str,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    over: threading.Event,
) -> None:
    hang, started = _hang(over), time.monotonic()
    with monkeypatch.context() as patch:
        if where == "index":
            patch.setattr("caption_extents.video.video.build_timeline", hang)
        elif where == "decode":
            patch.setattr(cpu, "decode_or_skip", hang)
        elif where == "close":
            patch.setattr(cpu.CpuDecoder, "close", hang)
        elif where == "encode":
            patch.setattr(encoders, "encode_chunk", hang)
        else:
            patch.setattr(runs, "refine_captions", hang)
        with pytest.raises(StallError, match=r"no sign of life for 1\.5 s") as caught:
            run(video, tmp_path / "s", implementation=implementation, stall_seconds=1.5, refine=True, device="cpu")
    named = {
        "index": "opening '",
        "decode": "decoding",
        "close": "closing the dec",
        "encode": "encoding",
        "refine": "refi",
    }
    assert str(caught.value).startswith(named[where])
    assert time.monotonic() - started < 60
    assert "complete" not in {state.state for state in list_versions(open_store(tmp_path / "s"), KEYS)}
    over.set()
    assert run(video, tmp_path / "s", implementation=implementation, device="cpu").version == 1


def test_looking_for_a_crop_and_reading_text_are_watched(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: threading.Event
) -> None:
    monkeypatch.setattr("caption_extents.bands.Watchdog", lambda: Watchdog(1.0))
    monkeypatch.setattr(ocr_captions, "Watchdog", lambda: Watchdog(1.0))
    with pytest.raises(StallError, match="looking for text in"):
        suggest_crop(video, _hang(over))
    run(video, tmp_path / "s", device="cpu")
    monkeypatch.setattr(ocr_captions, "_to_read", lambda _: {0: (0, 5)})
    monkeypatch.setattr(ocr_captions, "caption_picture", lambda *_: None)
    reader: Any = SimpleNamespace(read=_hang(over))
    with pytest.raises(StallError, match="reading the captions' text"):
        ocr_captions.store_texts(open_store(tmp_path / "s"), KEYS, reader, 1)


_PROGRAM = """
import sys, time, threading
from pathlib import Path
import tests.test_watchdog as here
from caption_extents import cli
from caption_extents.encoders import base as encoders
from caption_extents.video import demux
from caption_extents.video.decoders import cpu
target, name = {target}
setattr(target, name, lambda *_, **__: threading.Event().wait())
sys.argv = ["caption-extents", "run", {video!r}, "--crop", "0,0,1,1", "--store", {store!r}, "--stall-seconds", "1.5",
            "--device", "cpu", "--quiet"]
cli.main()
"""


@pytest.mark.undisturbed
@pytest.mark.parametrize("target", ['cpu, "decode_or_skip"', 'encoders, "encode_chunk"'])
def test_the_command_ends_though_its_threads_do_not(target: str, video: Path, tmp_path: Path) -> None:
    program = _PROGRAM.format(target=target, video=str(video), store=str(tmp_path / "s"))
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "gave no sign of life for 1.5 s" in done.stderr
    assert "Traceback" not in done.stderr


def slow_avi(path: Path, frames: int = 400) -> Path:
    """A video that must be decoded to be indexed, which takes a while."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        noise = [np.random.default_rng(k).integers(0, 255, (1080, 1280), dtype=np.uint8) for k in range(3)]
        pictures = [av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in noise]
        for index in range(frames):
            pictures[index % 3].pts = index
            container.mux(stream.encode(pictures[index % 3]))
        container.mux(stream.encode(None))
    return path


@pytest.mark.undisturbed
def test_indexing_in_a_process_of_its_own_shows_life(tmp_path: Path) -> None:
    path, started = slow_avi(tmp_path / "long.avi"), time.monotonic()
    build_timeline(probe(path), Fraction(10))
    took = time.monotonic() - started
    # Below, a sign of life in each half of the limit is a matter of luck.
    limit = max(0.8, took / 2)
    if took < limit:
        pytest.skip("this machine is too quick for the test's video")
    with VideoReaderProcess(path, Fraction(10), DecoderLimits(stall_seconds=limit)) as child:
        assert len(child.timeline) == 160


def test_bytes_that_keep_coming_renew_the_limit() -> None:
    (here, there), memory = socket.socketpair(), tempfile.TemporaryFile()  # noqa: SIM115
    child = object.__new__(Child)
    child.stall_seconds, child.channels = 0.5, [Channel(here, memory)]

    def drip() -> None:
        text = b"{}"
        for byte in struct.pack("<II", len(text), 0) + text:
            there.sendall(bytes([byte]))
            time.sleep(0.15)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with closing(child.channels[0]), closing(there):
        assert child.receive() == ({}, [])
        dripping.join()


_TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
process, seized = int(sys.argv[1]), set()
while os.path.exists(f"/proc/{process}") and not seized:
    for thread in os.listdir(f"/proc/{process}/task"):
        try:
            name = open(f"/proc/{process}/task/{thread}/comm").read()
        except OSError:
            continue
        if name.startswith("av:h264") and libc.ptrace(SEIZE, int(thread), 0, 0) == 0:
            libc.ptrace(INTERRUPT, int(thread), 0, 0)
            seized.add(thread)
    time.sleep(0.001)
print(len(seized), flush=True)
while seized:
    try:
        os.waitpid(-1, WALL)
    except ChildProcessError:
        break
"""


@linux
@pytest.mark.undisturbed
def test_a_decoder_whose_thread_is_stopped_is_given_up(tmp_path: Path) -> None:
    """As a debugger stops a thread: it takes no signal, and ends only with its process."""
    film = make_video(Recipe("film", pts=tuple(range(900)), width=320, height=180), tmp_path)
    arguments = ["run", str(film), "--crop", "0,0.8,1,1", "--store", str(tmp_path / "s"), "--stall-seconds", "3"]
    command = [sys.executable, "-m", "caption_extents", *arguments, "--decode-threads", "4", "--device", "cpu"]
    with subprocess.Popen([*command, "--quiet"], stderr=subprocess.PIPE, text=True) as job:
        tracer = subprocess.run(
            [sys.executable, "-c", _TRACER, str(job.pid)], check=False, capture_output=True, text=True, timeout=120
        )
        _, errors = job.communicate(timeout=60)
    if tracer.stdout.strip() == "0":
        pytest.skip("this user may not trace, or the decoder's threads have other names")
    assert job.returncode == 1, errors
    assert "decoding gave no sign of life for 3 s" in errors


def test_a_thread_that_nobody_waits_for_ends_with_its_next_progress() -> None:
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                report_progress()
                yield 1
        finally:
            ended.set()

    iterator = iter(Watchdog(5.0).items("items", endless()))
    assert next(iterator) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert ended.wait(2.0)


def _heed_interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_an_index_that_takes_long(tmp_path: Path) -> None:
    film = slow_avi(tmp_path / "long.avi", frames=500)
    command = [sys.executable, "-m", "caption_extents", "run", str(film), "--crop", "0,0.8,1,1", "--quiet"]
    command += ["--store", str(tmp_path / "s")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts) as job:
        deadline = time.monotonic() + 60
        # Its file is open when it is being indexed.
        while not _has_open(job.pid, film) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        interrupted = time.monotonic()
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=60)
    assert time.monotonic() - interrupted < 8
    assert job.returncode == 130, errors
    assert errors == "caption-extents: interrupted; the same command goes on with the chunks that are stored\n"


def _has_open(process_id: int, path: Path) -> bool:
    try:
        return path in {file.readlink() for file in Path(f"/proc/{process_id}/fd").iterdir()}
    except OSError:
        return False


_FAILS = """
import threading, time
from pathlib import Path
from caption_extents import CropRegion, crop_and_infer_caption_frame_extents
from caption_extents.errors import EncodeError
from caption_extents.encoders import base as encoders
calls = []
def encode(*_, **__):
    calls.append(1)
    if len(calls) == 1:
        threading.Event().wait()
    time.sleep(0.3)
    raise EncodeError("planted")
encoders.encode_chunk = encode
if __name__ == "__main__":
    try:
        crop_and_infer_caption_frame_extents({video!r}, "t1", "v1", CropRegion(0, 0, 1, 1), store={store!r},
                                             device="cpu", stall_seconds=3.0)
    except EncodeError as error:
        print("failed:", error)
"""


@pytest.mark.undisturbed
def test_a_failure_beside_something_that_hangs_ends_the_run(video: Path, tmp_path: Path) -> None:
    program = _FAILS.format(video=str(video), store=str(tmp_path / "s"))
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=90)
    assert "failed: planted" in done.stdout, done.stderr


def test_a_stall_that_is_over_does_not_end_its_process(tmp_path: Path) -> None:
    program = """
import threading, time
from caption_extents.errors import StallError
from caption_extents.watchdog import Watchdog
event = threading.Event()
try:
    Watchdog(0.5).call("waiting", event.wait)
except StallError:
    event.set()
threading.Thread(target=lambda: (time.sleep(7), print("important work done"))).start()
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "important work done\n"), done.stderr
