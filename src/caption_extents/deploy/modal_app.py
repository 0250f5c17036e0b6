"""The job as a Modal app: ``modal deploy -m caption_extents.deploy.modal_app``.

Settings come from the environment of that command (:class:`~caption_extents.encoders.modal_settings.ModalSettings`),
credentials only from Modal secrets. Four functions: the job as it is configured, the sequential implementation, the
job in a new version of the package beside the old, and the encoding of one segment for jobs elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import modal

from caption_extents.encoders.modal_settings import ENCODE_FUNCTION, ModalSettings
from caption_extents.encoders.tasks import EncodeResult, EncodeTask, run_encode_task
from caption_extents.engine import engine_of_process
from caption_extents.options import REMOTE_ENCODER_NAMES, Job
from caption_extents.region import CropRegion
from caption_extents.version import __version__

_PYTHON = "3.12"

settings = ModalSettings.from_environment()
app = modal.App(settings.app_name)


def _image(package: str, *, gpu: bool) -> modal.Image:
    """The container image of the app's functions.

    The settings are stored in its environment, because the container imports this module again.
    """
    variables = settings.to_environment()
    if gpu:
        # Without "video" the driver hides its decoder.
        variables["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility,video"
    extras = "gpu,modal" if gpu else "modal"
    wanted = package or f"caption-extents[{extras}]=={__version__}"
    return modal.Image.debian_slim(python_version=_PYTHON).pip_install(wanted).env(variables)


def _job(package: str) -> Callable[[Callable[..., dict[str, Any]]], modal.Function[..., dict[str, Any], Any]]:
    """Make a function of the app out of one that does a job."""
    function = app.function(
        image=_image(package, gpu=True),
        gpu=settings.gpu,
        cpu=settings.cpu,
        memory=settings.memory_mib,
        timeout=settings.timeout_seconds,
        retries=settings.retries,
        secrets=_secrets(),
        # What this module imports is in the snapshot, so that a cold start imports nothing.
        enable_memory_snapshot=True,
    )
    return lambda body: function(modal.concurrent(max_inputs=settings.videos_at_once)(body))


def _secrets() -> list[modal.Secret]:
    return [modal.Secret.from_name(name) for name in settings.secret_names]


@_job(settings.package)
def crop_and_infer_caption_frame_extents(
    video_key: str,
    tenant_id: str,
    video_id: str,
    crop_region: Sequence[float],
    frame_rate: float = 10.0,
    **options: Any,
) -> dict[str, Any]:
    """A job; see :func:`caption_extents.crop_and_infer_caption_frame_extents`.

    The implementation is the environment's ``CAPTION_EXTENTS_IMPLEMENTATION`` unless an argument says otherwise.

    Args:
        video_key: a key in the store.
        tenant_id, video_id: parts of the keys that are written.
        crop_region: left, top, right, bottom.
        frame_rate: samples a second.
        options: of the job; the store is the secret's ``CAPTION_EXTENTS_STORE`` unless it is one of them, and each core
            of the function encodes a chunk unless ``encoder_workers`` is.

    Returns:
        The result as plain data, and ``cold_start_seconds``.
    """
    return _run(video_key, tenant_id, video_id, crop_region, frame_rate, **options)


@_job(settings.package)
def crop_and_infer_caption_frame_extents_sequential(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The same by the sequential implementation."""
    return _run(*arguments, **{**options, "implementation": "sequential"})


@_job(settings.package_v2)
def crop_and_infer_caption_frame_extents_v2(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The same in the package of ``CAPTION_EXTENTS_MODAL_PACKAGE_V2``, as a new version, to compare with."""
    return _run(*arguments, **{"new_version": True, **options})


@app.function(
    name=ENCODE_FUNCTION,
    image=_image(settings.package, gpu=False),
    cpu=settings.encoder_cpu,
    memory=settings.encoder_memory_mib,
    timeout=settings.timeout_seconds,
    retries=settings.encoder_retries,
    secrets=_secrets(),
    enable_memory_snapshot=True,
)
def encode_segment(task: EncodeTask) -> EncodeResult:
    """Encode samples that a job elsewhere has sent; see :mod:`caption_extents.encoders.tasks`."""
    return run_encode_task(task)


def _run(
    video_key: str,
    tenant_id: str,
    video_id: str,
    crop_region: Sequence[float],
    frame_rate: float = 10.0,
    **options: Any,
) -> dict[str, Any]:
    cold_start_seconds = _cold_start_seconds()
    if options.get("encoder") not in REMOTE_ENCODER_NAMES:
        options.setdefault("encoder_workers", settings.encoders)
    job = Job(video_key, tenant_id, video_id, CropRegion(*crop_region), frame_rate, **options)
    result = engine_of_process(settings.videos_at_once).run(job)
    return {**result.to_dict(), "cold_start_seconds": cold_start_seconds}


_calls = 0


def _cold_start_seconds() -> float:
    """From the start of this process to its first call; 0 in later ones."""
    global _calls
    _calls += 1
    if _calls > 1:
        return 0.0
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
