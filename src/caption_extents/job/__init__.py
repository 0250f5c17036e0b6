"""The job as a whole: open everything, run the stages, commit the results."""

import importlib
import warnings
from typing import Any

_MOVED = {
    "CropInferResult": "job.result.CropInferResult",
    "Job": "options.Job",
    "crop_and_infer_caption_frame_extents": "job.api.crop_and_infer_caption_frame_extents",
    "id_from_name": "options.id_from_name",
    "parse_rate": "options.parse_rate",
}
"""Names that were public here, and where they are now."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    now = f"caption_extents.{_MOVED[name]}"
    warnings.warn(f"{__name__}.{name} is now {now}", DeprecationWarning, stacklevel=2)
    module, _, attribute = now.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
