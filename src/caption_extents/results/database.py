"""The results database: SQLite, built in memory, gzip when stored."""

from __future__ import annotations

import gzip
import itertools
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

from caption_extents.captions.extents import Caption
from caption_extents.errors import StoreError

_SCHEMA_VERSION = 1

_PROBABILITIES = ("same", "different", "empty_empty", "empty_valid", "valid_empty")


def _direction_columns(direction: str) -> str:
    labels = ", ".join(f"'{label}'" for label in _PROBABILITIES)
    columns = [
        f"{direction}_predicted_label TEXT NOT NULL CHECK ({direction}_predicted_label IN ({labels}))",
        f"{direction}_confidence REAL NOT NULL CHECK ({direction}_confidence BETWEEN 0 AND 1)",
        *(
            f"{direction}_prob_{label} REAL NOT NULL CHECK ({direction}_prob_{label} BETWEEN 0 AND 1)"
            for label in _PROBABILITIES
        ),
    ]
    return ",\n    ".join(columns)


_SCHEMA = f"""
CREATE TABLE run_metadata (
    cropped_frames_version INTEGER NOT NULL,
    model_version TEXT NOT NULL,
    model_checkpoint_path TEXT NOT NULL,
    run_id TEXT NOT NULL,
    started_at TEXT NOT NULL,
    completed_at TEXT NOT NULL,
    total_pairs INTEGER NOT NULL,
    processing_time_seconds REAL NOT NULL,
    frame_rate TEXT NOT NULL,
    frame_count INTEGER NOT NULL,
    first_sample_seconds REAL NOT NULL DEFAULT 0,
    crop TEXT NOT NULL,
    crop_px TEXT NOT NULL,
    source_key TEXT NOT NULL,
    source_fingerprint TEXT NOT NULL,
    source_stream INTEGER,
    encoder_preset TEXT NOT NULL,
    implementation TEXT NOT NULL,
    decoder TEXT NOT NULL,
    undecodable_samples TEXT NOT NULL,
    picture_changes TEXT NOT NULL DEFAULT '[]',
    package_version TEXT NOT NULL,
    metrics TEXT NOT NULL
);
CREATE TABLE pair_results (
    frame1_index INTEGER NOT NULL,
    frame2_index INTEGER NOT NULL,
    {_direction_columns("forward")},
    {_direction_columns("backward")},
    processing_time_ms REAL,
    UNIQUE (frame1_index, frame2_index)
);
CREATE TABLE captions (
    caption_index INTEGER PRIMARY KEY,
    start_frame INTEGER NOT NULL,
    end_frame INTEGER NOT NULL CHECK (end_frame > start_frame),
    start_seconds REAL NOT NULL,
    end_seconds REAL NOT NULL,
    confidence REAL NOT NULL CHECK (confidence BETWEEN 0 AND 1),
    text TEXT,
    text_confidence REAL CHECK (text_confidence BETWEEN 0 AND 1)
);
PRAGMA user_version = {_SCHEMA_VERSION};
"""


_COMPRESSION = 2
"""Gzip level. Probabilities hardly compress: the default level takes five times as long and saves 10%."""


_STATEMENT_ROWS = 256
"""With 17 columns, far below the 32,766 values that SQLite binds to a statement."""


def build_database(metadata: Mapping[str, object], probabilities: np.ndarray, captions: Iterable[Caption]) -> bytes:
    """The gzipped database.

    Args:
        metadata: a value for every column of ``run_metadata``.
        probabilities: (P, 2, 5), forward and backward, of pairs 0..P-1, labels in the order of the columns.
        captions: in order.
    """
    with closing(DatabaseWriter()) as writer:
        writer.add_pairs(0, probabilities)
        return writer.finish(metadata, captions)


class DatabaseWriter:
    """A results database that takes pairs as they come, from any thread, one at a time."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Discard the database."""
        self._connection.close()

    def add_pairs(self, first_pair: int, probabilities: np.ndarray) -> None:
        """Take consecutive pairs; arguments as of :func:`build_database`, pairs from ``first_pair`` on."""
        _insert(self._connection, "pair_results", _pair_rows(first_pair, probabilities))

    def finish(self, metadata: Mapping[str, object], captions: Iterable[Caption]) -> bytes:
        """The gzipped database; arguments as of :func:`build_database`."""
        connection = self._connection
        _insert(connection, "run_metadata", [tuple(metadata.values())], list(metadata))
        _insert(connection, "captions", _caption_rows(captions))
        connection.commit()
        return _compressed(connection)


