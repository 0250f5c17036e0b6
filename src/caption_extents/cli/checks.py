"""Commands that examine this machine, and how right a model is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caption_extents.cli.errors import EXIT_FAILED, errors_as_exit_codes
from caption_extents.cli.options import HELP, QuietOption, StoreOption
from caption_extents.cli.progress import progress_of
from caption_extents.errors import InputError
from caption_extents.options import DEFAULT_STORE, Job

if TYPE_CHECKING:
    from caption_extents.video.inspection import Finding


def evaluate(
    labelled: Annotated[
        list[Path], typer.Argument(help="Folders of labelled videos, or JSON files beside labelled videos.")
    ],
    model: Annotated[Path | None, typer.Option(help="Other weights of the caption network (.safetensors).")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda or cuda:N.")] = Job.device,
    tolerance: Annotated[int, typer.Option(min=0, help="Samples by which a caption's ends may be off.")] = 1,
    worst: Annotated[Path | None, typer.Option(help="Folder for pictures of what went wrong.")] = None,
    worst_count: Annotated[int, typer.Option(help="How many pictures at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Say how right the model is on videos with known captions."""
    with errors_as_exit_codes():
        from caption_extents.captions.extents import DecodingCosts
        from caption_extents.training import evaluate as evaluation

        videos = evaluation.find_labelled(labelled)
        if worst is not None:
            # Before there are figures to lose.
            try:
                from caption_extents.training.worst_cases import write_worst_cases
            except ImportError as error:
                raise InputError(
                    "pictures need the extra 'training': pip install 'caption-extents[training]'"
                ) from error
            worst.mkdir(parents=True, exist_ok=True)
        examined = []
        with evaluation.open_model(model, device) as opened:
            costs = DecodingCosts.of(opened)
            for number, video in enumerate(videos, start=1):
                if not (as_json or quiet):
                    typer.echo(f"{number} of {len(videos)}: {video.name}", err=True)
                probabilities = evaluation.pair_probabilities(video, opened)
                examined.append(evaluation.examine(video, probabilities, tolerance, costs))
        report = evaluation.summarise(examined, tolerance)
        if worst is not None:
            count = write_worst_cases(examined, worst, worst_count)
            typer.echo(f"{count} pictures written to {worst}", err=True)
    typer.echo(json.dumps(report.to_dict()) if as_json else evaluation.format_report(report, tolerance))


def doctor(
    video: Annotated[Path | None, typer.Argument(help="A video to describe, instead of this machine.")] = None,
    stream: Annotated[int | None, typer.Option(min=0, help=HELP["stream"])] = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Say what this machine has, or what a video holds, and what to do about it. Exits with 1 if no run can work."""
    found = []
    with errors_as_exit_codes():
        if video is None and stream is not None:
            raise InputError("--stream is of a video; name one: caption-extents doctor VIDEO --stream N")
        for finding in _of_machine(store or DEFAULT_STORE) if video is None else _of_video(video, stream, quiet):
            found.append(finding)
            if not as_json:
                typer.echo(str(finding))
    if as_json:
        typer.echo(json.dumps([finding.to_dict() for finding in found]))
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(EXIT_FAILED)


def _of_machine(store: str) -> Iterator[Finding]:
    from caption_extents.doctor import examine

    return examine(store)


def _of_video(video: Path, stream: int | None, quiet: bool) -> list[Finding]:
    from caption_extents.video.inspection import inspect_video

    with progress_of("reading", quiet) as progress:
        return list(inspect_video(video, stream, lambda done, total: progress(done >> 10, total >> 10)))
