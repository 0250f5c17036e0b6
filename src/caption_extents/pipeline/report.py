"""The metrics of a run as text for people."""

from __future__ import annotations

from caption_extents.pipeline.clocks import ENCODING, EXTRACTION, INFERENCE, UPLOAD
from caption_extents.pipeline.gpu_use import GpuUse
from caption_extents.pipeline.metrics import Cost, OffloadMetrics, RunMetrics, StageMetrics


def format_metrics(metrics: RunMetrics) -> str:
    """The "Performance metrics" block."""
    extraction, inference, encoding, upload = (
        metrics.stages[name] for name in (EXTRACTION, INFERENCE, ENCODING, UPLOAD)
    )
    overlap = metrics.overlap
    lines = [
        f"Performance metrics ({metrics.implementation}, {metrics.cpu_count} cores)",
        f"  Total        {_s(metrics.total_seconds)}",
        f"  Start-up     {_s(metrics.startup_seconds)} to the first samples",
        f"  CPU          {_s(metrics.cpu_seconds)}",
        "  Extraction",
        f"    {_time(extraction)}, {extraction.samples} samples, {extraction.samples_per_second:.1f} fps",
        *_idle(extraction),
        "  Inference",
        f"    {_time(inference)}, {inference.items} pairs, {_rate(inference.items, inference.time_seconds)} pairs/s",
        *_idle(inference),
        "  Encoding",
        f"    {_time(encoding)}, {encoding.items} chunks, {encoding.samples_per_second:.1f} fps",
        *_idle(encoding),
        "  Upload",
        f"    {_time(upload)}, {upload.nbytes / 1e6:.2f} MB, {_rate(upload.nbytes / 1e6, upload.time_seconds)} MB/s",
        *_idle(upload),
        "  Overlap analysis",
        f"    inference waited {_s(overlap.inference_waited_for_extraction_seconds)} for extraction",
        f"    bottleneck: {overlap.bottleneck}, {overlap.bottleneck_ratio:.1f}x the next stage",
        f"    stages one after the other would take {_s(overlap.sum_of_stages_seconds)}",
        f"    {overlap.advice}",
        f"  Peak memory  {metrics.peak_memory_bytes / 2**20:.0f} MiB",
    ]
    if metrics.gpu is not None:
        lines += _gpu(metrics.gpu)
    if metrics.offload is not None:
        lines += _offload(metrics.offload)
    return "\n".join([*lines, *_cost(metrics.cost)])


def _gpu(gpu: GpuUse) -> list[str]:
    return [
        f"  GPU          decoder busy {gpu.decoder:.0%}, compute {gpu.compute:.0%}, "
        f"{gpu.added_memory_bytes / 2**20:.0f} MiB taken",
        f"    PCIe {gpu.pcie_in_bytes_per_second / 1e6:.0f} MB/s in, "
        f"{gpu.pcie_out_bytes_per_second / 1e6:.0f} MB/s out",
    ]


def _offload(offload: OffloadMetrics) -> list[str]:
    gain = "saved" if offload.saved_seconds >= 0 else "lost"
    workers = f"{offload.worker_count} {offload.workers} workers"
    return [
        f"  Offloaded    to {workers}, {offload.segment_bytes / 1e6:.2f} MB sent",
        f"    {_s(offload.worker_cpu_seconds)} of CPU there",
        f"    {gain} {_s(abs(offload.saved_seconds))} against a forecast {_s(offload.forecast_here_seconds)} without",
    ]


def _cost(cost: Cost) -> list[str]:
    lines = [f"  Cost         {_s(cost.gpu_seconds)} of GPU, {_s(cost.cpu_seconds)} of CPU{_money(cost.money)}"]
    return lines + [f"    {other.what}: about {_s(other.seconds)}{_money(other.money)}" for other in cost.alternatives]


def _money(money: float | None) -> str:
    return "" if money is None else f", {money:.6f}"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _time(stage: StageMetrics) -> str:
    workers = f" by {stage.workers} workers" if stage.workers > 1 else ""
    return f"{_s(stage.time_seconds)}, busy {_s(stage.busy_seconds)}{workers}"


def _idle(stage: StageMetrics) -> list[str]:
    if stage.wait_input_seconds + stage.wait_room_seconds < 0.005:
        return []
    return [f"    waited {_s(stage.wait_input_seconds)} for input, {_s(stage.wait_room_seconds)} for room"]


def _rate(amount: float, seconds: float) -> str:
    return f"{amount / seconds:.1f}" if seconds > 0 else "-"
