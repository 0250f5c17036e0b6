"""All exception classes of the package.

Invalid arguments and unusable input raise :class:`InputError` (a ``ValueError``); failures while processing valid input
raise :class:`ProcessingError` (a ``RuntimeError``). Messages contain the value, the allowed values and the next step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CaptionExtentsError(Exception):
    """Base of all errors of this package."""


@contextmanager
def wrap_unexpected_errors() -> Iterator[None]:
    """Turn unforeseen errors into a ProcessingError, with the original attached."""
    try:
        yield
    except CaptionExtentsError:
        raise
    except Exception as error:
        raise ProcessingError(f"the run failed unexpectedly: {type(error).__name__}: {error}") from error


class InputError(CaptionExtentsError, ValueError):
    """An argument or an input file cannot be used; nothing was written."""


class VideoError(InputError):
    """The file is missing, is not a video that may be opened, or has no usable video stream."""


class CropError(InputError):
    """The crop region is outside the picture, reversed or too small."""


class ModelError(InputError):
    """Model weights are missing, damaged or of another network."""


class StoreError(InputError):
    """The store's address cannot be understood, or the store does not hold what was asked for."""


class ProcessingError(CaptionExtentsError, RuntimeError):
    """A stage failed on input that was acceptable."""


class DecodeError(ProcessingError):
    """Too much of the video cannot be decoded."""


class StallError(ProcessingError):
    """Something that a run waits for gave no sign of life for too long."""


class EncodeError(ProcessingError):
    """A chunk could not be encoded."""


class StoreAccessError(ProcessingError):
    """The store did not answer, or refused."""


class LeaseLostError(ProcessingError):
    """Another run has taken over the version that this run was writing."""


class OutputError(ProcessingError):
    """A file that was asked for could not be written."""


class UploadError(StoreAccessError):
    """An object could not be written to the store."""
