"""Reports errors as one line on stderr and an exit code, with the names of command-line options."""

from __future__ import annotations

import inspect
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from caption_extents.errors import InputError, ProcessingError
from caption_extents.interrupts import Interrupted
from caption_extents.options import Job

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
INTERRUPTED = "interrupted"
_OPTION_NAMES = {
    "frame_rate": "--rate",
    "tenant_id": "--tenant",
    **{f"crop_{side}": f"{side} of --crop" for side in ("left", "top", "right", "bottom")},
}
# A video_id may also be an argument, or stand in a file.
_OPTIONS = [*({name for name in inspect.signature(Job).parameters if "_" in name} - {"video_id"}), *_OPTION_NAMES]
_ARGUMENT = re.compile(rf"'[^']*'|`(\w+)`|\b({'|'.join(_OPTIONS)})\b")
"""Matches names of arguments in messages; text in single quotes is matched first, because it must not be replaced."""


@contextmanager
def errors_as_exit_codes(interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Report an error in a line on stderr and end with its exit code."""
    try:
        yield
    except InputError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except ProcessingError as error:
        _fail(str(error), EXIT_FAILED)
    except Interrupted as error:
        _fail(interrupted, 128 + error.signal_number)
    except KeyboardInterrupt:
        _fail(interrupted, EXIT_INTERRUPTED)
    except (sqlite3.Error, zlib.error, EOFError) as error:
        _fail(f"what is stored is damaged: {error}", EXIT_FAILED)
    except OSError as error:
        # Errors of the environment: permissions, disks, file names.
        name = f"{error.filename!r}: " if error.filename is not None else ""
        _fail(f"{name}{error.strerror or error}", EXIT_FAILED)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"caption-extents: {with_options(message)}", err=True)
    raise typer.Exit(code)


def with_options(message: str) -> str:
    """Replace names of Python arguments in a message by the names of command-line options."""

    def option(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return _OPTION_NAMES.get(name, "--" + name.replace("_", "-")) if name else found[0]

    return _ARGUMENT.sub(option, message)


def check_output(path: Path | None) -> None:
    """Raise an InputError if a file cannot be written there, before there is work to lose."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file's name")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"cannot write {str(path)!r}: it may not be written by this user; choose another place")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another place") from error
