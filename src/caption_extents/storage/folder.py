"""A folder as a store: an object is a file, written under a temporary name in its folder and then renamed.

Conditions are checked under a lock on the folder (``flock``), which the operating system releases when its holder dies.
Conditional writes are therefore atomic between processes, and also between machines if the file system supports locks
between machines. An object that must not exist yet is created by a hard link, which needs no lock; on file systems
without hard links (exFAT, SMB, many FUSE mounts) by a rename under the lock.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import IO

from filelock import FileLock
from obstore.exceptions import AlreadyExistsError, PreconditionError

from caption_extents.storage.objects import CREATE, Condition, ObjectFacts, Tag, content_tag

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, flock

LOCK_NAME = ".caption-extents.lock"
_LOCK_SECONDS = 60.0
_TEMPORARY = re.compile(r"#(\d+|[0-9a-f]{12})$")
"""Matches the suffix of temporary files, which are being written."""
_ASIDE = "#aside"
"""Suffix of the old file while an object is replaced, on file systems whose rename cannot replace a file."""
_OLD_SECONDS = 86_400.0
"""Age after which a temporary file counts as left by a dead writer, if the file system has no locks."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_NO_REPLACING = {errno.EEXIST, errno.EPERM, errno.EACCES, errno.EBUSY, errno.ENOTSUP}
_PART_BYTES = 1 << 20
_ATTEMPTS = 20
_SHARED_MODE = 0o666
"""Permissions of the lock file, so that every user who may write to the folder can take the lock."""


