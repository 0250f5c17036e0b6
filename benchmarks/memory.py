"""Does memory grow with the video? ``python -m benchmarks.memory``: peak resident memory of 2 and of 20 minutes."""

from __future__ import annotations

import argparse

from benchmarks.common import captioned_video, run_cli, write_result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 20])
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--implementations", nargs="+", default=["pipelined", "sequential"])
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    for implementation in arguments.implementations:
        peaks = {}
        for minutes in arguments.minutes:
            metrics = run_cli(captioned_video(minutes, height=arguments.height), "--implementation", implementation)[
                "metrics"
            ]
            peaks[f"{minutes:g}"] = metrics["peak_memory_bytes"] / 2**20
            print(f"{implementation}: {minutes:g} minutes: peak {peaks[f'{minutes:g}']:.0f} MiB", flush=True)
        shortest, longest = (peaks[f"{minutes:g}"] for minutes in (min(arguments.minutes), max(arguments.minutes)))
        print(f"{implementation}: longest / shortest: {longest / shortest:.3f}", flush=True)
        result[implementation] = {**peaks, "ratio": longest / shortest}
    if arguments.save:
        print("written to", write_result("memory", {"peak_mib_by_minutes": result}))


if __name__ == "__main__":
    main()
