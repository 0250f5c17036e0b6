"""The command line: parse into a job, make one library call, print the result."""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import re
import sqlite3
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from caption_extents.errors import InputError, ProcessingError
from caption_extents.files import write_whole
from caption_extents.interrupts import Interrupted, interrupt_on_signals
from caption_extents.job.api import run_job
from caption_extents.options import (
    DEFAULT_ENCODER_WORKERS,
    DEFAULT_STORE,
    IMPLEMENTATION_NAMES,
    REMOTE_ENCODER_NAMES,
    Job,
    check_id,
    describe_options,
    encoders_of_cores,
    encoders_of_machine,
    id_from_name,
    parse_rate,
    variable_of,
)
from caption_extents.progress import progress_display
from caption_extents.region import CropRegion
from caption_extents.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from caption_extents.batch import Executor
    from caption_extents.job.result import CropInferResult
    from caption_extents.ocr.crop import Band
    from caption_extents.storage.keys import VideoKeys
    from caption_extents.storage.store import Store

_PAGE_PICTURES = 16
_USUAL_REGION = CropRegion(0.05, 0.8, 0.95, 0.98)
EXECUTOR_NAMES = ("local", "ray", "modal")
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
_INTERRUPTED = "interrupted"

app = typer.Typer(
    help="Find burned-in captions in video, exact to the frame.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _choices(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_HELP = describe_options()
_StoreOption = Annotated[str | None, typer.Option(envvar=variable_of("store"), help=_HELP["store"])]
_TenantOption = Annotated[str, typer.Option(help=_HELP["tenant_id"])]
_NOT_HERE = frozenset({"store", "queue_size", "price_per_hour", "lease_seconds", "progress"})
"""Options of a job that a command line has under another name, or does not have."""
_ENCODER_WORKERS = "Chunks encoded at once; by default one for each core, at least 4."

Command = TypeVar("Command", bound=Callable[..., None])


def _with_job_options(*left_out: str) -> Callable[[Command], Command]:
    """Let a command take the options of a job that have no own parameter, but for some, as keyword arguments."""

    def decorate(command: Command) -> Command:
        own = [
            one for one in inspect.signature(command, eval_str=True).parameters.values() if one.kind != one.VAR_KEYWORD
        ]
        names = {one.name for one in own} | _NOT_HERE | set(left_out)
        options = [
            _parameter(one)
            for name, one in inspect.signature(Job, eval_str=False).parameters.items()
            if one.kind == one.KEYWORD_ONLY and name not in names
        ]
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in own] + options
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(option: inspect.Parameter) -> inspect.Parameter:
    """An option of a job as one of a command line."""
    kind: Any = next(
        (plain for name, plain in (("PathLike", Path | None), ("int | None", int | None)) if name in option.annotation),
        {"bool": bool, "int": int, "float": float}.get(
            option.annotation, str | None if option.default is None else str
        ),
    )
    names = [f"--{option.name.replace('_', '-')}"] if kind is bool else []
    made = typer.Option(*names, envvar=variable_of(option.name) or None, help=_HELP[option.name])
    return option.replace(annotation=Annotated[kind, made])


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not as they are by default."""
    return {name: value for name, value in options.items() if value != getattr(Job, name)}


@app.command()
@_with_job_options()
def run(
    video: Annotated[str, typer.Argument(help=_HELP["video_key"])],
    crop: Annotated[
        str, typer.Option(help="Where captions stand: LEFT,TOP,RIGHT,BOTTOM as fractions of the picture; or auto.")
    ],
    rate: Annotated[str, typer.Option(help=_HELP["frame_rate"])] = f"{Job.frame_rate:g}",
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    video_id: Annotated[
        str | None, typer.Option(help="Video id, part of every key; by default from the file's name.")
    ] = None,
    encoder_workers: Annotated[int | None, typer.Option(help=_ENCODER_WORKERS)] = None,
    subtitles: Annotated[Path | None, typer.Option(help="Also write this subtitle file (.srt, .vtt or .ass).")] = None,
    ocr: Annotated[bool, typer.Option("--ocr", help="Read each caption's text, once (needs the extra 'ocr').")] = False,
    page: Annotated[
        bool, typer.Option("--report", help="Also write report.html, a page to look at and correct, beside the chunks.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write what was busy when, for Perfetto or chrome://tracing (.json).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    **options: Any,
) -> None:
    """Find all captions of a video and store its cropped frames."""
    with _errors_as_exit_codes(f"{_INTERRUPTED}; the same command goes on with the chunks that are stored"):
        video_id = id_from_name(video) if video_id is None else check_id(video_id, "--video-id")
        if subtitles is not None:
            _check_subtitle_path(subtitles)
        _check_output(trace)
        if ocr:
            _check_ocr()
        if crop == "auto":
            crop = _auto_crop(video, as_json or quiet)
        encoders = _encoders_of_run(encoder_workers, options["encoder"])
        with nullcontext() if as_json or quiet else progress_display() as progress:
            result = run_job(
                Job(
                    video,
                    tenant,
                    video_id,
                    CropRegion.parse(crop),
                    parse_rate(rate),
                    encoders,
                    store=store,
                    progress=progress,
                    **_given(options),
                )
            )
        opened, keys = _opened(store, tenant, video_id)
        if ocr:
            _read_texts(opened, keys, result.version, as_json or quiet)
        if subtitles is not None:
            _write_subtitles(opened, keys, result.version, subtitles)
        if page:
            _write_report(opened, keys, result.version, as_json or quiet)
        if trace is not None:
            from caption_extents.pipeline.trace import chrome_trace

            write_whole(trace, json.dumps(chrome_trace(result.metrics.timeline)))
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    else:
        _print_result(result, video_id, opened.address)


def _auto_crop(video: str, quiet: bool) -> str:
    if not os.path.isfile(video):  # noqa: PTH113 which no name makes fail
        raise InputError(f"--crop auto looks at a file of this machine, and {video!r} is none; give the crop")
    crop = _as_option(_suggest(Path(video), quiet)[0][0].region)
    if not quiet:
        typer.echo(f"crop {crop}", err=True)
    return crop


@app.command()
def crop(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    picture: Annotated[Path | None, typer.Option(help="Write a picture with the regions drawn (.png).")] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Choose the region on a page, by mouse.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the regions as a JSON list.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Suggest where captions stand, in the form that `run --crop` takes (needs the extra 'ocr').

    With --browser a page of this machine shows pictures of the video, and the region can be drawn there.
    """
    if browser:
        with _errors_as_exit_codes():
            region = _choose_region(video, quiet or as_json)
        typer.echo(json.dumps([{"crop": region.as_tuple()}]) if as_json else _as_option(region))
        return
    with _errors_as_exit_codes():
        if picture is not None and picture.suffix.lower() != ".png":
            raise InputError(f"cannot write a picture to {str(picture)!r}; the name must end with .png")
        _check_output(picture)
        bands, drawn = _suggest(video, quiet or as_json)
        if picture is not None:
            from PIL import Image

            png = io.BytesIO()
            Image.fromarray(drawn).save(png, "png")
            write_whole(picture, png.getvalue())
    if as_json:
        typer.echo(json.dumps([{"crop": band.region.as_tuple(), "pictures": band.pictures} for band in bands]))
        return
    typer.echo(_as_option(bands[0].region))
    for band in bands[1:]:
        typer.echo(f"also, in {band.pictures} pictures: {_as_option(band.region)}", err=True)


