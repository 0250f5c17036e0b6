"""``report.html``: one file beside a version's chunks that shows and corrects its captions, without a server."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from sqlite3 import Connection, Row

from caption_extents.chunks.encode import to_frame
from caption_extents.pictures import to_jpeg
from caption_extents.report.html import fill_page
from caption_extents.results.database import open_database
from caption_extents.samples import Planes
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import Store
from caption_extents.storage.versions import SampleReader, read_manifest

THUMBNAIL_WIDTH = 240


def write_report(
    store: Store,
    keys: VideoKeys,
    version: int | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write the page of a version into the folder of its chunks.

    Args:
        store: where the version is.
        keys: of the video.
        version: N; by default the newest complete one.
        tell: called after each caption with how many are done, and how many there are.

    Returns:
        The page's key.

    Raises:
        StoreError: there is no such complete version.
        StoreAccessError: it cannot be read or written.
    """
    manifest = read_manifest(store, keys, version)
    database = open_database(store.get(keys.database(manifest.version)))
    key = f"{keys.cropped_frames(manifest.version)}/report.html"
    data = page_data(manifest, keys, database, SampleReader(store, keys, manifest.version), tell)
    store.put(key, fill_page("page", data).encode(), "text/html; charset=utf-8")
    return key


def page_data(
    manifest: Manifest,
    keys: VideoKeys,
    database: Connection,
    read_sample: Callable[[int], Planes],
    tell: Callable[[int, int], None],
) -> dict[str, object]:
    """What the page shows, as plain data."""
    metadata = database.execute("SELECT * FROM run_metadata").fetchone()
    labels = Counter(row[0] for row in database.execute("SELECT forward_predicted_label FROM pair_results"))
    rows = database.execute("SELECT * FROM captions ORDER BY caption_index").fetchall()
    captions = []
    for done, row in enumerate(rows, start=1):
        captions.append(_caption(row, read_sample))
        tell(done, len(rows))
    left, top, right, bottom = manifest.crop_px
    aspect = Fraction(manifest.sample_aspect_ratio)
    return {
        "tenant_id": keys.tenant_id,
        "video_id": keys.video_id,
        "version": manifest.version,
        "run_id": manifest.run_id,
        "source": manifest.source.key,
        "model_version": manifest.model_version,
        "frame_rate": float(Fraction(manifest.frame_rate)),
        "first_sample_seconds": manifest.first_sample_seconds,
        "frame_rate_text": manifest.frame_rate,
        "sample_count": manifest.sample_count,
        "width": round((right - left) * aspect),
        "height": bottom - top,
        "undecodable": len(metadata["undecodable_samples"].split(",")) if metadata["undecodable_samples"] else 0,
        "label_counts": dict(sorted(labels.items())),
        "metrics": json.loads(metadata["metrics"]),
        "captions": captions,
    }


def _caption(row: Row, read_sample: Callable[[int], Planes]) -> dict[str, object]:
    start, end = row["start_frame"], row["end_frame"]
    shown = dict.fromkeys((start, (start + end - 1) // 2, end - 1))
    return {
        "start_frame": start,
        "end_frame": end,
        "start_seconds": row["start_seconds"],
        "end_seconds": row["end_seconds"],
        "confidence": row["confidence"],
        "text": row["text"],
        "text_confidence": row["text_confidence"],
        "thumbs": [thumbnail(read_sample(sample)) for sample in shown],
    }


def thumbnail(planes: Planes) -> str:
    """A sample as a small JPEG in a data URL."""
    height, width = planes[0].shape
    y, u, v = (plane[None] for plane in planes)
    frame = to_frame((y, u, v), 0)
    scale = min(1.0, THUMBNAIL_WIDTH / width)
    data = to_jpeg(frame, (max(2, round(width * scale)), max(2, round(height * scale))))
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
