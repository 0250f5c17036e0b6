"""The job as a whole: open everything, run the stages, commit the results."""

from caption_extents.deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "CropInferResult": "job.result.CropInferResult",
        "Job": "options.Job",
        "crop_and_infer_caption_frame_extents": "job.api.crop_and_infer_caption_frame_extents",
        "id_from_name": "options.id_from_name",
        "parse_rate": "options.parse_rate",
    },
)