class FolderObjects:
    """Objects as files; see :class:`~caption_extents.storage.objects.Objects`.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self.conditional: bool | None = None
        self._root = folder
        self.address = str(folder)
        # Threads of this process queue for this lock first, instead of polling for the lock file.
        self._turn = threading.Lock()

    def put(self, key: str, data: bytes, content_type: str, condition: Condition = None) -> Tag:
        """See :class:`~caption_extents.storage.objects.Objects`; a file has no content type."""
        path = self._path(key)
        with self._written(path, data) as temporary:
            if condition is None:
                self._rename(temporary, path)
            elif condition is CREATE:
                self._create(temporary, path, key)
            else:
                with self._locked():
                    if content_tag(self._read(path)) != condition:
                        raise PreconditionError(f"{key} has changed")
                    self._rename(temporary, path)
        return content_tag(data)

    def get(self, key: str) -> tuple[bytes, Tag]:
        """See :class:`~caption_extents.storage.objects.Objects`."""
        data = self._read(self._path(key))
        return data, content_tag(data)

    def get_range(self, key: str, start: int, end: int, e_tag: str | None) -> bytes:
        """See :class:`~caption_extents.storage.objects.Objects`; a file has no entity tag."""
        with self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def stream(self, key: str) -> Iterator[bytes]:
        """See :class:`~caption_extents.storage.objects.Objects`."""
        with self._path(key).open("rb") as file:
            while part := file.read(_PART_BYTES):
                yield part

    def head(self, key: str) -> ObjectFacts:
        """See :class:`~caption_extents.storage.objects.Objects`."""
        path = self._path(key)
        try:
            return self._facts(key, path)
        except (FileNotFoundError, NotADirectoryError):
            return self._facts(key, _aside(path))

    def entries(self, prefix: str) -> list[ObjectFacts]:
        """See :class:`~caption_extents.storage.objects.Objects`."""
        found = {}
        for folder, _, names in os.walk(self._path(prefix.rstrip("/")), onerror=_raise_unless_gone):
            below = Path(folder).relative_to(self._root).as_posix()
            for name in names:
                if not _TEMPORARY.search(name) and name != LOCK_NAME:
                    key = f"{below}/{name.removesuffix(_ASIDE)}".removeprefix("./")
                    with suppress(FileNotFoundError):  # removed since
                        found[key] = self.head(key)
        return list(found.values())

    def prefixes(self, prefix: str) -> list[str]:
        """See :class:`~caption_extents.storage.objects.Objects`."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path(prefix.rstrip("/"))) as entries:
            return [prefix + entry.name for entry in entries if entry.is_dir()]
        return []

    def delete(self, key: str) -> None:
        """See :class:`~caption_extents.storage.objects.Objects`; folders that are empty then go too."""
        path = self._path(key)
        with suppress(FileNotFoundError):
            _aside(path).unlink()
        path.unlink()
        with suppress(OSError):  # there is something in it
            while (path := path.parent) != self._root:
                path.rmdir()

    def publish(self, source: str, target: str) -> None:
        """See :class:`~caption_extents.storage.objects.Objects`."""
        path = self._path(target)
        while True:
            try:
                self._rename(self._path(source), path)
                return
            except FileNotFoundError:
                self._path(source).stat()
                path.parent.mkdir(parents=True, exist_ok=True)

    def remove_leftovers(self, prefix: str) -> None:
        """Remove the temporary files of writers that were killed; a live writer keeps its file locked."""
        for path in self._path(prefix).rglob("*#*"):
            if _TEMPORARY.search(path.name):
                with suppress(OSError), path.open("r+b") as file:  # gone, or locked
                    if _try_lock(file) or time.time() - path.stat().st_mtime > _OLD_SECONDS:
                        path.unlink()

    def has_locks(self) -> bool:
        """Whether the file system gives locks; asking makes the folder and its lock file."""
        if sys.platform == "win32":
            return True
        self._root.mkdir(parents=True, exist_ok=True)
        with FileIO(self._root / LOCK_NAME, "a", opener=_open_shared) as file:
            try:
                flock(file.fileno(), LOCK_EX | LOCK_NB)
            except OSError as error:
                return error.errno not in _NO_LOCKS  # otherwise another process has it
        return True

    def has_links(self) -> bool:
        """Whether the file system gives hard links; asking makes the folder and its lock file."""
        self.has_locks()
        with self._written(self._root / "probe", b"") as temporary:
            other = temporary.with_name(temporary.name[:-1] + "f0")
            try:
                other.hardlink_to(temporary)
            except OSError:
                return False
            other.unlink()
        return True

    def _path(self, key: str) -> Path:
        return self._root / key

    @staticmethod
    def _facts(key: str, path: Path) -> ObjectFacts:
        found = path.stat()
        return ObjectFacts(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            try:
                return _aside(path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return path.read_bytes()  # the new file has been renamed into place since

    @contextmanager
    def _written(self, path: Path, data: bytes) -> Iterator[Path]:
        """The data in a temporary file in the same folder, locked until it is renamed."""
        temporary, file = self._open_temporary(path)
        try:
            with file:
                file.write(data)
                file.flush()
                yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink()

    @staticmethod
    def _open_temporary(path: Path) -> tuple[Path, IO[bytes]]:
        for attempt in range(_ATTEMPTS):
            temporary = path.with_name(f"{path.name}#{uuid.uuid4().hex[:12]}")
            try:
                file = temporary.open("xb")
            except FileNotFoundError:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                except FileNotFoundError:  # removed again, for there was nothing in it
                    if attempt + 1 == _ATTEMPTS:
                        raise
                continue
            try:
                # Before we locked it, remove_leftovers() of another process may have locked and deleted the file.
                if _try_lock(file) is not False and os.fstat(file.fileno()).st_ino == temporary.stat().st_ino:
                    return temporary, file
            except FileNotFoundError:
                pass
            except BaseException:
                file.close()
                raise
            file.close()
            with suppress(OSError):
                temporary.unlink()
        raise OSError(errno.EAGAIN, f"its temporary files vanish in {str(path.parent)!r}")

    def _create(self, temporary: Path, path: Path, key: str) -> None:
        try:
            if _aside(path).exists():
                raise FileExistsError
            path.hardlink_to(temporary)
        except FileExistsError:
            raise AlreadyExistsError(f"{key} is there already") from None
        except OSError:
            # A file system without hard links; or something is wrong, which the rename says too.
            with self._locked():
                if path.exists() or _aside(path).exists():
                    raise AlreadyExistsError(f"{key} is there already") from None
                self._rename(temporary, path)

    def _rename(self, temporary: Path, path: Path) -> None:
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno not in _NO_REPLACING or not path.exists():
                raise
            # A file system whose rename cannot replace a file; readers find the old one aside.
            path.rename(_aside(path))
            temporary.rename(path)
        with suppress(OSError):
            _aside(path).unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock, which serialises conditional writes.

        Raises:
            OSError: the file system has no locks, or another process has held the lock for 60 s.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._root / LOCK_NAME, timeout=_LOCK_SECONDS, mode=_SHARED_MODE, poll_interval=0.01)
        with self._turn:
            try:
                lock.acquire()
            except TimeoutError:
                raise OSError(
                    errno.EBUSY,
                    f"another process has kept {LOCK_NAME} for {_LOCK_SECONDS:g} s; end the one that is stopped",
                ) from None
            try:
                yield
            finally:
                lock.release()


def _open_shared(name: str, flags: int) -> int:
    number = os.open(name, flags, _SHARED_MODE)
    with suppress(PermissionError):  # another user's
        os.fchmod(number, _SHARED_MODE)
    return number


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _ASIDE)


def _try_lock(file: IO[bytes]) -> bool | None:
    """Lock a file until it is closed, unless another process has it locked; None where there are no locks."""
    if sys.platform == "win32":
        return None  # a file that is open cannot be removed there anyway
    try:
        flock(file.fileno(), LOCK_EX | LOCK_NB)
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False
    return True
