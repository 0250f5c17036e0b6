from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import caption_extents
from caption_extents import CropRegion
from caption_extents.training.sample_video import CROP

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_read_results(captioned_video: Path, tmp_path: Path) -> None:
    result = caption_extents.crop_and_infer_caption_frame_extents(
        str(captioned_video), "me", "film", CropRegion(*CROP), store=tmp_path
    )
    command = [sys.executable, str(EXAMPLES / "read_results.py"), str(tmp_path), "me", "film", "37"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.count("confidence") == result.caption_count
    assert "sample 37: 512x52 pixels" in out
