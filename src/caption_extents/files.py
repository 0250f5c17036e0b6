"""Atomic writing of output files, with error messages that name the remedy."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from caption_extents.errors import OutputError


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file atomically: if the disk is full or the process is killed, an existing file stays unchanged.

    Devices and pipes, files in folders without write permission, and files that are mount points are written in place.

    Args:
        path: the file; its folder must exist.
        data: content; text is encoded as UTF-8.

    Raises:
        OutputError: the file could not be written; the message gives the reason.
    """
    content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    # Symbolic links are followed. A device or a pipe is written directly: it cannot be replaced by renaming.
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        try:
            number, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=target.parent)
        except PermissionError:
            if not target.exists():
                raise
            target.write_bytes(content)  # the file is writable, but its folder is not
            return
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(_mode_of(target))
            try:
                Path(name).replace(target)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                target.write_bytes(content)  # the file is a mount point, as in some containers
                Path(name).unlink()
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise OutputError(
            f"could not write {str(path)!r}: {error.strerror or error}; what was there before is as it was. "
            "Free some space or choose another place, and give the command again"
        ) from error


def _mode_of(path: Path) -> int:
    """Permission bits of an existing file; for a new file, those given by the umask."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def shown_name(name: str) -> str:
    """A file's name as valid Unicode text: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