def _insert(
    connection: sqlite3.Connection, table: str, rows: list[tuple[object, ...]], columns: list[str] | None = None
) -> None:
    names = f" ({', '.join(columns)})" if columns else ""
    # Many rows in a statement: each statement releases the GIL and takes it back.
    for start in range(0, len(rows), _STATEMENT_ROWS):
        part = rows[start : start + _STATEMENT_ROWS]
        marks = ", ".join([f"({', '.join('?' * len(part[0]))})"] * len(part))
        # Only this module's own names go into the statement; values are bound.
        connection.execute(f"INSERT INTO {table}{names} VALUES {marks}", [*itertools.chain(*part)])  # noqa: S608


def _pair_rows(first_pair: int, probabilities: np.ndarray) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    predicted = probabilities.argmax(axis=2).tolist()
    found = zip(probabilities.tolist(), predicted, strict=True)
    for pair, (values, (forward, backward)) in enumerate(found, first_pair):
        directions: list[object] = []
        for probabilities_of, label in zip(values, (forward, backward), strict=True):
            # A softmax in float32 may exceed 1 by a rounding error.
            clipped = [min(1.0, value) for value in probabilities_of]
            directions += [_PROBABILITIES[label], clipped[label], *clipped]
        rows.append((pair, pair + 1, *directions, None))
    return rows


def _caption_rows(captions: Iterable[Caption]) -> list[tuple[object, ...]]:
    return [
        (
            index,
            caption.first_sample,
            caption.end_sample,
            caption.start,
            caption.end,
            caption.confidence,
            caption.text,
            caption.text_confidence,
        )
        for index, caption in enumerate(captions)
    ]


def read_captions(data: bytes) -> list[Caption]:
    """The captions of a gzipped database, in order.

    Raises:
        StoreError: it is damaged.
    """
    with closing(open_database(data)) as connection:
        rows = connection.execute("SELECT * FROM captions ORDER BY caption_index").fetchall()
    return [
        Caption(
            start=row["start_seconds"],
            end=row["end_seconds"],
            first_sample=row["start_frame"],
            end_sample=row["end_frame"],
            confidence=row["confidence"],
            text=row["text"],
            text_confidence=row["text_confidence"],
        )
        for row in rows
    ]


def _compressed(connection: sqlite3.Connection) -> bytes:
    return gzipped(connection.serialize(), _COMPRESSION)


def with_texts(data: bytes, texts: Mapping[int, tuple[str, float]]) -> bytes:
    """Replace the texts in a gzipped database, except those written by a person (texts without a confidence).

    Args:
        data: the gzipped database.
        texts: text and confidence by caption index; other captions read by OCR lose their text.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(gzip.decompress(data))
        connection.execute("UPDATE captions SET text = NULL, text_confidence = NULL WHERE text_confidence IS NOT NULL")
        connection.executemany(
            "UPDATE captions SET text = ?, text_confidence = ? WHERE caption_index = ?",
            [(text, confidence, index) for index, (text, confidence) in texts.items()],
        )
        connection.commit()
        return _compressed(connection)


def with_captions(data: bytes, captions: Iterable[Caption]) -> bytes:
    """A gzipped database with other captions, in order."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(gzip.decompress(data))
        connection.execute("DELETE FROM captions")
        _insert(connection, "captions", _caption_rows(captions))
        connection.commit()
        return _compressed(connection)


def open_database(data: bytes) -> sqlite3.Connection:
    """A read-only connection to a gzipped database.

    Raises:
        StoreError: it is damaged.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(gzip.decompress(data))
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM captions").fetchone()
    except (EOFError, OSError, MemoryError, zlib.error, sqlite3.Error) as error:
        connection.close()
        raise StoreError(
            f"a results database is damaged ({error}); run again with `new_version`, or fetch it anew"
        ) from error
    connection.row_factory = sqlite3.Row
    return connection


_PART_BYTES = 1 << 20
_MOST_THREADS = 8
_HEADER = bytes([0x1F, 0x8B, zlib.DEFLATED, 0, 0, 0, 0, 0, 0, 0xFF])
"""No name, no time, no system."""


def gzipped(data: bytes, level: int) -> bytes:
    """Data as one gzip member (RFC 1952), the same whatever the number of threads.

    It is compressed in parts that end at a byte, so that they can be put together, as pigz does it (Adler, 2007).

    Args:
        data: to compress.
        level: 1, the fastest, to 9.
    """
    starts = range(0, max(1, len(data)), _PART_BYTES)

    def deflated(start: int) -> bytes:
        compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        end = zlib.Z_FINISH if start == starts[-1] else zlib.Z_SYNC_FLUSH
        return compressor.compress(data[start : start + _PART_BYTES]) + compressor.flush(end)

    with ThreadPoolExecutor(min(len(starts), _MOST_THREADS)) as pool:
        parts = list(pool.map(deflated, starts))
    return b"".join([_HEADER, *parts, struct.pack("<LL", zlib.crc32(data), len(data) & 0xFFFFFFFF)])
