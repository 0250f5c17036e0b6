"""One job from arguments to result: check everything, claim a version, run the stages, commit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from caption_extents.captions.extents import Caption, DecodingCosts, decode_captions
from caption_extents.chunks.encode import ChunkFormat
from caption_extents.chunks.plan import ChunkPlan, plan_chunks
from caption_extents.chunks.presets import EncoderPreset, find_preset
from caption_extents.encoders.base import ChunkEncoder
from caption_extents.encoders.tasks import EncoderWorkers
from caption_extents.errors import ProcessingError, VideoError
from caption_extents.files import shown_name
from caption_extents.job.inputs import open_input
from caption_extents.job.resources import Resources
from caption_extents.job.result import CropInferResult, Measured, Stopwatch
from caption_extents.labels import Label
from caption_extents.machine import has_torch, memory_bytes
from caption_extents.model.identity import DEFAULT_WEIGHTS, ModelIdentity
from caption_extents.model.opened import OpenedModel, PairLabeller, choose_device, is_object
from caption_extents.options import REMOTE_ENCODER_NAMES, Job, device_number
from caption_extents.pipeline.analysis import Prices
from caption_extents.pipeline.clocks import ENCODING, EXTRACTION, INFERENCE, UPLOAD, make_clocks
from caption_extents.pipeline.metrics import RunMetrics
from caption_extents.pipeline.offload import Offload, remove_old_blocks
from caption_extents.pipeline.pipelined import run_pipelined, samples_in_flight
from caption_extents.pipeline.refine import refine_captions
from caption_extents.pipeline.sequential import run_sequential
from caption_extents.pipeline.stages import LOOSE_END_SECONDS, Encoding, Extraction, Inference, Stages, Upload, Workers
from caption_extents.results.database import DatabaseWriter
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import VersionLease, acquire_version
from caption_extents.storage.manifest import MANIFEST_FORMAT, ChunkRecord, Manifest, SourceRecord, content_fingerprint
from caption_extents.storage.store import Store
from caption_extents.storage.versions import newest_manifest
from caption_extents.version import __version__
from caption_extents.video.crop import CropPixels, resolve_crop
from caption_extents.video.decoders.base import SampleDecoder
from caption_extents.video.decoders.isolated import DecoderLimits
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.decoder import batch_samples
from caption_extents.video.pixels import FORMATS, PLAIN
from caption_extents.video.timeline import Timeline
from caption_extents.video.video import Decoding, Video
from caption_extents.watchdog import Watchdog

if TYPE_CHECKING:
    from caption_extents.model.interface import PairModel

log = logging.getLogger(__name__)

_STARTING_BYTES = 2 << 30
"""Most bytes of samples that wait for inference while the model is loaded: of 720p, what 16 cores encode in 8 s."""

IMPLEMENTATIONS: dict[str, Callable[[Stages], list[ChunkRecord]]] = {
    "pipelined": run_pipelined,
    "sequential": run_sequential,
}


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first sample is decoded. Making the plan does not write anything."""

    video: Video
    crop: CropPixels
    model: ModelIdentity
    preset: EncoderPreset
    source: SourceRecord
    prices: Prices
    costs: DecodingCosts

    @property
    def facts(self) -> VideoFacts:
        return self.video.facts

    @property
    def timeline(self) -> Timeline:
        return self.video.timeline


