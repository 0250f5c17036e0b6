"""The job as other code calls it: arguments in one validated object, three functions, one result.

Nothing heavy is imported before a job runs.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from caption_extents.cores import usable_cores
from caption_extents.errors import InputError, as_own_errors
from caption_extents.region import CropRegion
from caption_extents.storage.keys import LONGEST_ID
from caption_extents.watchdog import DEFAULT_STALL_SECONDS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from caption_extents.model.interface import PairModel
    from caption_extents.pipeline.analysis import Prices
    from caption_extents.pipeline.metrics import ProgressCallback, RunMetrics
    from caption_extents.video.gpu_start import GpuStart

DEFAULT_FRAME_RATE = 10.0
DEFAULT_ENCODER_WORKERS = 4
MAX_ENCODERS_OF_MACHINE = 64
"""Of those that are chosen without being asked for: each takes memory, and no decoder feeds more."""
DEFAULT_UPLOAD_WORKERS = 16
"""Uploads wait for the store, not for this machine: enough of them hide a store that answers in a fifth of a second."""
DEFAULT_STORE = "caption-extents-store"
DEFAULT_PRESET = "fast"
DEFAULT_IMPLEMENTATION = "pipelined"
IMPLEMENTATION_NAMES = ("pipelined", "sequential")
REMOTE_ENCODER_NAMES = ("ray", "modal")
ENCODER_NAMES = ("auto", "threads", "processes", *REMOTE_ENCODER_NAMES)
DEFAULT_ENCODER = "auto"
DEFAULT_DEVICE = "auto"
DEVICE_PATTERN = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
DEFAULT_LEASE_SECONDS = 12.0
MIN_LEASE_SECONDS = 0.2
MAX_FRAME_RATE = 240
MAX_WORKERS = 256
MAX_INFERENCE_THREADS = 16
"""Of those that are chosen without being asked for."""

_ID_DIGITS = 8
"""Of a name's digest, where letters of the name were lost."""

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""What stands for NVIDIA's GPUs, on Linux and in Windows' Linux."""

STORE_VARIABLE = "CAPTION_EXTENTS_STORE"
IMPLEMENTATION_VARIABLE = "CAPTION_EXTENTS_IMPLEMENTATION"
PRICES_VARIABLE = "CAPTION_EXTENTS_PRICES"
PRICE_VARIABLE = "CAPTION_EXTENTS_PRICE_PER_HOUR"


def encoders_of_machine(shares: int = 1) -> int:
    """Chunks to encode at once where a machine, or one of so many equal shares of it, has nothing else to do."""
    return encoders_of_cores(usable_cores() // shares)


def encoders_of_cores(cores: int) -> int:
    """Chunks to encode at once on so many cores: one for each, and ``DEFAULT_ENCODER_WORKERS`` at least."""
    return min(MAX_ENCODERS_OF_MACHINE, max(DEFAULT_ENCODER_WORKERS, cores))


class JobOptions(TypedDict, total=False):
    """Keyword-only arguments that the three functions share; :class:`Job` says what they mean."""

    store: str | os.PathLike[str] | None
    device: str
    preset: str
    model: str | os.PathLike[str] | PairModel | None
    encoder: str
    decode_threads: int
    inference_workers: int | None
    upload_workers: int
    queue_size: int
    max_undecodable_share: float
    partial: bool
    refine: bool
    stall_seconds: float
    isolate: bool
    isolate_memory_mib: int
    price_per_hour: float | None
    prices: str | os.PathLike[str] | None
    new_version: bool
    lease_seconds: float
    progress: ProgressCallback | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """Validated arguments of a job.

    Attributes:
        video_key: a key in the store, or a path of this machine.
        tenant_id, video_id: parts of the keys that are written.
        crop_region: where captions stand.
        frame_rate: samples a second; a float is taken as the decimal number that it prints as.
        encoder_workers: chunks encoded at once.
        implementation: ``pipelined`` or ``sequential``.
        store: folder or URL; by default the environment's ``CAPTION_EXTENTS_STORE``, or a folder beside.
        device: where to decode and compute: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for a GPU if there is one;
            with ``auto``, a video that the GPU cannot decode is decoded on the CPU.
        preset: encoder preset; None for the default.
        model: weights (``.safetensors``), a checkpoint of the ResNet-50 fusion network (``.pt``), or any object that
            follows :class:`~caption_extents.model.interface.PairModel`; None for the package's own weights.
        encoder: where chunks are encoded: ``threads`` of this process, ``processes`` beside it (``auto`` takes them
            where a GPU decodes, and threads elsewhere), or the workers of a ``ray`` cluster or of a ``modal`` app, to
            which samples go through the store. ``encoder_workers`` is then the size of a cluster that is started for
            this run.
        decode_threads: of the CPU decoder, 0 for one for each core.
        inference_workers: threads that compute the model on a CPU; None for one for each core in the pipelined
            implementation, and for one in the sequential, which does one thing at a time.
        upload_workers: objects uploaded at once.
        queue_size: items that wait between two stages.
        refine: look at the source's own frames around each boundary, so that captions' times are exact to a frame.
        stall_seconds: a run fails when reading, decoding or encoding gives no sign of life for this long.
        isolate: read and decode the video in a process of its own, on the CPU, so that a crash in a codec is an error.
        isolate_memory_mib: address space that this process may take, libraries included.
        partial: take a file that ends early, as a download that was cut off, as far as it goes.
        max_undecodable_share: a run fails when more than this share of its samples cannot be decoded.
        price_per_hour: of this machine, for the cost in the metrics; by default ``CAPTION_EXTENTS_PRICE_PER_HOUR``, or
            what ``prices`` says.
        prices: a TOML file with prices of machine types (docs/deployment.md); by default ``CAPTION_EXTENTS_PRICES``.
        new_version: claim a new version even if a run with the same inputs has left one unfinished.
        lease_seconds: a run that gives no sign of life for this long counts as dead, and may be taken over.
        progress: called from worker threads with each stage's progress.

    Raises:
        InputError: an argument is not usable; names it, its value and what is allowed.
    """

    video_key: str
    tenant_id: str
    video_id: str
    crop_region: CropRegion
    frame_rate: float | Fraction = DEFAULT_FRAME_RATE
    encoder_workers: int = DEFAULT_ENCODER_WORKERS
    implementation: str = DEFAULT_IMPLEMENTATION
    store: str | os.PathLike[str] | None = None
    device: str = DEFAULT_DEVICE
    preset: str = DEFAULT_PRESET
    model: str | os.PathLike[str] | PairModel | None = None
    encoder: str = DEFAULT_ENCODER
    decode_threads: int = 0
    inference_workers: int | None = None
    upload_workers: int = DEFAULT_UPLOAD_WORKERS
    queue_size: int = 2
    max_undecodable_share: float = 0.01
    partial: bool = False
    refine: bool = False
    stall_seconds: float = DEFAULT_STALL_SECONDS
    isolate: bool = False
    isolate_memory_mib: int = 8192
    price_per_hour: float | None = None
    prices: str | os.PathLike[str] | None = None
    new_version: bool = False
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    progress: ProgressCallback | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.crop_region, CropRegion):
            raise InputError(f"crop_region is {self.crop_region!r}; give a CropRegion")
        _check_rate(self.frame_rate)
        for name, least in (("encoder_workers", 1), ("upload_workers", 1), ("queue_size", 1), ("decode_threads", 0)):
            _check_count(name, getattr(self, name), least)
        if self.inference_workers is not None:
            _check_count("inference_workers", self.inference_workers, 1)
        if self.implementation not in IMPLEMENTATION_NAMES:
            raise InputError(
                f"implementation {self.implementation!r} is unknown; choose {' or '.join(IMPLEMENTATION_NAMES)}"
            )
        if self.encoder not in ENCODER_NAMES:
            raise InputError(f"encoder {self.encoder!r} is unknown; choose {', '.join(ENCODER_NAMES)}")
        if self.encoder not in ("auto", "threads") and self.implementation == "sequential":
            raise InputError(
                f"the sequential implementation encodes in this process; leave out encoder {self.encoder!r}"
            )
        if self.encoder in REMOTE_ENCODER_NAMES and self.store_address.startswith("memory:"):
            raise InputError(
                f"encoder {self.encoder!r} cannot read a store in this process's memory; give another store"
            )
        if not DEVICE_PATTERN.fullmatch(self.device):
            raise InputError(f"device {self.device!r} is unknown; choose auto, cpu, cuda or cuda:N")
        if not MIN_LEASE_SECONDS <= self.lease_seconds <= 3600:
            raise InputError(
                f"lease_seconds is {self.lease_seconds!r}; give seconds between {MIN_LEASE_SECONDS} and 3600"
            )
        if not 0.1 <= self.stall_seconds <= 86_400:
            raise InputError(f"stall_seconds is {self.stall_seconds!r}; give seconds between 0.1 and 86400")
        if not 256 <= self.isolate_memory_mib <= 1 << 24:
            raise InputError(f"isolate_memory_mib is {self.isolate_memory_mib!r}; give MiB between 256 and {1 << 24}")
        if self.isolate and self.device.startswith("cuda"):
            raise InputError(f"isolate decodes on the CPU, and device is {self.device!r}; give device 'auto' or 'cpu'")
        if self.isolate and self.refine:
            raise InputError("refine reads the video in this process, which isolate is to prevent; give one of them")
        if not 0 <= self.max_undecodable_share <= 1:
            raise InputError(f"max_undecodable_share is {self.max_undecodable_share!r}; give a share between 0 and 1")
        object.__setattr__(self, "video_key", os.fspath(self.video_key))
        if self.price_per_hour is None and os.environ.get(PRICE_VARIABLE):
            object.__setattr__(self, "price_per_hour", _price(os.environ[PRICE_VARIABLE]))
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise InputError(f"price_per_hour is {self.price_per_hour!r}; give a price, 0 or more")

    @property
    def machine_prices(self) -> Prices:
        """What this job's machines cost.

        Raises:
            InputError: the file with prices cannot be used.
        """
        from caption_extents.pipeline.analysis import Prices

        path = self.prices or os.environ.get(PRICES_VARIABLE)
        prices = Prices.read(Path(path)) if path else Prices()
        return prices if self.price_per_hour is None else replace(prices, machine_per_hour=self.price_per_hour)

    @property
    def inference_threads(self) -> int:
        """How many threads compute the model on a CPU."""
        alone = 1 if self.implementation == "sequential" else min(MAX_INFERENCE_THREADS, usable_cores())
        return self.inference_workers or alone

    @property
    def store_address(self) -> str:
        """The store that was asked for, by argument or by environment."""
        return os.fspath(self.store or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)

    @property
    def rate(self) -> Fraction:
        """The frame rate, exactly."""
        return self.frame_rate if isinstance(self.frame_rate, Fraction) else Fraction(str(self.frame_rate))


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_WORKERS:
        raise InputError(f"{name} is {value!r}; give a whole number between {least} and {MAX_WORKERS}")


def _check_rate(rate: float | Fraction) -> None:
    usable = isinstance(rate, (int, float, Fraction)) and not isinstance(rate, bool)
    shown = str(rate) if isinstance(rate, Fraction) else repr(rate)
    if not usable or not math.isfinite(rate) or not 0.001 <= rate <= MAX_FRAME_RATE:
        raise InputError(f"frame_rate is {shown}; give samples a second between 0.001 and {MAX_FRAME_RATE}")


def id_from_name(video: str) -> str:
    """An id out of a file's name: letters, digits, ``.``, ``_`` and ``-`` stay, and anything else becomes ``-``.

    Accents go. Where letters go, of other scripts, or the end of a long name, a digest of the name takes their place:
    two films must not have one id.
    """
    name = unicodedata.normalize("NFC", Path(video).stem)
    letters = [letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter)]
    kept = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", "".join(letters))).strip("-._")
    if kept and len(kept) <= LONGEST_ID and all(letter.isascii() or not letter.isalnum() for letter in letters):
        return kept
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:_ID_DIGITS]
    begin = kept[: LONGEST_ID - _ID_DIGITS - 1].rstrip("-._")
    return f"{begin or 'video'}-{digest}"


def parse_rate(text: str) -> Fraction:
    """Samples a second, exactly, as ``10``, ``12.5`` or ``30000/1001``.

    Raises:
        InputError: it is no such number.
    """
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"the rate is {text!r}; give samples a second, as 10 or 30000/1001") from None
    _check_rate(rate)
    return rate


def _price(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{PRICE_VARIABLE} is {text!r}; give a number") from None


@dataclass(frozen=True)
class CropInferResult:
    """What a finished job has made.

    Attributes:
        version: N of ``cropped_frames_vN``.
        frame_count: samples of the video.
        label_counts: pairs for each forward label.
        processing_duration_seconds: wall time of the job.
        caption_frame_extents_db_key: the version's database.
        cropped_frames_prefix: prefix of the version's chunks and manifest.
        caption_count: captions found.
        undecodable_samples: samples that show the last good frame instead of their own.
        decoder: the decoder that was used.
        metrics: where the time went.
    """

    version: int
    frame_count: int
    label_counts: dict[str, int]
    processing_duration_seconds: float
    caption_frame_extents_db_key: str
    cropped_frames_prefix: str
    caption_count: int
    undecodable_samples: tuple[int, ...]
    decoder: str
    metrics: RunMetrics = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "metrics"}
        return {**fields, "undecodable_samples": list(self.undecodable_samples), "metrics": self.metrics.to_dict()}


def crop_and_infer_caption_frame_extents(
    video_key: str,
    tenant_id: str,
    video_id: str,
    crop_region: CropRegion,
    frame_rate: float | Fraction = DEFAULT_FRAME_RATE,
    encoder_workers: int = DEFAULT_ENCODER_WORKERS,
    *,
    implementation: str | None = None,
    **options: Unpack[JobOptions],
) -> CropInferResult:
    """Find every caption of a video and store its cropped frames.

    Args:
        video_key: a key in the store, or a path of this machine.
        tenant_id: part of the keys that are written.
        video_id: part of the keys that are written.
        crop_region: where captions stand.
        frame_rate: samples a second.
        encoder_workers: chunks encoded at once.
        implementation: ``pipelined`` or ``sequential``, which give identical chunks and results; by default the
            environment's ``CAPTION_EXTENTS_IMPLEMENTATION``, or ``pipelined``.
        options: as described at :class:`Job`.

    Raises:
        InputError: (a ValueError) an argument or the video cannot be used; nothing was written.
        ProcessingError: (a RuntimeError) a stage failed; readers see nothing of the run, and the next one with the same
            inputs goes on where it stopped.
    """
    chosen = implementation or os.environ.get(IMPLEMENTATION_VARIABLE) or DEFAULT_IMPLEMENTATION
    job = Job(
        video_key=video_key,
        tenant_id=tenant_id,
        video_id=video_id,
        crop_region=crop_region,
        frame_rate=frame_rate,
        encoder_workers=encoder_workers,
        implementation=chosen,
        **options,
    )
    with as_own_errors(), _early_start(job) as started:
        from caption_extents.pipeline.run import run_job

        return run_job(job, started)


@contextmanager
def _early_start(job: Job) -> Iterator[GpuStart | None]:
    """Processes that index and decode the video while this one imports PyTorch, where a GPU is likely to decode it."""
    from caption_extents.video import driver

    path = Path(job.video_key).expanduser()
    # A driver without a device is no reason to begin, unless a GPU was asked for.
    likely = job.device.startswith("cuda") or any(map(os.path.exists, _GPU_DEVICES))
    if job.device == "cpu" or not likely or job.isolate or not path.is_file() or not driver.is_there():
        yield None
        return
    from caption_extents.video.gpu_start import GpuStart

    ordinal = int(job.device.partition(":")[2] or 0)
    with closing(GpuStart.begin(path, job.rate, job.crop_region, ordinal, job.stall_seconds)) as started:
        yield started


def crop_and_infer_caption_frame_extents_pipelined(
    video_key: str,
    tenant_id: str,
    video_id: str,
    crop_region: CropRegion,
    frame_rate: float | Fraction = DEFAULT_FRAME_RATE,
    encoder_workers: int = DEFAULT_ENCODER_WORKERS,
    **options: Unpack[JobOptions],
) -> CropInferResult:
    """As :func:`crop_and_infer_caption_frame_extents`, with all stages at once."""
    return crop_and_infer_caption_frame_extents(
        video_key, tenant_id, video_id, crop_region, frame_rate, encoder_workers, implementation="pipelined", **options
    )


def crop_and_infer_caption_frame_extents_sequential(
    video_key: str,
    tenant_id: str,
    video_id: str,
    crop_region: CropRegion,
    frame_rate: float | Fraction = DEFAULT_FRAME_RATE,
    encoder_workers: int = DEFAULT_ENCODER_WORKERS,
    **options: Unpack[JobOptions],
) -> CropInferResult:
    """As :func:`crop_and_infer_caption_frame_extents`, one stage after the other."""
    return crop_and_infer_caption_frame_extents(
        video_key, tenant_id, video_id, crop_region, frame_rate, encoder_workers, implementation="sequential", **options
    )
