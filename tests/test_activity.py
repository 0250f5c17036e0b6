"""What was busy when, and the trace that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from caption_extents.cli import app
from caption_extents.pipeline.clocks import MAX_BUCKETS, Activity
from caption_extents.pipeline.metrics import RunTimeline, chrome_trace
from tests.media import Recipe, make_video

SECONDS = st.floats(0, 10_000, allow_nan=False)


@settings(max_examples=150)
@given(intervals=st.lists(st.tuples(SECONDS, SECONDS, st.floats(0.1, 5)), max_size=30))
def test_nothing_is_lost_when_buckets_grow(intervals: list[tuple[float, float, float]]) -> None:
    activity = Activity(100.0)
    total = 0.0
    for start, length, amount in intervals:
        activity.add(100 + start, 100 + start + length, amount)
        total += length * amount
    values = activity.means(activity.bucket_seconds)
    assert len(values) <= MAX_BUCKETS
    assert sum(values) * activity.bucket_seconds == pytest.approx(
        total, rel=1e-3, abs=MAX_BUCKETS * activity.bucket_seconds * 1e-3
    )


def test_activities_of_a_run_share_their_buckets() -> None:
    short, long = Activity(0.0), Activity(0.0)
    short.add(0.0, 1.0)
    long.add(0.0, 1000.0, 2.0)
    timeline = RunTimeline.of({"short": short, "long": long}, {}, {})
    assert timeline.bucket_seconds == long.bucket_seconds
    assert sum(timeline.busy["short"]) * timeline.bucket_seconds == pytest.approx(1.0, abs=0.01)
    assert timeline.busy["long"][:-1] == [2.0] * (len(timeline.busy["long"]) - 1)


def test_the_trace_of_a_run(tmp_path: Path) -> None:
    video = make_video(Recipe("film", pts=tuple(range(90))), tmp_path)
    command = [
        "run",
        str(video),
        "--crop",
        "0,0.2,1,1",
        "--store",
        str(tmp_path / "s"),
        "--trace",
        str(tmp_path / "t.json"),
    ]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    timeline = RunTimeline(**json.loads(result.stdout)["metrics"]["timeline"])
    trace = json.loads((tmp_path / "t.json").read_text())
    assert trace == json.loads(json.dumps(chrome_trace(timeline)))
    names = {event["name"] for event in trace["traceEvents"]}
    assert {
        "extraction",
        "inference",
        "encoding",
        "upload",
        "queue before inference",
        "queue before encoding",
        "queue before upload",
    } <= names
    stages = json.loads(result.stdout)["metrics"]["stages"]
    for name, stage in stages.items():
        busy = sum(timeline.busy[name]) * timeline.bucket_seconds
        assert busy == pytest.approx(stage["busy_seconds"], rel=0.02, abs=0.01)
    assert [event["ts"] for event in trace["traceEvents"]] == sorted(event["ts"] for event in trace["traceEvents"])