def run(job: Job, resources: Resources) -> CropInferResult:
    """Run a job.

    Args:
        job: what to do.
        resources: what it works with.

    Raises:
        InputError: an argument or the video cannot be used; nothing was written.
        ProcessingError: a stage failed; readers see nothing of the run, and the next one with the same inputs goes on.
    """
    watch, started_at, watchdog = resources.stopwatch(), datetime.now(UTC), Watchdog(job.stall_seconds)
    keys = VideoKeys(job.tenant_id, job.video_id)
    store, device = resources.store(job.store_address), choose_device(job.device, job.model)
    if device != "cpu" and job.device == "auto" and not has_torch():
        log.warning(
            "the GPU decodes, and the CPU computes the model, because PyTorch is not installed: "
            "pip install 'caption-extents[gpu]'"
        )
    with (
        resources.encoder(job, device) as encoder,
        resources.model(job, device) as model,
        open_input(job, store, _decoding(job, device), resources, watchdog) as (path, video),
    ):
        plan = _make_plan(job, path, video, model)
        found = _Captions(plan)
        with (
            _acquire(job, plan, store, keys) as lease,
            closing(DatabaseWriter()) as rows,
            closing(found),
            _encoder_workers(job, lease) as workers,
        ):
            done = _stored_chunks(lease, len(plan.timeline))
            gpu = resources.gpu_watch(_gpu_uuid(device), watch.started)
            # Not while the store is asked: other runs have the room meanwhile.
            with resources.room(_bytes_in_flight(job, plan, encoder)), model.labeller() as labeller:
                opened = _Opened(job, plan, lease, done, labeller, encoder, workers, watch, watchdog)
                stages, on_gpu = opened.stages(rows, found, resources.end_decoding), device != "cpu"
                measured = Measured(
                    job, plan.crop, plan.preset, plan.prices, on_gpu, stages, watch, gpu, resources.children
                )
                watch.set_up()
                with closing(stages.extraction), gpu:
                    records = [*done.values(), *IMPLEMENTATIONS[job.implementation](stages)]
                encoder.end()
                _check_complete(records, len(plan.timeline))
                probabilities = _checked(stages.inference.probabilities)
                captions = found.all(probabilities)
                if job.refine:
                    compare = labeller.compare_with_ends
                    refine = partial(refine_captions, captions, plan.facts, plan.timeline, plan.crop, compare)
                    captions = watchdog.call("refining", refine)
            manifest = _manifest(job, plan, records, lease)
            metadata = _run_metadata(job, plan, stages.extraction.decoder, manifest, started_at, measured.metrics())
            lease.commit(manifest, rows.finish(metadata, captions))
    metrics = measured.metrics()
    forward = Counter(int(label) for label in probabilities[:, 0].argmax(axis=1))
    return CropInferResult(
        version=lease.version,
        frame_count=len(plan.timeline),
        label_counts={label.text: forward[label] for label in Label},
        processing_duration_seconds=metrics.total_seconds,
        caption_frame_extents_db_key=keys.database(lease.version),
        cropped_frames_prefix=keys.cropped_frames(lease.version),
        caption_count=len(captions),
        undecodable_samples=tuple(stages.extraction.decoder.undecodable_samples),
        picture_changes=tuple(stages.extraction.decoder.picture_changes),
        decoder=stages.extraction.decoder.name,
        captions=tuple(captions),
        metrics=metrics,
    )


def _gpu_uuid(device: str) -> str | None:
    return None if device == "cpu" else driver.device_uuid(device_number(device))


def _decoding(job: Job, device: str) -> Decoding:
    limits = DecoderLimits(job.isolate_memory_mib << 20, job.stall_seconds) if job.isolate else None
    gpu = None if device == "cpu" or job.isolate else device_number(device)
    return Decoding(gpu, job.device.startswith("cuda"), job.decode_threads, limits, job.stream)


def _bytes_in_flight(job: Job, plan: _Plan, encoder: ChunkEncoder) -> int:
    """Estimate of what the run's samples take at once; a GPU's batches are the largest."""
    batch = batch_samples(plan.crop)
    most = samples_in_flight(job.queue_size, encoder.calls, batch) + batch * _starting_batches(plan.crop)
    return min(most, len(plan.timeline)) * plan.crop.width * plan.crop.height * 3 // 2


