"""Real S3 servers for tests, started once on loopback, and a proxy that spoils their answers."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

BUCKET = "tests"
KEY, SECRET = "TESTACCESSKEY", "testsecretkey0123456789"


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a program needs to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }


def free_port() -> int:
    """A port that is free, with its number plus 10,000, which SeaweedFS takes for gRPC."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if port > 50_000:
                continue
            with suppress(OSError):
                second.bind(("127.0.0.1", port + 10_000))
                return port


def _program(name: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; pip install -c constraints.txt -e '.[dev]' brings it")
    return found


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    store = S3Store(
        BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "2s"},
        retry_config={"max_retries": 0},  # type: ignore[arg-type]
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            obstore.put(store, "ready", b"yes")
            if bytes(obstore.get(store, "ready").bytes()) == b"yes":
                obstore.delete(store, "ready")
                return
        except Exception:
            time.sleep(0.2)
    raise RuntimeError("the server was not ready within a minute")


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """SeaweedFS: conditional creates are race-safe."""
    identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    (folder / "s3.json").write_text(json.dumps({"identities": [{**identity, "actions": actions}]}))
    (folder / "data").mkdir()
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [_program("weed"), f"-logdir={folder}", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-dir={folder / 'data'}", "-master.telemetry=false", "-master.volumeSizeLimitMB=256"]
    command += ["-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-volume.max=40"]
    command += ["-volume.preStopSeconds=0", "-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0"]
    command += ["-s3.port.lance=0", "-s3.autoCreateBucket=true"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    with _running(command, folder / "log", ports["s3"]) as server:
        yield server


@contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    """rclone: ignores conditional writes silently."""
    port = free_port()
    (folder / "data" / BUCKET).mkdir(parents=True)
    command = [_program("rclone"), "serve", "s3", str(folder / "data"), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{KEY},{SECRET}", "--config", str(folder / "none.conf")]
    with _running(command, folder / "log", port) as server:
        yield server


@contextmanager
def _running(command: list[str], log: Path, port: int) -> Iterator[Server]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait_until_ready(process, port)
            yield Server(port)
        finally:
            process.kill()


FAULTS = ("delay", "truncate", "reset", "500", "503", "403", "lose")


class FaultProxy:
    """Passes HTTP requests on to a server, and spoils a share of them.

    ``delay`` answers late, ``truncate`` cuts the answer off, ``reset`` drops the connection before the request gets
    through, ``500``, ``503`` (SlowDown) and ``403`` answer without asking the server, and ``lose`` lets the request
    succeed and drops the answer.
    """

    def __init__(self, target: Server, share: float, faults: tuple[str, ...] = FAULTS, seed: int = 1) -> None:
        self.share = share
        self.counts: Counter[str] = Counter()
        self._faults, self._target, self._random = faults, target, random.Random(seed)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy")

    def __enter__(self) -> Server:
        self._thread.start()
        self._ready.wait(10)
        return Server(self._port)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self._port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one_request(reader, writer):
                pass
        writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_message(reader)
        spoiled = self._random.random() < self.share
        fault = self._random.choice(self._faults) if spoiled else "none"
        self.counts[fault] += 1
        if fault == "reset":
            return False
        if fault in {"500", "503", "403"}:
            code = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}[fault]
            body = f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
            writer.write(f"HTTP/1.1 {fault} {code}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return True
        if fault == "delay":
            await asyncio.sleep(1.0)
        answer = await self._ask(request)
        if fault == "lose":
            return False
        if fault == "truncate":
            writer.write(answer[: max(1, len(answer) * 2 // 3)])
            await writer.drain()
            return False
        writer.write(answer)
        await writer.drain()
        return True

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        # One request for each connection: the answer's end is then known whatever its form.
        head, _, body = request.partition(b"\r\n\r\n")
        method = head.split(b" ", 1)[0]
        writer.write(head + b"\r\n\r\n" + body)
        await writer.drain()
        answer = await _read_message(reader, bodiless=method == b"HEAD")
        writer.close()
        return answer


async def _read_message(reader: asyncio.StreamReader, bodiless: bool = False) -> bytes:
    """One HTTP message with its body, by content-length or in chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    }
    if bodiless:
        return head
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)
            if size == 0:
                return head + body
    return head + await reader.readexactly(int(headers.get(b"content-length", b"0")))


@contextmanager
def seaweedfs_elsewhere(folder: Path) -> Iterator[Server]:
    """SeaweedFS, started and awaited by another process: this one stays without threads, and can be forked."""
    command = [sys.executable, "-m", "tests.servers", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    with seaweedfs(Path(sys.argv[1])) as running:
        print(running.port, flush=True)
        sys.stdin.read()
