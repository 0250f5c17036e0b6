"""Find burned-in captions in video, exact to the frame, and keep their cropped frames for a browser to scrub."""

from caption_extents.errors import CaptionExtentsError, InputError, ProcessingError
from caption_extents.job import (
    CropInferResult,
    crop_and_infer_caption_frame_extents,
    crop_and_infer_caption_frame_extents_pipelined,
    crop_and_infer_caption_frame_extents_sequential,
)
from caption_extents.region import CropRegion

__version__ = "0.1.0"

__all__ = [
    "CaptionExtentsError",
    "CropInferResult",
    "CropRegion",
    "InputError",
    "ProcessingError",
    "__version__",
    "crop_and_infer_caption_frame_extents",
    "crop_and_infer_caption_frame_extents_pipelined",
    "crop_and_infer_caption_frame_extents_sequential",
]
