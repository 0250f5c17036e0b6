"""A list of videos in a distant store: ``python -m benchmarks.distant [--videos 8] [--seconds 30]``.

Runs ``caption-extents batch`` over keys of an S3 server of this machine, once as it is, and once through a proxy that
delays what passes by ``--delay`` seconds in each direction and passes at most ``--gigabits`` a second; alternating with
the same list as local files. Where the next videos are fetched while others are worked on, all take as long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import CROP, captioned_video, write_result
from caption_extents.storage.store import open_store
from tests.servers import BUCKET, Server, free_port, seaweedfs

_CHUNK_BYTES = 1 << 16
_MOST_CHUNKS = 4096


class _Link:
    """One direction of all connections: as many bytes a second, each as much later."""

    def __init__(self, delay: float, bytes_per_second: float) -> None:
        self._delay, self._rate = delay, bytes_per_second
        self._free_at = 0.0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, until nothing more does."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_CHUNKS)

        async def send() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        sending = asyncio.ensure_future(send())
        while True:
            data = await reader.read(_CHUNK_BYTES)
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + len(data) / self._rate
            await under_way.put((self._free_at + self._delay, data))
            if not data:
                await sending
                return


def _serve(port: int, target: int, delay: float, bytes_per_second: float) -> None:
    there, back = _Link(delay, bytes_per_second), _Link(delay, bytes_per_second)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(
            there.pump(reader, upstream_writer), back.pump(upstream_reader, writer), return_exceptions=True
        )

    async def run() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def distant(server: Server, delay: float, gigabits: float) -> Iterator[Server]:
    """The same server, farther away."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(port, server.port, delay, gigabits * 1e9 / 8), daemon=True
    )
    process.start()
    try:
        yield Server(port)
    finally:
        process.kill()


def run_batch(videos: list[str], store: str, environment: dict[str, str]) -> float:
    """Seconds of a batch."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "list.csv"
        lines = [f'{video},"{CROP}",video-{number}' for number, video in enumerate(videos)]
        listed.write_text("\n".join(["video,crop,video_id", *lines]))
        command = [sys.executable, "-m", "caption_extents", "batch", str(listed), "--store", store, "--json"]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
        )
    return float(json.loads(done.stdout)["seconds"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30, help="of each video")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds in each direction")
    parser.add_argument("--gigabits", type=float, default=1.0, help="a second, in each direction")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    film = captioned_video(arguments.seconds / 60)
    seconds: dict[str, list[float]] = {name: [] for name in ("files here", "near store", "distant store")}
    keys = [f"films/{number}.mp4" for number in range(arguments.videos)]
    with (
        tempfile.TemporaryDirectory() as folder,
        seaweedfs(Path(folder)) as near,
        distant(near, arguments.delay, arguments.gigabits) as far,
    ):
        for repeat in range(arguments.repeats):
            here = f"{folder}/here-{repeat}"
            seconds["files here"].append(_timed("files here", [str(film)] * arguments.videos, here, {}))
            for name, server in (("near store", near), ("distant store", far)):
                store = f"s3://{BUCKET}/{name.replace(' ', '-')}-{repeat}"
                with mock.patch.dict(os.environ, near.environment()):
                    filled = open_store(store)
                    for key in keys:
                        filled.put(key, film.read_bytes(), "video/mp4")
                seconds[name].append(_timed(name, keys, store, server.environment()))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"a distant store takes {medians['distant store'] / medians['files here']:.2f} times as long as files")
    if arguments.save:
        write_result("distant", {**vars(arguments), "bytes": film.stat().st_size, "seconds": medians})


def _timed(name: str, videos: list[str], store: str, environment: dict[str, Any]) -> float:
    seconds = run_batch(videos, store, environment)
    print(f"{name}: {seconds:.2f} s", flush=True)
    return seconds


if __name__ == "__main__":
    main()
