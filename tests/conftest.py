from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from caption_extents.training import sample_video

# How long an example takes is the machine's affair.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def captioned_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of 640x360 with captions; the truth stands beside it as JSON."""
    path = tmp_path_factory.mktemp("video") / "captioned.mp4"
    planned = sample_video.render(path, seconds=12, seed=3, width=640, height=360)
    records = sample_video.truth(planned, 30)
    assert len(records) >= 4
    path.with_suffix(".json").write_text(json.dumps(records))
    return path


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Whatever a test starts must have ended when the test ends."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while (
        left := [t for t in threading.enumerate() if t not in before and t.is_alive()]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"threads left running: {left}"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CAPTION_EXTENTS_") or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)
