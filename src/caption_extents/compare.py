"""What differs between two versions of a video: labels, captions, chunks, time and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from caption_extents.errors import InputError
from caption_extents.results.database import open_database
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import Store
from caption_extents.storage.versions import read_manifest

Extent = tuple[int, int]


@dataclass(frozen=True)
class VersionData:
    """The data of one version that a comparison uses.

    Attributes:
        version: version number N.
        implementation, model, preset: implementation, model version and encoder preset of its run.
        seconds: wall time of its run.
        labels: most likely forward label of every pair.
        captions: first sample and end sample (half-open) of every caption.
        chunks: SHA-256 of every chunk, by level and first sample.
        chunk_bytes: total size of all chunks.
        inputs: fingerprint of the source, crop in pixels and frame rate; comparable versions have the same.
    """

    version: int
    implementation: str
    model: str
    preset: str
    seconds: float
    labels: tuple[str, ...]
    captions: tuple[Extent, ...]
    chunks: dict[tuple[int, int], str]
    chunk_bytes: int
    inputs: tuple[str, str, str]


@dataclass(frozen=True)
class Comparison:
    """How version B differs from version A.

    Attributes:
        pairs: number of pairs compared.
        other_labels: number of pairs whose forward labels differ.
        captions_a, captions_b: number of captions of each version.
        captions_only_a, captions_only_b: extents of captions that only one of the versions has.
        chunks: number of chunks compared.
        other_chunks: number of chunks whose bytes differ.
        chunk_bytes_a, chunk_bytes_b: total size of each version's chunks.
        seconds_a, seconds_b: wall time of each version's run.
        cost_a, cost_b: cost of each run at the given price per hour; None without a price.
        changed: implementation, model and preset, if they differ: the values of A and B, by name.
    """

    pairs: int
    other_labels: int
    captions_a: int
    captions_b: int
    captions_only_a: tuple[Extent, ...]
    captions_only_b: tuple[Extent, ...]
    chunks: int
    other_chunks: int
    chunk_bytes_a: int
    chunk_bytes_b: int
    seconds_a: float
    seconds_b: float
    cost_a: float | None
    cost_b: float | None
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def same_results(self) -> bool:
        """Whether labels and captions are the same."""
        return not (self.other_labels or self.captions_only_a or self.captions_only_b)

    @property
    def identical(self) -> bool:
        """Whether chunks are the same as well, byte for byte."""
        return self.same_results and not self.other_chunks

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "same_results": self.same_results, "identical": self.identical}

    def __str__(self) -> str:
        def times(a: float, b: float) -> str:
            return f" ({b / a:.2f} times)" if a else ""

        lines = [
            "identical" if self.identical else "the same results" if self.same_results else "other results",
            f"labels    {self.other_labels} of {self.pairs} pairs differ",
            f"captions  {self.captions_a} and {self.captions_b}; {len(self.captions_only_a)} only in A, "
            f"{len(self.captions_only_b)} only in B",
            f"chunks    {self.other_chunks} of {self.chunks} differ; "
            f"{self.chunk_bytes_a} and {self.chunk_bytes_b} bytes" + times(self.chunk_bytes_a, self.chunk_bytes_b),
            f"time      {self.seconds_a:.2f} s and {self.seconds_b:.2f} s{times(self.seconds_a, self.seconds_b)}",
        ]
        if self.cost_a is not None and self.cost_b is not None:
            lines.append(f"cost      {self.cost_a:.6f} and {self.cost_b:.6f}")
        lines += [f"{name:9} {a} and {b}" for name, (a, b) in self.changed.items()]
        for name, extents in (("A", self.captions_only_a), ("B", self.captions_only_b)):
            lines += [f"only in {name}: samples {start} to {end}" for start, end in extents[:20]]
        return "\n".join(lines)


def read_version(store: Store, keys: VideoKeys, version: int) -> VersionData:
    """Read the data of a complete version that a comparison uses.

    Raises:
        StoreError: there is no such version.
    """
    manifest: Manifest = read_manifest(store, keys, version)
    database = open_database(store.get(keys.database(version)))
    metadata = dict(database.execute("SELECT * FROM run_metadata").fetchone())
    labels = database.execute("SELECT forward_predicted_label FROM pair_results ORDER BY frame1_index").fetchall()
    captions = database.execute("SELECT start_frame, end_frame FROM captions ORDER BY caption_index").fetchall()
    return VersionData(
        version=version,
        implementation=str(metadata["implementation"]),
        model=manifest.model_version,
        preset=manifest.preset,
        seconds=float(metadata["processing_time_seconds"]),
        labels=tuple(row[0] for row in labels),
        captions=tuple((row[0], row[1]) for row in captions),
        chunks={(chunk.level, chunk.samples[0]): chunk.sha256 for chunk in manifest.chunks},
        chunk_bytes=sum(chunk.size_bytes for chunk in manifest.chunks),
        inputs=(manifest.source.fingerprint, str(manifest.crop_px), manifest.frame_rate),
    )


def compare_versions(a: VersionData, b: VersionData, price_per_hour: float | None = None) -> Comparison:
    """How B differs from A.

    Raises:
        InputError: they are not of the same video, crop and rate.
    """
    for name, one, other in zip(("video", "crop", "frame rate"), a.inputs, b.inputs, strict=True):
        if one != other:
            raise InputError(f"versions {a.version} and {b.version} cannot be compared: {name} {one} and {other}")
    found_a, found_b = set(a.captions), set(b.captions)
    return Comparison(
        pairs=len(a.labels),
        other_labels=sum(one != other for one, other in zip(a.labels, b.labels, strict=True)),
        captions_a=len(a.captions),
        captions_b=len(b.captions),
        captions_only_a=tuple(sorted(found_a - found_b)),
        captions_only_b=tuple(sorted(found_b - found_a)),
        chunks=len(a.chunks),
        other_chunks=sum(b.chunks.get(place) != digest for place, digest in a.chunks.items()),
        chunk_bytes_a=a.chunk_bytes,
        chunk_bytes_b=b.chunk_bytes,
        seconds_a=a.seconds,
        seconds_b=b.seconds,
        cost_a=None if price_per_hour is None else price_per_hour * a.seconds / 3600,
        cost_b=None if price_per_hour is None else price_per_hour * b.seconds / 3600,
        changed={
            name: (one, other)
            for name, one, other in (
                ("implementation", a.implementation, b.implementation),
                ("model", a.model, b.model),
                ("preset", a.preset, b.preset),
            )
            if one != other
        },
    )
