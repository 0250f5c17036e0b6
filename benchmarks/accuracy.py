"""How right the model is: ``python -m benchmarks.accuracy [--set FOLDER]``.

Renders the evaluation set where it is not there yet (see :mod:`caption_extents.training.evaluation_set` for what that
takes), and reports captions, pairs, boundaries and confidences, with other labelled videos beside it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import CACHE, write_result
from caption_extents.captions.extents import DecodingCosts
from caption_extents.model.weights import write_costs
from caption_extents.training.evaluate import (
    Examined,
    Report,
    examine,
    find_labelled,
    format_report,
    open_model,
    pair_probabilities,
    summarise,
    tune_costs,
)


def evaluate(folder: Path, model: Path | None, device: str, tolerance: int) -> tuple[Report, list[Examined]]:
    """The report of a folder of labelled videos."""
    examined = []
    with open_model(model, device) as opened:
        costs = DecodingCosts.of(opened)
        for video in find_labelled([folder]):
            examined.append(examine(video, pair_probabilities(video, opened), tolerance, costs))
            print(f"{len(examined)}: {video.name}", file=sys.stderr)
    return summarise(examined, tolerance), examined


def render(folder: Path, seed: int, clips: int, captionless: int, footage: list[Path]) -> None:
    """Make a set unless it is there."""
    if folder.is_dir() and len(list(folder.glob("*.json"))) == clips + captionless:
        return
    command = [sys.executable, "-m", "caption_extents.training.evaluation_set", "--out", str(folder)]
    command += ["--seed", str(seed), "--clips", str(clips), "--captionless", str(captionless)]
    subprocess.run([*command, *(item for path in footage for item in ("--footage", str(path)))], check=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", type=Path, default=CACHE / "evaluation", help="the evaluation set's folder")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="other folders, each on its own")
    parser.add_argument("--footage", type=Path, action="append", default=[], help="folder with more held-out films")
    parser.add_argument(
        "--tune",
        type=Path,
        help="a validation set, made if it is not there; prints the decoding costs that suit it best, and keeps them "
        "in the file of MODEL",
    )
    parser.add_argument("--model", type=Path, help="weights; by default the package's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tolerance", type=int, default=1, help="samples")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    if arguments.tune is not None:
        render(arguments.tune, 11, 36, 9, arguments.footage)
        _, examined = evaluate(arguments.tune, arguments.model, arguments.device, arguments.tolerance)
        costs, f1 = tune_costs(examined, arguments.tolerance)
        print(f"best on {arguments.tune}: {costs} with F1 {f1:.4f}; in use: {examined[0].costs}")
        if arguments.model is not None:
            write_costs(arguments.model, asdict(costs))
            print(f"kept in {arguments.model}")
        return
    render(arguments.set, 2, 72, 18, arguments.footage)
    result: dict[str, Any] = {}
    for folder in (arguments.set, *arguments.beside):
        report, _ = evaluate(folder, arguments.model, arguments.device, arguments.tolerance)
        print(f"{folder.name}\n{format_report(report, arguments.tolerance)}\n", flush=True)
        result[folder.name] = report.to_dict()
    if arguments.save:
        print("written to", write_result("accuracy", {"tolerance_samples": arguments.tolerance, "sets": result}))


if __name__ == "__main__":
    main()
