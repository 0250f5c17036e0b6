"""Find burned-in captions in video, exact to the frame, and keep their cropped frames for a browser to scrub.

The captions of a file::

    import caption_extents

    for caption in caption_extents.find_captions("film.mp4", crop=(0.1, 0.82, 0.9, 0.96)):
        print(caption.start, caption.end)

The single steps of :func:`find_captions` are :func:`open_video`, :class:`CaptionModel`, :func:`decode_captions` and
:func:`write_subtitles`. :class:`Job` and :func:`run_job` run the whole job with a store, versions and chunks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from caption_extents.errors import CaptionExtentsError, InputError, ProcessingError
from caption_extents.region import CropRegion
from caption_extents.version import __version__

if TYPE_CHECKING:
    from caption_extents.captions.extents import Caption, decode_captions
    from caption_extents.captions.subtitles import write_subtitles
    from caption_extents.engine import Engine
    from caption_extents.job.api import (
        crop_and_infer_caption_frame_extents,
        crop_and_infer_caption_frame_extents_pipelined,
        crop_and_infer_caption_frame_extents_sequential,
        run_job,
    )
    from caption_extents.job.result import CropInferResult
    from caption_extents.model.captioner import CaptionModel
    from caption_extents.ocr.captions import read_text
    from caption_extents.options import Job
    from caption_extents.samples import SampleBatch
    from caption_extents.search import find_captions, iter_captions
    from caption_extents.video.video import Video, open_video

__all__ = [
    "Caption",
    "CaptionExtentsError",
    "CaptionModel",
    "CropInferResult",
    "CropRegion",
    "Engine",
    "InputError",
    "Job",
    "ProcessingError",
    "SampleBatch",
    "Video",
    "__version__",
    "crop_and_infer_caption_frame_extents",
    "crop_and_infer_caption_frame_extents_pipelined",
    "crop_and_infer_caption_frame_extents_sequential",
    "decode_captions",
    "find_captions",
    "iter_captions",
    "open_video",
    "read_text",
    "run_job",
    "write_subtitles",
]

_MODULES = {
    "Caption": "captions.extents",
    "CaptionModel": "model.captioner",
    "CropInferResult": "job.result",
    "Engine": "engine",
    "Job": "options",
    "SampleBatch": "samples",
    "Video": "video.video",
    "crop_and_infer_caption_frame_extents": "job.api",
    "crop_and_infer_caption_frame_extents_pipelined": "job.api",
    "crop_and_infer_caption_frame_extents_sequential": "job.api",
    "decode_captions": "captions.extents",
    "find_captions": "search",
    "iter_captions": "search",
    "open_video": "video.video",
    "read_text": "ocr.captions",
    "run_job": "job.api",
    "write_subtitles": "captions.subtitles",
}
"""Module of each public name. They are imported lazily, because importing PyTorch alone takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
