"""Write docs/performance.md from the results under docs/results: ``python -m benchmarks.render``.

The chart and the table of encoder settings in docs/gpu.md are written as well.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.throughput import table

_PAGE = """# Performance

Each figure is printed by a command under `benchmarks/`, with `--save` it goes into [results/](results/) with versions
and commit, and `python -m benchmarks.render` writes this page. Times vary by a few per cent from run to run; ratios are
between runs that alternate.

Machine: {cpu}, {cores} cores, no GPU. {date}, Python {python}, torch {torch}, PyAV {av}.

## Both implementations: `python -m benchmarks.throughput`

{samples} samples: three minutes of 1280x720 H.264 at 30 frames a second, crop 1024x102, preset `reference`. Median
of {repeats} runs each. The command compares all chunks and rows of both before it prints a time.

{table}

In the pipelined run the stages overlap, so the time of each spans most of the total.

- **Floor.** The stages need {stage_cpu_seconds:.1f} CPU seconds, {floor_seconds:.2f} s on {cores} cores. The pipelined
  run takes {pipelined_over_floor:.2f} times that, set-up included.
- **Where the speedup comes from.** The sequential implementation does one thing at a time: one batch, one chunk. Only
  FFmpeg's decoder and libvpx use threads of their own. With `--inference-workers {cores}` its inference uses all cores
  too; it then takes {sequential_inference_on_all_cores_seconds:.2f} s, and overlap alone is worth
  {speedup_by_overlap_alone:.2f}x: with two cores and nothing but CPU work, stages that each keep both cores busy gain
  little from running at once. Overlap pays where stages use different hardware: a GPU, a video decoder, a network.
- **Model.** {model_cpu_ms_per_sample:.1f} ms of CPU a sample, preprocessing and both directions of every pair included.

## Memory: `python -m benchmarks.memory`

Peak resident memory of the process on 2 and on 20 minutes of the same kind of video.

| Implementation | 2 minutes | 20 minutes | ratio |
|---|---|---|---|
{memory}

Most of it is the decoder's frames, the encoders, and the activations of the slices that are computed at once.
The sequential implementation keeps samples and chunks in a temporary file between stages.

## Safety: `python -m benchmarks.safety`

One minute of the same video on the folder store, with manifest, checksums, journal and heartbeat and without them,
alternating; the best of {safety_repeats} runs each: {safety_percent:+.1f}% time.

## Uploads: `python -m benchmarks.uploads`

One minute of the same video, with every write of the store {upload_latency} s slower and without, alternating: encoders
waited {upload_wait:.2f} s for room, and encoding took {upload_ratio:.2f} times as long.

## Offloading: `python -m benchmarks.offload`

{offload_minutes:g} minutes of the same kind of video with a large crop. The run that encodes by itself forecasts what
it takes with {offload_workers} Ray workers elsewhere; two cores play two machines.

| | encoding here | forecast | measured |
|---|---|---|---|
{offload}

## Text: `python -m benchmarks.ocr`

| | readings | time | CPU |
|---|---|---|---|
{ocr}

## Many machines: `python -m benchmarks.capacity`

See [scaling.md](scaling.md).

## On a GPU

See [gpu.md](gpu.md).
"""


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def _encoder_rows() -> dict[str, dict[str, Any]]:
    (video,) = _load("encode")["videos"].values()
    return dict(video["settings"])


def encoder_table() -> str:
    """Markdown, one row for each encoder setting."""
    rows = ["| setting | times as fast | bytes, same PSNR | bytes, same SSIM |", "|---|---|---|---|"]
    rows.append("| `reference` (good 2, two threads) | 1 | 1 | 1 |")
    for name, row in _encoder_rows().items():
        sizes = [row["size_at_same_psnr"], row["size_at_same_ssim"]]
        rows.append(
            f"| {name} | {row['speed_up']:.2f} | " + " | ".join(f"{size:.2f}" if size else "-" for size in sizes) + " |"
        )
    return "\n".join(rows)


_CHANGE_NOTHING = {"good 5, lag 0", "good 5, screen", "good 5, row-mt", "realtime 5, aq 0"}
"""Settings that would lie on others in the chart."""


def draw_encoder_settings(path: Path) -> None:
    """Bytes at the reference's SSIM over speed; good settings are to the lower right."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    kinds = {"good": "tab:blue", "realtime": "tab:orange"}
    for name, row in _encoder_rows().items():
        if row["size_at_same_ssim"] and name not in _CHANGE_NOTHING:
            x, y, colour = row["speed_up"], row["size_at_same_ssim"], kinds[name.split()[0]]
            axes.plot(x, y, "o", color=colour, markersize=5)
            axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.plot(1, 1, "k*", markersize=11)
    axes.annotate("reference", (1, 1), xytext=(-6, -12), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.22, 14)
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25", "0.5", "1", "2", "4", "8"])
    axes.set_xlabel("times as fast as reference (CPU time)")
    axes.set_ylabel("bytes at the same SSIM")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


_ENCODER_TABLE = re.compile(r"\| setting \| times as fast .*?(?=\n\n)", re.DOTALL)


def _render_encoder_settings() -> None:
    draw_encoder_settings(RESULTS.parent / "pictures" / "encoder-settings.png")
    page = RESULTS.parent / "gpu.md"
    page.write_text(_ENCODER_TABLE.sub(lambda _: encoder_table(), page.read_text()))


def main() -> None:
    """Command line."""
    _render_encoder_settings()
    throughput, memory, safety, uploads = (_load(name) for name in ("throughput", "memory", "safety", "uploads"))
    offload, ocr = _load("offload"), _load("ocr")
    latency, distant = list(uploads["latency_seconds"].items())[-1]
    rows = [
        f"| {name} | {peaks['2']:.0f} MiB | {peaks['20']:.0f} MiB | {peaks['ratio']:.3f} |"
        for name, peaks in memory["peak_mib_by_minutes"].items()
    ]
    page = _PAGE.format(
        **throughput["machine"],
        **{name: value for name, value in throughput.items() if not isinstance(value, dict)},
        table=table(throughput),
        memory="\n".join(rows),
        upload_latency=latency,
        upload_wait=distant["encoders_waited_for_room_seconds"],
        upload_ratio=uploads["encoding_ratio"],
        offload_minutes=offload["minutes"],
        offload_workers=offload["workers"],
        offload="\n".join(
            f"| {name} | {row['here_seconds']:.1f} s | {row['forecast_seconds']:.1f} s "
            f"| {row['offloaded_seconds']:.1f} s |"
            for name, row in offload["rows"].items()
        ),
        ocr="\n".join(
            f"| {name} | {row['calls']} | {row['seconds']:.1f} s | {row['cpu_seconds']:.1f} s |"
            for name, row in ocr["rows"].items()
        ),
        safety_repeats=len(safety["with_seconds"]),
        safety_percent=100 * (safety["ratio_of_best"] - 1),
    )
    (RESULTS.parent / "performance.md").write_text(page)


if __name__ == "__main__":
    main()