def _starting_batches(crop: CropPixels) -> int:
    room = min(_STARTING_BYTES, memory_bytes() // 16)
    return room // (crop.width * crop.height * 3 // 2 * batch_samples(crop))


def _make_plan(job: Job, path: Path, video: Video, model: OpenedModel) -> _Plan:
    if job.refine and not video.facts.times_every_frame:
        raise VideoError(f"{job.video_key!r} does not time every frame, so it cannot be refined; encode it anew as MKV")
    if not job.partial:
        video.check_whole(job.video_key)
    elif video.truncation:
        log.warning("%r ends early: %s. It is taken as far as it goes", job.video_key, video.truncation)
    if len(video.facts.video_streams) > 1 and job.stream is None:
        streams = ", ".join(map(str, video.facts.video_streams))
        log.warning(
            "%r has video streams %s; %d is used, as players do; give another number as stream to use that",
            job.video_key,
            streams,
            video.facts.stream_index,
        )
    identity = model.identity()
    return _Plan(
        video=video,
        crop=resolve_crop(job.crop_region, video.facts),
        model=identity,
        preset=find_preset(job.preset),
        source=SourceRecord(
            shown_name(job.video_key), video.facts.size_bytes, content_fingerprint(path), video.facts.stream_index
        ),
        prices=_prices(job),
        costs=DecodingCosts.of(identity),
    )


def _prices(job: Job) -> Prices:
    prices = Prices.read(Path(job.prices)) if job.prices else Prices()
    return prices if job.price_per_hour is None else replace(prices, machine_per_hour=job.price_per_hour)


def _acquire(job: Job, plan: _Plan, store: Store, keys: VideoKeys) -> VersionLease:
    inputs = _inputs_digest(plan)
    there = newest_manifest(store, keys)
    if there is not None and there.source.fingerprint != plan.source.fingerprint:
        log.warning(
            "video id %r has versions of another file, %r (version %d); to keep them apart, give another id (in a list "
            "of a batch, in a column video_id)",
            keys.video_id,
            there.source.key,
            there.version,
        )
    return acquire_version(store, keys, inputs, fresh=job.new_version, lease_seconds=job.lease_seconds)


def _inputs_digest(plan: _Plan) -> str:
    """Digest of everything that the content of a version depends on; runs with the same digest give the same bytes."""
    inputs: dict[str, object] = {
        "source": plan.source.fingerprint,
        "stream": plan.source.stream,
        "crop_px": plan.crop.as_tuple(),
        "frame_rate": str(plan.timeline.frame_rate),
        "preset": [plan.preset.name, plan.preset.threads, dict(plan.preset.options)],
        # PyAV's wheel contains FFmpeg and libvpx: another version may encode to different bytes.
        "versions": [__version__, av.__version__],
        "model": plan.model.digest,
        "manifest_format": MANIFEST_FORMAT,
    }
    if FORMATS.get(plan.facts.pixel_format, PLAIN) != PLAIN:
        inputs["pixels"] = "upper bits"  # versions of before were converted by swscale
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@contextmanager
def _encoder_workers(job: Job, lease: VersionLease) -> Iterator[EncoderWorkers | None]:
    """Workers on other machines if the encoder is remote, else None; at the end, this run's blocks are removed."""
    if job.encoder not in REMOTE_ENCODER_NAMES:
        yield None
        return
    remove_old_blocks(lease.store, lease.keys)
    with closing(open_workers(job.encoder, job.encoder_workers)) as workers:
        try:
            yield workers
        finally:
            lease.store.delete_below(f"{lease.keys.segments(lease.version, lease.run_id)}/")


def open_workers(name: str, count: int) -> EncoderWorkers:
    """Connect to remote encoder workers.

    Args:
        name: ``ray`` or ``modal``.
        count: with Ray, cores of a local cluster that is started for this run; with Modal, expected number of workers.

    Raises:
        InputError: the extra of that name is not installed.
        ProcessingError: the workers cannot be reached.
    """
    if name == "ray":
        from caption_extents.encoders.ray_cluster import RayEncoderWorkers

        return RayEncoderWorkers(count)
    from caption_extents.encoders.modal_workers import ModalEncoderWorkers

    return ModalEncoderWorkers(count)


@dataclass(frozen=True)
class _Opened:
    """The opened objects from which the stages of a run are built."""

    job: Job
    plan: _Plan
    lease: VersionLease
    done: dict[ChunkPlan, ChunkRecord]
    labeller: PairLabeller
    encoder: ChunkEncoder
    workers: EncoderWorkers | None
    watch: Stopwatch
    watchdog: Watchdog

    def stages(self, rows: DatabaseWriter, found: _Captions, on_decoded: Callable[[], None]) -> Stages:
        """Build the stages.

        Args:
            rows: database to which pairs are written as soon as they are labelled.
            found: finds the captions as soon as all pairs are labelled.
            on_decoded: called when all samples have been decoded.
        """
        job, facts, count = self.job, self.plan.facts, len(self.plan.timeline)
        stored = sum(len(chunk.samples) for chunk in self.done)
        clocks = make_clocks(count, job.progress, self.watch.started, stored)
        form = ChunkFormat(
            frame_rate=self.plan.timeline.frame_rate,
            colour_range=facts.colour.range,
            colour_space=facts.colour.space,
            colour_primaries=facts.colour.primaries,
            colour_transfer=facts.colour.transfer,
        )
        loose = math.ceil(LOOSE_END_SECONDS * job.rate) if job.partial and facts.missing_bytes else 0
        offload = None
        if self.workers is not None:
            offload = Offload(
                self.workers, self.lease, self.plan.preset, form, count, self.done, clocks[ENCODING], clocks[UPLOAD]
            )
        decoder = self.plan.video.samples(self.plan.crop)
        return Stages(
            extraction=Extraction(
                decoder, count, job.max_undecodable_share, self.watchdog, clocks[EXTRACTION], loose, on_decoded
            ),
            inference=Inference(self.labeller, count, clocks[INFERENCE], _skip_nan(rows.add_pairs), found.begin),
            encoding=Encoding(self.encoder, form, clocks[ENCODING], count, self.done),
            upload=Upload(self.lease, clocks[UPLOAD]),
            workers=Workers(job.encoder_workers, job.upload_workers, job.queue_size, _starting_batches(self.plan.crop)),
            clocks=clocks,
            watchdog=self.watchdog,
            offload=offload,
        )


def _stored_chunks(lease: VersionLease, sample_count: int) -> dict[ChunkPlan, ChunkRecord]:
    """Planned chunks that an earlier run has already stored completely, with their records."""
    found = ((chunk, lease.done.get((chunk.level, chunk.first_sample))) for chunk in plan_chunks(sample_count))
    return {chunk: record for chunk, record in found if record is not None and record.samples == chunk.samples}


def _check_complete(records: list[ChunkRecord], sample_count: int) -> None:
    """Every sample must be in exactly one stored chunk before readers may see any."""
    planned = {(plan.level, plan.samples) for plan in plan_chunks(sample_count)}
    stored = {(record.level, record.samples) for record in records}
    if planned != stored or len(records) != len(planned):
        raise ProcessingError(
            f"{len(planned)} chunks were planned but {len(records)} stored ({len(planned - stored)} missing); "
            "this is a bug, please report it"
        )


def _skip_nan(add: Callable[[int, np.ndarray], None]) -> Callable[[int, np.ndarray], None]:
    """Skip NaN probabilities: the schema rejects them, and :func:`_checked` fails the run later."""
    return lambda first, probabilities: None if np.isnan(probabilities).any() else add(first, probabilities)


def _checked(probabilities: np.ndarray) -> np.ndarray:
    if np.isnan(probabilities).any():
        raise ProcessingError("the model gave no probability for some pair; its weights are damaged")
    return probabilities


class _Captions:
    """Finds the captions in a background thread, while the last chunks are still being encoded."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._thread = ThreadPoolExecutor(1, "captions")
        self._found: Future[list[Caption]] | None = None

    def begin(self, probabilities: np.ndarray) -> None:
        """Start to find the captions; called when the probabilities of all pairs, (P, 2, 5), are known."""
        self._found = self._thread.submit(self._decode, probabilities)

    def all(self, probabilities: np.ndarray) -> list[Caption]:
        """The captions: the result of the background thread, or computed now if :meth:`begin` was not called."""
        return self._found.result() if self._found else self._decode(probabilities)

    def _decode(self, probabilities: np.ndarray) -> list[Caption]:
        plan = self._plan
        return decode_captions(
            probabilities, plan.timeline.frame_rate, plan.costs, first_sample_seconds=plan.facts.first_sample_seconds
        )

    def close(self) -> None:
        """Wait for the background thread and end it."""
        self._thread.shutdown()


def _manifest(job: Job, plan: _Plan, records: list[ChunkRecord], lease: VersionLease) -> Manifest:
    return Manifest(
        version=lease.version,
        run_id=lease.run_id,
        source=plan.source,
        crop=job.crop_region.as_tuple(),
        crop_px=plan.crop.as_tuple(),
        sample_aspect_ratio=str(plan.facts.sample_aspect_ratio),
        frame_rate=str(plan.timeline.frame_rate),
        first_sample_seconds=float(plan.facts.first_sample_seconds),
        sample_count=len(plan.timeline),
        preset=plan.preset.name,
        model_version=plan.model.version,
        chunks=tuple(sorted(records, key=lambda record: (-record.level, record.samples[0]))),
    )


def _run_metadata(
    job: Job, plan: _Plan, decoder: SampleDecoder, manifest: Manifest, started_at: datetime, metrics: RunMetrics
) -> dict[str, object]:
    return {
        "cropped_frames_version": manifest.version,
        "model_version": manifest.model_version,
        "model_checkpoint_path": _model_path(job.model),
        "run_id": manifest.run_id,
        "started_at": started_at.isoformat(),
        "completed_at": datetime.now(UTC).isoformat(),
        "total_pairs": manifest.sample_count - 1,
        "processing_time_seconds": metrics.total_seconds,
        "frame_rate": manifest.frame_rate,
        "frame_count": manifest.sample_count,
        "first_sample_seconds": manifest.first_sample_seconds,
        "crop": ",".join(map(str, manifest.crop)),
        "crop_px": ",".join(map(str, manifest.crop_px)),
        "source_key": manifest.source.key,
        "source_fingerprint": manifest.source.fingerprint,
        "source_stream": manifest.source.stream,
        "encoder_preset": manifest.preset,
        "implementation": job.implementation,
        "decoder": decoder.name,
        "undecodable_samples": ",".join(map(str, decoder.undecodable_samples)),
        "picture_changes": json.dumps([asdict(change) for change in decoder.picture_changes]),
        "package_version": __version__,
        "metrics": json.dumps(metrics.to_dict()),
    }


def _model_path(model: str | os.PathLike[str] | PairModel | None) -> str:
    if is_object(model):
        return type(model).__qualname__
    return DEFAULT_WEIGHTS.name if model is None else os.fspath(model)
