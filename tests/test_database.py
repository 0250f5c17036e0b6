from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from caption_extents.captions.extents import Caption
from caption_extents.labels import LABEL_TEXTS
from caption_extents.results.database import _PROBABILITIES, build_database, open_database

METADATA: dict[str, object] = {
    "cropped_frames_version": 1,
    "model_version": "m",
    "model_checkpoint_path": "p",
    "run_id": "r",
    "started_at": "2026-01-01T00:00:00+00:00",
    "completed_at": "2026-01-01T00:00:01+00:00",
    "total_pairs": 2,
    "processing_time_seconds": 1.0,
    "frame_rate": "10",
    "frame_count": 3,
    "first_sample_seconds": 0.5,
    "crop": "0,0,1,1",
    "crop_px": "0,0,16,16",
    "source_key": "'; DROP TABLE captions; --",
    "source_fingerprint": "f",
    "source_stream": 0,
    "encoder_preset": "reference",
    "implementation": "pipelined",
    "decoder": "cpu",
    "undecodable_samples": "",
    "picture_changes": "[]",
    "package_version": "0",
    "metrics": "{}",
}


def test_rows_come_back() -> None:
    raw = np.random.default_rng(0).random((2, 2, 5)).astype(np.float32)
    values = raw / raw.sum(axis=2, keepdims=True)
    data = build_database(METADATA, values, [Caption(0.0, 0.2, 0, 2, 0.5)])
    assert data[:2] == b"\x1f\x8b"
    database = open_database(data)
    assert dict(database.execute("SELECT * FROM run_metadata").fetchone()) == METADATA
    rows = database.execute("SELECT * FROM pair_results ORDER BY frame1_index").fetchall()
    assert [(row["frame1_index"], row["frame2_index"]) for row in rows] == [(0, 1), (1, 2)]
    for row, pair in zip(rows, values, strict=True):
        for direction, probabilities in zip(("forward", "backward"), pair, strict=True):
            assert [row[f"{direction}_prob_{label}"] for label in LABEL_TEXTS] == probabilities.tolist()
            assert row[f"{direction}_predicted_label"] == LABEL_TEXTS[int(probabilities.argmax())]
            assert row[f"{direction}_confidence"] == probabilities.max()
        assert row["processing_time_ms"] is None
    caption = database.execute("SELECT * FROM captions").fetchone()
    assert tuple(caption) == (0, 0, 2, 0.0, 0.2, 0.5, None, None)


def test_columns_follow_the_models_labels() -> None:
    assert _PROBABILITIES == LABEL_TEXTS


def test_the_schema_refuses_nonsense() -> None:
    database = open_database(build_database(METADATA, np.full((1, 2, 5), 0.2, np.float32), []))
    database.execute("PRAGMA query_only = OFF")
    for statement in (
        "UPDATE pair_results SET forward_predicted_label = 'maybe'",
        "UPDATE pair_results SET backward_prob_same = 1.5",
        "INSERT INTO captions VALUES (0, 5, 5, 0.5, 0.5, 1, NULL, NULL)",
        "INSERT INTO pair_results SELECT * FROM pair_results",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(statement)


def test_readers_cannot_write() -> None:
    database = open_database(build_database(METADATA, np.empty((0, 2, 5), np.float32), []))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.execute("DELETE FROM run_metadata")
