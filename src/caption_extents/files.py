"""Files for people: whole or as they were, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from caption_extents.errors import OutputError


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file at once: a full disk or a kill leaves what was there before.

    Args:
        path: of the file; its folder must be there.
        data: text is written as UTF-8.

    Raises:
        OutputError: it could not be written; says why.
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
            target.write_bytes(content)  # a file that may be written, in a folder that may not
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
                target.write_bytes(content)  # a file that is mounted by itself, as in a container
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
    """As it is, or as a new file would have."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def shown_name(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 are shown by their numbers."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
