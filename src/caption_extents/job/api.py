"""Public functions that run a job. NumPy and FFmpeg are imported only when a job runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, ParamSpec

from caption_extents.errors import wrap_unexpected_errors
from caption_extents.options import Job

if TYPE_CHECKING:
    from caption_extents.job.result import CropInferResult

P = ParamSpec("P")


def run_job(job: Job) -> CropInferResult:
    """Find every caption of a video and store its cropped frames.

    Args:
        job: which video, which region, where the results go, and how.

    Returns:
        What was stored, the captions, and where the time went.

    Raises:
        InputError: (a ValueError) the video, the model or the store cannot be used; nothing was written.
        ProcessingError: (a RuntimeError) a stage failed; readers see nothing of the run, and the next one with the same
            inputs goes on where it stopped.
    """
    from caption_extents.job.ahead import start_ahead

    ready = start_ahead(job)
    # Imported only now, because they import NumPy and FFmpeg.
    from caption_extents.children import Children
    from caption_extents.job.resources import OwnResources
    from caption_extents.job.run import run

    with wrap_unexpected_errors(), closing(Children(ready)) as children:
        return run(job, OwnResources(children))


def _with_options_of(
    job: Callable[P, Job],
) -> Callable[[Callable[..., CropInferResult]], Callable[P, CropInferResult]]:
    """Give a function the signature of :class:`Job`."""

    def decorate(function: Callable[..., CropInferResult]) -> Callable[P, CropInferResult]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> CropInferResult:
            return function(*args, **kwargs)

        signature = inspect.signature(job)
        call.__signature__ = signature.replace(return_annotation="CropInferResult")  # type: ignore[attr-defined]
        return call

    return decorate


@_with_options_of(Job)
def crop_and_infer_caption_frame_extents(*args: Any, **options: Any) -> CropInferResult:
    """Find every caption of a video and store its cropped frames: :func:`run_job` with the arguments of :class:`Job`.

    The first six arguments may be given by position: ``video_key``, ``tenant_id``, ``video_id``, ``crop_region``,
    ``frame_rate`` (default 10.0) and ``encoder_workers`` (default 4). ``implementation`` is by default that of the
    variable ``CAPTION_EXTENTS_IMPLEMENTATION``, or ``pipelined``; both give identical chunks and results.

    Returns:
        What was stored, the captions, and where the time went.

    Raises:
        InputError: (a ValueError) an argument or the video cannot be used; nothing was written.
        ProcessingError: (a RuntimeError) a stage failed; readers see nothing of the run, and the next one with the same
            inputs goes on where it stopped.
    """
    return run_job(Job(*args, **options))


@_with_options_of(Job)
def crop_and_infer_caption_frame_extents_pipelined(*args: Any, **options: Any) -> CropInferResult:
    """As :func:`crop_and_infer_caption_frame_extents`, with all stages at once."""
    return run_job(Job(*args, **{**options, "implementation": "pipelined"}))


@_with_options_of(Job)
def crop_and_infer_caption_frame_extents_sequential(*args: Any, **options: Any) -> CropInferResult:
    """As :func:`crop_and_infer_caption_frame_extents`, one stage after the other: the reference, and the rollback."""
    return run_job(Job(*args, **{**options, "implementation": "sequential"}))
