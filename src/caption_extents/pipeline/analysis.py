"""Analysis of a run: its bottleneck, forecasts for other configurations, and costs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from caption_extents.chunks.presets import PRESETS, EncoderPreset
from caption_extents.encoders.blocks import BLOCK_SAMPLES
from caption_extents.errors import InputError
from caption_extents.pipeline.clocks import ENCODING, EXTRACTION, INFERENCE, UPLOAD
from caption_extents.pipeline.forecast import Work
from caption_extents.pipeline.metrics import Alternative, Cost, OffloadMetrics, OverlapAnalysis, StageMetrics

_BALANCED = 1.1
"""Stages whose occupancy differs by less than this factor count as equally busy."""

_WORTH_WHILE = 0.9
"""Offloading is advised when it is forecast to take less than this share of the time."""

_PACKED_BYTES_PER_CPU_SECOND = 300e6
"""Throughput of one core when it packs samples into lossless blocks, in bytes of raw samples per second."""


def measured_work(
    stages: Mapping[str, StageMetrics],
    *,
    total_seconds: float,
    cpu_seconds: float,
    setup_cpu_seconds: float,
    cores: int,
    on_gpu: bool,
    sample_bytes: int,
    preset: EncoderPreset,
    encoder_workers: int,
    worker_cpu_seconds: float | None,
) -> Work:
    """Compute the work of a finished run, the input of forecasts.

    Args:
        stages: metrics of each stage, by name.
        total_seconds: wall time of the run.
        cpu_seconds: CPU time of the process and its child processes during the run.
        setup_cpu_seconds: the part of ``cpu_seconds`` before the first stage started.
        cores: number of cores that the process may use.
        on_gpu: whether decoding and inference ran on a GPU.
        sample_bytes: size of one cropped sample in bytes.
        preset: the encoder preset.
        encoder_workers: number of chunks encoded at once, if they were encoded on this machine.
        worker_cpu_seconds: CPU time of workers on other machines; None if chunks were encoded on this machine.
    """
    samples = stages[EXTRACTION].samples
    packing = samples * sample_bytes / _PACKED_BYTES_PER_CPU_SECOND
    if worker_cpu_seconds is None:
        encoding = stages[ENCODING].thread_seconds * preset.threads_busy
    else:
        encoding = max(0.0, worker_cpu_seconds - packing)
    starts = [stage.started for stage in stages.values() if stage.started]
    ends = [stage.started + stage.time_seconds for stage in stages.values() if stage.started]
    span = max(ends) - min(starts) if starts else 0.0
    decode_and_infer = max(stages[EXTRACTION].seconds_at_full_speed, stages[INFERENCE].seconds_at_full_speed)
    return Work(
        fixed_wall_seconds=max(0.0, total_seconds - span),
        gpu_wall_seconds=decode_and_infer if on_gpu else 0.0,
        pipeline_seconds=max(
            0.0, cpu_seconds - setup_cpu_seconds - (encoding if worker_cpu_seconds is None else packing)
        ),
        encoding_seconds=encoding,
        packing_seconds=packing,
        segments=max(1, -(-samples // BLOCK_SAMPLES)),
        cores=cores,
        encoder_workers=encoder_workers,
        threads_busy=preset.threads_busy,
        encoded_here=worker_cpu_seconds is None,
    )


def analyse_overlap(stages: dict[str, StageMetrics], implementation: str, work: Work) -> OverlapAnalysis:
    """Find the bottleneck from measured busy times, and say what to change."""
    paces = {name: metrics.seconds_at_full_speed for name, metrics in stages.items()}
    slowest = max(paces, key=lambda name: paces[name])
    runner_up = max((pace for name, pace in paces.items() if name != slowest), default=0.0)
    ratio = paces[slowest] / runner_up if runner_up > 0 else float("inf")
    return OverlapAnalysis(
        bottleneck=slowest,
        bottleneck_ratio=ratio,
        inference_waited_for_extraction_seconds=stages[INFERENCE].wait_input_seconds,
        sum_of_stages_seconds=sum(paces.values()),
        advice=_advice(paces, slowest, ratio, implementation, work),
    )


def _advice(paces: dict[str, float], slowest: str, ratio: float, implementation: str, work: Work) -> str:
    if implementation == "sequential":
        return "the pipelined implementation runs the stages at once"
    if slowest == ENCODING:
        return _encoding_advice(paces, work)
    if ratio < _BALANCED:
        return "the stages are balanced; a faster machine is what helps"
    return {
        EXTRACTION: "decoding is the limit: more decoder threads if cores are idle, or a GPU decoder",
        INFERENCE: "inference is the limit: more inference workers if cores are idle, or a GPU",
        UPLOAD: "the store is the limit: more uploads at once, or a store that is nearer",
    }[slowest]


def _encoding_advice(paces: dict[str, float], work: Work) -> str:
    pipeline = max(paces[EXTRACTION], paces[INFERENCE])
    times = f"{paces[ENCODING] / pipeline:.1f}x slower" if pipeline > 0 else "slower"
    problem = f"encoding is {times} than the decode and inference pipeline"
    workers = work.workers_that_keep_up()
    if not work.encoded_here:
        return f"{problem}: {workers} workers would keep up, or a faster preset"
    here, there = work.seconds_here(), work.seconds_offloaded(workers)
    if there < here * _WORTH_WHILE:
        return (
            f"{problem}: offload to {workers} CPU workers elsewhere (about {there:.0f} s instead of {here:.0f} s), "
            "or use a faster preset"
        )
    return f"{problem}: use a faster preset; other machines would hardly help"


def offload_metrics(workers: str, count: int, segment_bytes: int, work: Work, total_seconds: float) -> OffloadMetrics:
    """What offloading has cost and saved."""
    here = work.seconds_here()
    return OffloadMetrics(
        workers=workers,
        worker_count=count,
        segment_bytes=segment_bytes,
        worker_cpu_seconds=work.worker_seconds,
        forecast_here_seconds=here,
        saved_seconds=here - total_seconds,
    )


@dataclass(frozen=True)
class Prices:
    """What machines cost.

    Attributes:
        machine_per_hour: of the job's machine; None if unknown.
        worker_core_per_hour: of a core of an encoding worker; None if unknown.
    """

    machine_per_hour: float | None = None
    worker_core_per_hour: float | None = None

    @classmethod
    def read(cls, path: Path) -> Prices:
        """Read a TOML file: prices an hour by machine type, and which types the job and the workers use.

        Raises:
            InputError: it cannot be read, names a type that has no price, or has one that is no number.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read the prices in {str(path)!r}: {error}") from error
        prices = table.get("price_per_hour", {})
        return cls(*(_price_of(path, prices, table.get(role)) for role in ("job", "worker")))