def _suggest(video: Path, quiet: bool) -> tuple[list[Band], np.ndarray]:
    from caption_extents.ocr.crop import draw_regions, rapid_detector, suggest_crop

    with _progress_of("looking", quiet) as tell:
        bands, seen = suggest_crop(video, rapid_detector(), tell)
    return bands, draw_regions(seen, bands)


def _choose_region(video: Path, quiet: bool) -> CropRegion:
    """A region that a person has drawn, beginning with the suggested one if there is one."""
    from fractions import Fraction

    from av.video.frame import VideoFrame

    from caption_extents.ocr.glimpses import pick_times, pictures_at
    from caption_extents.pictures import to_jpeg
    from caption_extents.report.crop_page import choose_region
    from caption_extents.video.info import probe
    from caption_extents.video.timeline import build_timeline

    try:
        start = _suggest(video, quiet)[0][0].region
    except InputError:
        # No text was found, or nothing that finds it is installed.
        start = _USUAL_REGION
    facts = probe(video)
    frames = [
        VideoFrame.from_ndarray(picture, format="rgb24")
        for picture in pictures_at(facts, pick_times(build_timeline(facts, Fraction(10)), _PAGE_PICTURES))
    ]
    pictures = [to_jpeg(frame, (frame.width, frame.height)) for frame in frames]

    def open_page(address: str) -> None:
        typer.echo(f"choose the region on {address}", err=True)
        typer.launch(address)

    return choose_region(pictures, start, open_page)


