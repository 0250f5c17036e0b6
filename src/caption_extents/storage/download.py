"""Downloading an object to a file that can be read while it is still arriving."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from caption_extents.errors import StoreAccessError
from caption_extents.watchdog import report_progress_for_all

if TYPE_CHECKING:
    from caption_extents.storage.objects import ObjectFacts
    from caption_extents.storage.store import Store

PART_BYTES = 8 << 20
AT_ONCE = 8
_GIVE_UP_SECONDS = 0.5


class Download:
    """Downloads an object in parts, several at once, in order; parts that a reader waits for come first.

    A context manager: it starts the download when it is entered, and aborts it when it is left. If the store does not
    support range requests, the object is fetched as one stream, and readers wait until it is complete.

    Args:
        store: the store that contains the object.
        key: key of the object.
        facts: metadata of the object; the download fails if the object is overwritten in the meantime.
        path: target file; an existing file is overwritten. It has the object's size from the start.
        on_bytes: called with the number of bytes received and the object's size, from any thread.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        facts: ObjectFacts,
        path: Path,
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> None:
        self.path = path
        self._store, self._key, self._facts, self._on_bytes = store, key, facts, on_bytes
        self._size = facts.size_bytes
        starts = range(0, self._size, PART_BYTES)
        self._unasked: dict[int, None] = dict.fromkeys(range(len(starts)))
        self._urgent: list[int] = []
        self._missing = set(self._unasked)
        self._done_bytes = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        with path.open("wb") as file:
            file.truncate(self._size)
        in_parts = len(starts) > 1 and store.answers_ranges(key, facts)
        count, work = (min(AT_ONCE, len(starts)), self._fetch_parts) if in_parts else (1, self._fetch_whole)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name="download", daemon=True) for _ in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort the download. Readers fail, unless the bytes that they wait for have already arrived."""
        with self._changed:
            self._fail(OSError(f"the download of {self._key!r} was given up"))
        for thread in self._threads:
            # A thread whose request hangs is not waited for: it ends with its request, and writes to a deleted file.
            thread.join(timeout=_GIVE_UP_SECONDS)

    def wait(self) -> None:
        """Return when the whole object is in the file.

        Raises:
            StoreAccessError: it cannot be read, or was written anew meanwhile.
        """
        self._wait_for(range(-(-self._size // PART_BYTES)))

    def open(self) -> BinaryIO:
        """Open the file for reading; reads block until the bytes have arrived, and raise the errors of :meth:`wait`."""
        return io.BufferedReader(_Reader(self), 1 << 18)

    def wait_for_bytes(self, start: int, count: int) -> int:
        """Wait until the part with byte ``start`` has arrived; returns how many of ``count`` bytes it contains."""
        end = min(start + count, self._size, (start // PART_BYTES + 1) * PART_BYTES)
        if end > start:
            self._wait_for(range(start // PART_BYTES, start // PART_BYTES + 1))
        return max(0, end - start)

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return self._size

    def _wait_for(self, parts: range) -> None:
        with self._changed:
            if len(parts) == 1:
                self._urgent += [part for part in parts if part in self._unasked]
            self._changed.wait_for(lambda: self._error is not None or self._missing.isdisjoint(parts))
            if not self._missing.isdisjoint(parts) and self._error is not None:
                raise self._error

    def _guarded(self, work: Callable[[BinaryIO], None]) -> None:
        try:
            with self.path.open("r+b", buffering=0) as file:
                work(file)
        except FileNotFoundError as error:
            # The file is there: it is the object that is gone.
            with self._changed:
                self._fail(StoreAccessError(f"{self._key!r} was removed from the store while it was read: {error}"))
        except OSError as error:
            with self._changed:
                self._fail(StoreAccessError(f"could not keep {self._key!r} in {str(self.path)!r}: {error}"))
        except BaseException as error:
            with self._changed:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._unasked.clear()
        self._changed.notify_all()

    def _fetch_parts(self, file: BinaryIO) -> None:
        while (part := self._next_part()) is not None:
            start = part * PART_BYTES
            data = self._store.read_range(self._key, self._facts, start, min(start + PART_BYTES, self._size))
            file.seek(start)
            file.write(data)
            self._count(len(data), {part})

    def _next_part(self) -> int | None:
        with self._changed:
            part = next((part for part in chain(self._urgent, self._unasked) if part in self._unasked), None)
            if part is not None:
                del self._unasked[part]
            return part

    def _fetch_whole(self, file: BinaryIO) -> None:
        def restart() -> BinaryIO:
            file.seek(0)
            self._done_bytes = 0
            return file

        self._store.read_stream(self._key, restart, self._count)
        if file.tell() != self._size:
            raise OSError(f"{file.tell()} bytes of {self._key!r} came, and its size is {self._size}")
        self._count(0, set(self._missing))

    def _count(self, size: int, parts: set[int] | None = None) -> None:
        report_progress_for_all()
        with self._changed:
            self._done_bytes += size
            self._missing -= parts or set()
            self._changed.notify_all()
            if self._on_bytes is not None and size and self._error is None:
                self._on_bytes(self._done_bytes, self._size)


class _Reader(io.RawIOBase):
    """A download as a file that can be read and sought."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._file = download.path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)
        count = self._download.wait_for_bytes(self.tell(), len(view))
        data = bytes(self._file.read(count) or b"")
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