def _price_of(path: Path, prices: object, kind: object) -> float | None:
    if kind is None:
        return None
    price = prices.get(kind) if isinstance(prices, dict) else None
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < math.inf:
        raise InputError(f"{str(path)!r} gives no price for the machine type {kind!r}; add it under [price_per_hour]")
    return float(price)


def cost_of_run(
    prices: Prices, work: Work, preset: EncoderPreset, *, total_seconds: float, cpu_seconds: float, on_gpu: bool
) -> Cost:
    """What a run has cost, and what it would have cost otherwise."""
    worker_seconds = 0.0 if work.encoded_here else work.worker_seconds
    return Cost(
        gpu_seconds=total_seconds if on_gpu else 0.0,
        cpu_seconds=cpu_seconds + worker_seconds,
        money=_money(prices, total_seconds, worker_seconds),
        alternatives=tuple(_alternatives(prices, work, preset)),
    )


def _money(prices: Prices, seconds: float, worker_seconds: float) -> float | None:
    if prices.machine_per_hour is None or (worker_seconds and prices.worker_core_per_hour is None):
        return None
    return (prices.machine_per_hour * seconds + (prices.worker_core_per_hour or 0.0) * worker_seconds) / 3600


def _alternatives(prices: Prices, work: Work, preset: EncoderPreset) -> list[Alternative]:
    found = []

    def add(what: str, seconds: float, worker_seconds: float) -> None:
        found.append(Alternative(what, seconds, _money(prices, seconds, worker_seconds)))

    if work.encoded_here:
        workers = work.workers_that_keep_up()
        add(f"offloaded to {workers} workers", work.seconds_offloaded(workers), work.worker_seconds)
    else:
        add("encoded here", work.seconds_here(), 0.0)
    for other in PRESETS.values():
        if other.name != preset.name:
            factor = other.relative_cpu / preset.relative_cpu
            changed = replace(work, encoding_seconds=work.encoding_seconds * factor, threads_busy=other.threads_busy)
            add(f"preset {other.name}", changed.seconds_here(), 0.0)
    return found