@contextmanager
def _progress_of(stage: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how much of something that is no part of a run is done: a callback for what is done, and all there is."""
    from caption_extents.pipeline.metrics import Progress

    if quiet:
        yield lambda done, total: None
        return
    with progress_display() as show:
        yield lambda done, total: show(Progress(stage, done, max(1, total)))


def _as_option(region: CropRegion) -> str:
    return ",".join(f"{side:g}" for side in region.as_tuple())


@app.command()
def subtitles(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    output: Annotated[Path, typer.Argument(help="Subtitle file to write (.srt, .vtt or .ass).")],
    ocr: Annotated[bool, typer.Option("--ocr", help="Read each caption's text first (needs the extra 'ocr').")] = False,
    version: Annotated[int | None, typer.Option(help="By default the newest complete one.")] = None,
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a video's captions as subtitles; captions whose text was not read are numbered."""
    with _errors_as_exit_codes():
        _check_subtitle_path(output)
        if ocr:
            _check_ocr()
        opened, keys = _opened(store, tenant, video_id)
        if ocr:
            _read_texts(opened, keys, version, quiet)
        _write_subtitles(opened, keys, version, output)


@app.command()
def report(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    version: Annotated[int | None, typer.Option(help="By default the newest complete one.")] = None,
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a page that shows and corrects a video's captions, beside its chunks; open it in any browser."""
    with _errors_as_exit_codes():
        opened, keys = _opened(store, tenant, video_id)
        key = _write_report(opened, keys, version, quiet)
    typer.echo(f"{opened.folder / key}" if opened.folder else f"{opened.address}/{key}")


def _write_report(store: Store, keys: VideoKeys, version: int | None, quiet: bool) -> str:
    from caption_extents.report.page import write_report

    with _progress_of("report", quiet) as tell:
        return write_report(store, keys, version, tell)


@app.command(name="import-corrections")
def import_corrections(
    file: Annotated[Path, typer.Argument(help="What the report page's 'Export corrections' gave.")],
    truth: Annotated[
        Path | None, typer.Option(help="Also write the captions as labels, for training and evaluation (.json).")
    ] = None,
    store: _StoreOption = None,
) -> None:
    """Write corrections of the report page into the version's database."""
    with _errors_as_exit_codes():
        from caption_extents.report.corrections import import_corrections as write
        from caption_extents.report.corrections import read_corrections
        from caption_extents.storage.store import open_store

        _check_output(truth)
        corrections, opened = read_corrections(file), open_store(store or DEFAULT_STORE)
        changed = write(opened, corrections)
        if truth is not None:
            labels = json.dumps(corrections.truth(opened), ensure_ascii=False, indent=1)
            write_whole(truth, labels)
    typer.echo(f"{changed} captions corrected of {len(corrections.captions)}, version {corrections.version}")


@app.command()
def versions(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List a video's versions: complete, running or abandoned."""
    from caption_extents.storage.versions import list_versions

    with _errors_as_exit_codes():
        opened, keys = _opened(store, tenant, video_id)
        states = list_versions(opened, keys)
    if as_json:
        typer.echo(json.dumps([asdict(state) for state in states]))
        return
    for state in states:
        source = f"  {state.source}" if state.source else ""
        typer.echo(
            f"v{state.version}  {state.state:<10}  {state.chunk_count} chunks  run {state.run_id or 'unknown'}{source}"
        )
    if not states:
        typer.echo(f"no versions of {video_id} of tenant {tenant} in {opened.address}")


@app.command()
def prune(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    keep: Annotated[
        int | None, typer.Option(min=1, help="Also remove complete versions but for the newest KEEP.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove versions whose runs have died or failed, and old ones if asked to."""
    from caption_extents.storage.versions import prunable_versions, remove_version

    with _errors_as_exit_codes():
        opened, keys = _opened(store, tenant, video_id)
        states = prunable_versions(opened, keys, keep)
        if not states:
            typer.echo(f"nothing of {video_id} of tenant {tenant} to remove in {opened.address}")
        for state in states:
            source = f" of {state.source}" if state.source else ""
            what = f"v{state.version} ({state.state}, {state.chunk_count} chunks{source})"
            if dry_run:
                typer.echo(f"would remove {what}")
            elif yes or typer.confirm(f"remove {what}?"):
                typer.echo(f"removed {what}: {remove_version(opened, keys, state.version, state.state)} objects")


@app.command()
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Say how right the model is on videos with known captions."""
    with _errors_as_exit_codes():
        from caption_extents.captions.extents import DecodingCosts
        from caption_extents.training import evaluate as evaluation

        videos = evaluation.find_labelled(labelled)
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
            from caption_extents.training.worst_cases import write_worst_cases

            write_worst_cases(examined, worst, worst_count)
    typer.echo(json.dumps(report.to_dict()) if as_json else evaluation.format_report(report, tolerance))


@app.command()
@_with_job_options("encoder", "new_version")
def batch(
    videos: Annotated[
        Path, typer.Argument(help="CSV or JSON lines with video, crop, and if wanted video_id, tenant, rate.")
    ],
    jobs_at_once: Annotated[
        int, typer.Option("--jobs", min=1, help="Videos at once, each in its own process; Ray decides by itself.")
    ] = 1,
    where: Annotated[str, typer.Option("--on", help=f"Where: {_choices(EXECUTOR_NAMES)}.")] = "local",
    cpus: Annotated[
        float, typer.Option(min=0.1, help="On Ray: cores for each video, to encode a chunk on each.")
    ] = 1.0,
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    encoder_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Chunks of each video encoded at once; by default their share of the cores."),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="What is done is noted here; by default beside the list, .journal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    **options: Any,
) -> None:
    """Do a list of videos, and go on where an earlier run stopped. Exits with 1 if any failed."""
    with _errors_as_exit_codes(f"{_INTERRUPTED}; the same command goes on from here"):
        from caption_extents import batch as batches

        entries = batches.read_list(videos, tenant)
        journal = journal or videos.with_name(f"{videos.name}.journal")
        _check_output(journal)
        noted = batches.Journal(journal)
        # Not left to the environment: other machines have others.
        store = store or DEFAULT_STORE
        shared = {
            **{
                name: str(value.absolute()) if isinstance(value, Path) else value
                for name, value in _given(options).items()
            },
            "store": store if "://" in store else str(Path(store).expanduser().absolute()),
        }
        if (encoders := _encoders_of_batch(encoder_workers, where, jobs_at_once, cpus)) is not None:
            shared["encoder_workers"] = encoders

        def tell(outcome: batches.Outcome) -> None:
            state = "failed" if outcome.error else "done  "
            what = outcome.error or f"{outcome.seconds:.1f} s, {outcome.captions} captions, v{outcome.version}"
            typer.echo(f"{state}  {outcome.video_id}  {what}", err=as_json)

        summary = batches.run_batch(entries, noted, _executor(where, jobs_at_once, cpus), shared, tell)
    typer.echo(json.dumps(asdict(summary)) if as_json else str(summary))
    if summary.failed:
        raise typer.Exit(EXIT_FAILED)


def _encoders_of_run(given: int | None, encoder: str) -> int:
    """As many as were asked for; otherwise what suits this machine, where it is this machine that encodes."""
    if given is not None:
        return given
    return DEFAULT_ENCODER_WORKERS if encoder in REMOTE_ENCODER_NAMES else encoders_of_machine()


def _encoders_of_batch(given: int | None, where: str, jobs_at_once: int, cpus: float) -> int | None:
    """Likewise for each video of a batch; None where that is known only there."""
    if given is not None or where == "modal":
        return given
    return encoders_of_machine(jobs_at_once) if where == "local" else encoders_of_cores(int(cpus))


def _executor(where: str, jobs_at_once: int, cpus: float) -> Executor:
    if where == "local":
        from caption_extents.batch import LocalExecutor

        return LocalExecutor(jobs_at_once)
    if where == "ray":
        from caption_extents.deploy.executors import RayExecutor

        return RayExecutor(cpus)
    if where == "modal":
        from caption_extents.deploy.executors import ModalExecutor

        return ModalExecutor(jobs_at_once)
    raise InputError(f"cannot run on {where!r}; choose {_choices(EXECUTOR_NAMES)}")


@app.command()
def compare(
    video: Annotated[str, typer.Argument(help="A video id; or, to compare implementations, a video to run.")],
    a: Annotated[str, typer.Argument(help="A version, or an implementation to run.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    crop: Annotated[str | None, typer.Option(help="Of a video to run: LEFT,TOP,RIGHT,BOTTOM.")] = None,
    store: _StoreOption = None,
    tenant: _TenantOption = "local",
    price_per_hour: Annotated[
        float | None, typer.Option(envvar=variable_of("price_per_hour"), help="Of the machine, for the costs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how two versions of a video, or two implementations, differ. Exits with 1 if labels or captions do."""
    with _errors_as_exit_codes():
        from caption_extents.compare import compare_versions, read_version

        run_them = {a, b} <= set(IMPLEMENTATION_NAMES)
        if not run_them and not (a.isdigit() and b.isdigit()):
            raise InputError(f"{a!r} and {b!r} are neither versions nor {_choices(IMPLEMENTATION_NAMES)}")
        if run_them and crop is None:
            raise InputError("to run implementations, give the crop")
        video_id = id_from_name(video) if run_them else video
        numbers = []
        for wanted in (a, b):
            if not run_them:
                numbers.append(int(wanted))
                continue
            region = CropRegion.parse(crop or "")
            result = run_job(Job(video, tenant, video_id, region, implementation=wanted, store=store, new_version=True))
            numbers.append(result.version)
        opened, keys = _opened(store, tenant, video_id)
        reports = [read_version(opened, keys, number) for number in numbers]
        comparison = compare_versions(reports[0], reports[1], price_per_hour)
    typer.echo(json.dumps(comparison.to_dict()) if as_json else str(comparison))
    if not comparison.same_results:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def doctor(
    store: _StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Say what this machine has, and what to do about what is missing. Exits with 1 if no run can work."""
    from caption_extents.doctor import examine

    found = []
    for finding in examine(store or DEFAULT_STORE):
        found.append(finding)
        if not as_json:
            typer.echo(str(finding))
    if as_json:
        typer.echo(json.dumps([finding.to_dict() for finding in found]))
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(EXIT_FAILED)


def _opened(store: str | None, tenant: str, video_id: str) -> tuple[Store, VideoKeys]:
    from caption_extents.storage.keys import VideoKeys
    from caption_extents.storage.store import open_store

    try:
        check_id(video_id, "VIDEO_ID")
    except InputError as error:
        likely = id_from_name(video_id)
        raise InputError(f"{error}; a run of a file of this name has the id {likely!r}") from error
    return open_store(store or DEFAULT_STORE), VideoKeys(tenant, video_id)


@contextmanager
def _errors_as_exit_codes(interrupted: str = _INTERRUPTED) -> Iterator[None]:
    """Report an error in a line on stderr and end with its exit code."""
    try:
        yield
    except InputError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except ProcessingError as error:
        _fail(str(error), EXIT_FAILED)
    except Interrupted as error:
        _fail(interrupted, 128 + error.signal_number)
    except KeyboardInterrupt:
        _fail(interrupted, EXIT_INTERRUPTED)
    except (sqlite3.Error, zlib.error, EOFError) as error:
        _fail(f"what is stored is damaged: {error}", EXIT_FAILED)
    except OSError as error:
        # What is outside of the program: rights, disks, names.
        name = f"{error.filename!r}: " if error.filename is not None else ""
        _fail(f"{name}{error.strerror or error}", EXIT_FAILED)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"caption-extents: {_with_options(message)}", err=True)
    raise typer.Exit(code)


_NAMES_HERE = {
    "frame_rate": "--rate",
    "tenant_id": "--tenant",
    **{f"crop_{side}": f"{side} of --crop" for side in ("left", "top", "right", "bottom")},
}
# A video_id may also be an argument, or stand in a file.
_OPTIONS = [*({name for name in inspect.signature(Job).parameters if "_" in name} - {"video_id"}), *_NAMES_HERE]
_ARGUMENT = re.compile(rf"'[^']*'|`(\w+)`|\b({'|'.join(_OPTIONS)})\b")
"""What stands in quotes is a name, and stays."""


def _with_options(message: str) -> str:
    """The message with options as they are given here, and not as Python's arguments."""

    def option(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return _NAMES_HERE.get(name, "--" + name.replace("_", "-")) if name else found[0]

    return _ARGUMENT.sub(option, message)


def _print_result(result: CropInferResult, video_id: str, store: str) -> None:
    from caption_extents.pipeline.report import format_metrics

    labels = ", ".join(f"{name} {count}" for name, count in result.label_counts.items())
    typer.echo(f"{result.caption_count} captions in {result.frame_count} samples ({labels})")
    if result.undecodable_samples:
        typer.echo(f"{len(result.undecodable_samples)} samples could not be decoded and show the frame before them")
    if not result.caption_count:
        typer.echo("no captions: is this where they stand? `caption-extents crop VIDEO --picture crop.png` shows it")
    typer.echo(f"video id  {video_id}, version {result.version} in {store}")
    typer.echo(f"chunks    {result.cropped_frames_prefix}")
    typer.echo(f"database  {result.caption_frame_extents_db_key}")
    typer.echo(format_metrics(result.metrics))


def _write_subtitles(opened: Store, keys: VideoKeys, version: int | None, path: Path) -> None:
    from caption_extents.captions.subtitles import write_subtitles
    from caption_extents.results.database import read_captions
    from caption_extents.storage.versions import read_manifest

    number = read_manifest(opened, keys, version).version
    write_subtitles(read_captions(opened.get(keys.database(number))), path)


def _check_subtitle_path(path: Path) -> None:
    from caption_extents.captions.subtitles import check_subtitle_path

    check_subtitle_path(path)
    _check_output(path)


def _check_output(path: Path | None) -> None:
    """Raise an InputError if a file cannot be written there, before there is work to lose."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file's name")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"cannot write {str(path)!r}: it may not be written by this user; choose another place")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another place") from error


def _check_ocr() -> None:
    """Raise an InputError if text cannot be read, before there is work to lose."""
    from caption_extents.ocr.reader import check_reader

    check_reader()


def _read_texts(opened: Store, keys: VideoKeys, version: int | None, quiet: bool) -> None:
    from caption_extents.ocr.captions import store_texts
    from caption_extents.ocr.reader import RapidReader

    with _progress_of("reading", quiet) as tell:
        store_texts(opened, keys, RapidReader(), version, tell)


def main() -> None:
    """Entry point of the ``caption-extents`` command."""
    logging.basicConfig(format="caption-extents: %(message)s", level=logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    interrupt_on_signals()
    try:
        app()
    except OSError as error:
        # What has been printed is lost, and the interpreter must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"caption-extents: could not print the result: {error.strerror or error}", err=True)
        raise SystemExit(EXIT_FAILED) from error
