"""A local page to choose the region of captions by mouse."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from caption_extents.errors import InputError
from caption_extents.region import CropRegion
from caption_extents.report.html import fill_page

_MAX_BODY_BYTES = 1000
_POLL_SECONDS = 0.2


def choose_region(pictures: Sequence[bytes], region: CropRegion, open_page: Callable[[str], object]) -> CropRegion:
    """Show pictures of a video on a page of this machine, and wait until a region is chosen there.

    The page is served to this machine only, under an address that cannot be guessed.

    Args:
        pictures: JPEG.
        region: to begin with.
        open_page: called with the page's address.
    """
    chosen: queue.Queue[CropRegion] = queue.Queue()
    path = f"/{secrets.token_urlsafe(16)}/"
    page = fill_page("crop_page", {"region": region.as_tuple(), "pictures": len(pictures)}, connect=True)
    handler = _handler(path, page.encode(), pictures, chosen.put)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="crop-page")
        thread.start()
        try:
            open_page(f"http://127.0.0.1:{server.server_port}{path}")
            while True:
                try:
                    return chosen.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    continue
        finally:
            server.shutdown()
            thread.join()


def _handler(
    path: str, page: bytes, pictures: Sequence[bytes], choose: Callable[[CropRegion], None]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            inside = self._inside()
            if inside == "":
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page)
            elif inside in names:
                self._answer(HTTPStatus.OK, "image/jpeg", pictures[names[inside]])
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")

        def do_POST(self) -> None:
            if self._inside() != "region":
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
                return
            try:
                size = int(self.headers.get("Content-Length", "0"))
                if not 0 < size <= _MAX_BODY_BYTES:
                    raise InputError(f"{size} bytes")
                region = CropRegion(*map(float, json.loads(self.rfile.read(size))))
            except (InputError, ValueError, TypeError) as error:
                self.close_connection = True
                self._answer(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", str(error).encode())
                return
            self._answer(HTTPStatus.OK, "text/plain", b"done")
            choose(region)

        def _inside(self) -> str | None:
            """What is asked for below the page's own address; None for anything else, or under another host's name."""
            host = f"127.0.0.1:{cast(ThreadingHTTPServer, self.server).server_port}"
            known = self.headers.get("Host") == host and self.path.startswith(path)
            return self.path.removeprefix(path) if known else None

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

    names = {f"pictures/{number}.jpg": number for number in range(len(pictures))}
    return Handler
