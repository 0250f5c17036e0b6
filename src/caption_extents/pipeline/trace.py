"""A run's timeline in the format of Chrome's tracing, which Perfetto and ``chrome://tracing`` show."""

from __future__ import annotations

from itertools import chain

from caption_extents.pipeline.activity import RunTimeline

_MICROSECONDS = 1e6


def chrome_trace(timeline: RunTimeline) -> dict[str, object]:
    """Counters over time: workers at work in each stage, items in each queue, and what is busy of the GPU.

    The format is the "Trace Event Format" (JSON object, events of phase ``C``); times are in microseconds from the
    run's start.
    """
    counters = chain(
        ((name, "busy workers", values) for name, values in timeline.busy.items()),
        ((f"queue before {name}", "items", values) for name, values in timeline.queued.items()),
        ((f"GPU {name}", "value", values) for name, values in timeline.gpu.items()),
    )
    events = [
        {
            "name": name,
            "ph": "C",
            "pid": 1,
            "ts": round(bucket * timeline.bucket_seconds * _MICROSECONDS),
            "args": {unit: value},
        }
        for name, unit, values in counters
        for bucket, value in enumerate([*values, 0.0])
    ]
    return {"displayTimeUnit": "ms", "traceEvents": sorted(events, key=lambda event: (event["ts"], event["name"]))}
