"""This version against another one: ``python -m benchmarks.versions OTHER/src [--minutes 60]``.

Ten videos of different codecs are run by both: chunks must be equal byte for byte, and manifests and databases but for
what names a run, its time and the package, and for facts that only one of them notes. Then both alternate on one video,
and the ratio of their times is printed.
The other version is a checkout's ``src`` (``git worktree add ../other COMMIT``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av

from benchmarks.common import CACHE, CROP, captioned_video, repeated_video, write_result
from caption_extents.results.database import open_database
from caption_extents.training import sample_video

HERE = Path(__file__).parent.parent / "src"
_SECONDS = 12

_X265 = {"preset": "veryfast", "x265-params": "log-level=none:pools=none"}

KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "h264.mp4": ("libx264", "yuv420p", "mp4", {"preset": "veryfast"}),
    "h264.ts": ("libx264", "yuv420p", "mpegts", {"preset": "veryfast", "g": "30"}),
    "h264-422.mkv": ("libx264", "yuv422p", "matroska", {"preset": "veryfast"}),
    "hevc.mkv": ("libx265", "yuv420p", "matroska", _X265),
    "hevc-10.mp4": (
        "libx265",
        "yuv420p10le",
        "mp4",
        {"preset": "veryfast", "x265-params": "log-level=none:pools=none"},
    ),
    "vp8.webm": ("libvpx", "yuv420p", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "av1.mp4": ("libsvtav1", "yuv420p", "mp4", {"preset": "12"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", "avi", {"q": "3"}),
    "mpeg2.ts": ("mpeg2video", "yuv420p", "mpegts", {"q": "3"}),
}
"""Encoder, pixel format, container and options of each video."""

_OF_A_RUN = {"run_id", "started_at", "completed_at", "processing_time_seconds", "metrics", "package_version"}


def make_videos(folder: Path) -> list[Path]:
    """One film with captions in all kinds."""
    film = folder / "film.mp4"
    sample_video.render(film, seconds=_SECONDS, seed=5, width=640, height=360)
    return [_transcode(film, folder / name) for name in KINDS]


def _transcode(film: Path, target: Path) -> Path:
    encoder, pixels, container, options = KINDS[target.name]
    with av.open(str(film)) as source, av.open(str(target), "w", format=container) as out:
        original = source.streams.video[0]
        stream = out.add_stream(encoder, rate=original.average_rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = original.width, original.height, pixels
        for frame in source.decode(original):
            out.mux(stream.encode(frame.reformat(format=pixels)))
        out.mux(stream.encode(None))
    return target


def run(source: Path, video: Path, store: Path, options: list[str]) -> dict[str, Any]:
    """A run of a version, in a process of its own; its result."""
    command = [sys.executable, "-m", "caption_extents", "run", str(video), "--crop", CROP, "--store", str(store)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, "--json", *options], env=environment, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def content(store: Path) -> dict[str, object]:
    """Everything that a run has stored for readers, but for what differs between two runs."""
    found: dict[str, object] = {}
    for path in sorted(store.rglob("*")):
        key = str(path.relative_to(store))
        if path.suffix == ".webm":
            found[key] = path.read_bytes()
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_bytes())
            found[key] = {name: value for name, value in manifest.items() if name not in _OF_A_RUN}
        elif path.name.endswith(".db.gz"):
            database = open_database(path.read_bytes())
            for table in ("pair_results", "captions"):
                found[f"{key} {table}"] = [tuple(row) for row in database.execute(f"SELECT * FROM {table}")]
            metadata = dict(database.execute("SELECT * FROM run_metadata").fetchone())
            found[f"{key} metadata"] = {name: value for name, value in metadata.items() if name not in _OF_A_RUN}
    return found


def _same(one: object, two: object) -> bool:
    """Whether two values are equal; of records, what both versions know of."""
    if isinstance(one, dict) and isinstance(two, dict):
        return all(_same(one[name], two[name]) for name in one.keys() & two.keys())
    return one == two


def compare_outputs(other: Path, options: list[str], but: list[str]) -> list[dict[str, Any]]:
    """Run both on all kinds of video but for some; what was compared of each.

    Raises:
        SystemExit: something differs; names it.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for video in make_videos(Path(name)):
            if video.stem in but:
                continue
            stores = [Path(name) / f"{video.name}-{number}" for number in range(2)]
            results = [run(source, video, store, options) for source, store in zip((HERE, other), stores, strict=True)]
            one, two = map(content, stores)
            differing = [key for key in one.keys() | two.keys() if not _same(one.get(key), two.get(key))]
            if differing:
                raise SystemExit(f"{video.name}: these differ: {sorted(differing)}")
            chunks = sum(key.endswith(".webm") for key in one)
            rows.append({"video": video.name, "decoder": results[0]["decoder"], "chunks": chunks, "objects": len(one)})
            print(f"{video.name}: {chunks} chunks, manifest and database equal ({rows[-1]['decoder']})", flush=True)
    return rows


def compare_speed(other: Path, video: Path, repeats: int, options: list[str]) -> dict[str, Any]:
    """Both in turn on one video: seconds of each run, and of the whole command."""
    seconds: dict[str, list[float]] = {"this": [], "other": [], "this command": [], "other command": []}
    for _ in range(repeats):
        for name, source in (("this", HERE), ("other", other)):
            with tempfile.TemporaryDirectory() as store:
                started = time.perf_counter()
                result = run(source, video, Path(store), options)
                seconds[f"{name} command"].append(time.perf_counter() - started)
                seconds[name].append(result["metrics"]["total_seconds"])
                print(f"{name}: {seconds[name][-1]:.2f} s, command {seconds[f'{name} command'][-1]:.2f} s", flush=True)
    ratios = {
        kind: statistics.median(seconds[f"this{kind}"]) / statistics.median(seconds[f"other{kind}"])
        for kind in ("", " command")
    }
    print(f"this over other, medians of {repeats}: run {ratios['']:.3f}, command {ratios[' command']:.3f}")
    return {"video": video.name, "seconds": seconds, "run_ratio": ratios[""], "command_ratio": ratios[" command"]}


def _check_that_it_is_run(source: Path) -> None:
    """Raise SystemExit where another installation would be compared."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", "import caption_extents; print(caption_extents.__file__)"]
    found = Path(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    if source not in found.parents:
        raise SystemExit(f"{found} would be run, and not what is in {source}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the src folder of another version")
    parser.add_argument("--minutes", type=float, default=1, help="length of the video for the times; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--but", nargs="+", default=[], help="videos that are known to differ, as hevc-10")
    parser.add_argument("--no-outputs", action="store_true", help="only compare times")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments, options = parser.parse_known_args()
    other, result = arguments.other.absolute(), dict[str, Any]()
    _check_that_it_is_run(other)
    if not arguments.no_outputs:
        result["outputs"] = compare_outputs(other, options, arguments.but)
    if arguments.minutes:
        CACHE.mkdir(exist_ok=True)
        video = repeated_video(captioned_video(1), arguments.minutes)
        result["speed"] = compare_speed(other, video, arguments.repeats, options)
    if arguments.save:
        print("written to", write_result("versions", result))


if __name__ == "__main__":
    main()
