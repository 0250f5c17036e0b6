"""Commands that find captions: in one video, in many, and twice to compare."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caption_extents.cli.errors import EXIT_FAILED, INTERRUPTED, check_output, errors_as_exit_codes
from caption_extents.cli.options import (
    HELP,
    LanguageOption,
    OcrOption,
    QuietOption,
    ReaderOption,
    StoreOption,
    TenantOption,
    choices,
    given_options,
    with_job_options,
)
from caption_extents.cli.progress import progress_display
from caption_extents.cli.region import auto_crop
from caption_extents.cli.results import (
    address_of,
    check_subtitles,
    hint_of_unread,
    open_reader,
    open_versions,
    read_texts,
    save_report,
    save_subtitles,
)
from caption_extents.entries import AUTO, Entry
from caption_extents.errors import InputError, ProcessingError
from caption_extents.files import write_atomically
from caption_extents.job.api import run_job
from caption_extents.options import (
    DEFAULT_ENCODER_WORKERS,
    DEFAULT_STORE,
    IMPLEMENTATION_NAMES,
    REMOTE_ENCODER_NAMES,
    Job,
    check_id,
    check_price,
    encoders_of_cores,
    encoders_of_machine,
    id_from_name,
    parse_rate,
    variable_of,
)
from caption_extents.region import CropRegion

if TYPE_CHECKING:
    from caption_extents.batch import Executor, Outcome
    from caption_extents.job.result import CropInferResult
    from caption_extents.ocr.reading import CaptionReader
    from caption_extents.storage.keys import VideoKeys
    from caption_extents.storage.store import Store

NO_SUBTITLES = "none"
SUBTITLE_NAMES = ("srt", "vtt", "ass", NO_SUBTITLES)
_JOURNAL = "caption-extents.journal"
EXECUTOR_NAMES = ("local", "ray", "modal")
_ENCODER_WORKERS = "Chunks encoded at once; by default one for each core, at least 4."


@with_job_options()
def run(
    video: Annotated[str, typer.Argument(help=HELP["video_key"])],
    crop: Annotated[
        str, typer.Option(help="Where captions stand: LEFT,TOP,RIGHT,BOTTOM as fractions of the picture.")
    ] = "auto",
    rate: Annotated[str, typer.Option(help=HELP["frame_rate"])] = f"{Job.frame_rate:g}",
    store: StoreOption = None,
    tenant: TenantOption = "local",
    video_id: Annotated[
        str | None, typer.Option(help="Video id, part of every key; by default from the file's name.")
    ] = None,
    encoder_workers: Annotated[int | None, typer.Option(help=_ENCODER_WORKERS)] = None,
    subtitles: Annotated[Path | None, typer.Option(help="Also write this subtitle file (.srt, .vtt or .ass).")] = None,
    ocr: OcrOption = False,
    language: LanguageOption = None,
    reader: ReaderOption = "auto",
    page: Annotated[
        bool, typer.Option("--report", help="Also write report.html, a page to look at and correct, beside the chunks.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write what was busy when, for Perfetto or chrome://tracing (.json).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    quiet: QuietOption = False,
    **options: Any,
) -> None:
    """Find all captions of a video and store its cropped frames."""
    with errors_as_exit_codes(f"{INTERRUPTED}; the same command goes on with the chunks that are stored"):
        video_id = id_from_name(video) if video_id is None else check_id(video_id, "--video-id")
        if store is not None and store.startswith("memory:"):
            raise InputError(f"the store {store!r} would end with this command; give a folder or an address")
        if subtitles is not None:
            check_subtitles(subtitles)
        check_output(trace)
        chosen = open_reader(ocr, language, reader)
        if crop == "auto":
            crop = auto_crop(video, options["stream"], as_json or quiet)
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
                    **given_options(options),
                )
            )
        opened, keys = open_versions(store, tenant, video_id)
        places: list[tuple[str, str]] = []
        try:
            if chosen is not None:
                read_texts(opened, keys, result.version, chosen, as_json or quiet)
            for written in _also_written(opened, keys, result, subtitles, page, trace, as_json or quiet):
                places.append(written)
        finally:
            # Also when one of these fails: the version is complete.
            if as_json:
                typer.echo(json.dumps(result.to_dict()))
            else:
                _print_result(result, video_id, opened.address)
                for what, place in places:
                    _print_place(what, place)


def _also_written(
    opened: Store,
    keys: VideoKeys,
    result: CropInferResult,
    subtitles: Path | None,
    page: bool,
    trace: Path | None,
    quiet: bool,
) -> Iterator[tuple[str, str]]:
    """Write what was asked for beside a version; yields what each is, and where, when it has been written."""
    if subtitles is not None:
        _, unread = save_subtitles(opened, keys, result.version, subtitles)
        yield "subtitles", f"{subtitles}{hint_of_unread(unread)}"
    if page:
        yield "report", address_of(opened, save_report(opened, keys, result.version, quiet))
    if trace is not None:
        from caption_extents.pipeline.metrics import chrome_trace

        write_atomically(trace, json.dumps(chrome_trace(result.metrics.timeline)))
        yield "trace", str(trace)


def _print_place(what: str, place: str) -> None:
    typer.echo(f"{what:<9} {place}")


def _listed(items: Sequence[object], most: int) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{', '.join(map(str, items[:most]))}{more}"


def _print_result(result: CropInferResult, video_id: str, store: str) -> None:
    from caption_extents.pipeline.report import format_metrics

    labels = ", ".join(f"{name} {count}" for name, count in result.label_counts.items())
    typer.echo(f"{result.caption_count} captions in {result.frame_count} samples ({labels})")
    if result.undecodable_samples:
        lost = result.undecodable_samples
        typer.echo(
            f"{len(lost)} samples could not be decoded and show the frame before them: "
            f"{_listed(lost, 10)}; captions near them may be cut or wrong"
        )
    if result.picture_changes:
        changes = _listed(result.picture_changes, 3)
        typer.echo(f"the picture changes: {changes}; crops are at the same place, in the size of the first part")
    if not result.caption_count:
        typer.echo("no captions: is this where they stand? `caption-extents crop VIDEO --picture crop.png` shows it")
    _print_place("video id", f"{video_id}, version {result.version} in {store}")
    _print_place("chunks", result.cropped_frames_prefix)
    _print_place("database", result.caption_frame_extents_db_key)
    typer.echo(format_metrics(result.metrics))


@with_job_options("encoder", "new_version")
def batch(
    videos: Annotated[
        list[Path],
        typer.Argument(help="Folders, videos, or lists: CSV or JSON lines with video, crop, video_id, tenant, rate."),
    ],
    crop: Annotated[str, typer.Option(help="Of the videos that are in no list; by default each is searched.")] = AUTO,
    subtitles: Annotated[
        str, typer.Option(help=f"Write a subtitle file beside each video: {choices(SUBTITLE_NAMES)}.")
    ] = SUBTITLE_NAMES[0],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace subtitle files that are there.")] = False,
    ocr: OcrOption = False,
    language: LanguageOption = None,
    reader: ReaderOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    jobs_at_once: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Videos decoded at once; by default 4 for each GPU, else 2. Ray decides by itself."
        ),
    ] = None,
    where: Annotated[str, typer.Option("--on", help=f"Where: {choices(EXECUTOR_NAMES)}.")] = "local",
    cpus: Annotated[
        float,
        typer.Option(min=0.1, help="On Ray: cores beside each GPU, or of each process; each encodes a chunk."),
    ] = 1.0,
    store: StoreOption = None,
    tenant: TenantOption = "local",
    encoder_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Chunks encoded at once beside each GPU; by default its share of the cores."),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="What is done is noted here; by default beside the list, or in the folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    **options: Any,
) -> None:
    """Do all videos of folders or lists, and go on where an earlier run stopped. Exits with 1 if any failed."""
    with errors_as_exit_codes(f"{INTERRUPTED}; the same command goes on from here"):
        from caption_extents import batch as batches
        from caption_extents.entries import read_entries

        region = None if crop == AUTO else CropRegion.parse(crop).as_tuple()
        entries = read_entries(videos, tenant, region)
        if subtitles not in SUBTITLE_NAMES:
            raise InputError(f"there are no subtitles {subtitles!r}; choose {choices(SUBTITLE_NAMES)}")
        chosen = open_reader(ocr, language, reader)
        journal = journal or _journal_of(videos)
        check_output(journal)
        noted = batches.Journal(journal)
        # Not left to the environment: other machines have others.
        store = store or DEFAULT_STORE
        shared = {
            **{
                name: str(value.absolute()) if isinstance(value, Path) else value
                for name, value in given_options(options).items()
            },
            "store": store if "://" in store else str(Path(store).expanduser().absolute()),
        }
        if encoder_workers is not None:
            shared["encoder_workers"] = encoder_workers
        elif where == "ray":
            shared["encoder_workers"] = encoders_of_cores(int(cpus))

        if dry_run:
            for entry, earlier in batches.missing_first(entries, noted, shared):
                typer.echo(f"{'done before' if earlier else 'to do':<11}  {entry.video_id}  {entry.video}")
            return
        by_digest = {entry.digest: entry for entry in entries}

        def finish(outcome: batches.Outcome, beside: Path | None) -> None:
            _finish(outcome, by_digest[outcome.digest], str(shared["store"]), beside, chosen, overwrite)

        def tell(outcome: batches.Outcome) -> None:
            state = "failed" if outcome.error else "done  "
            what = outcome.error or f"{outcome.seconds:.1f} s, {outcome.captions} captions, v{outcome.version}"
            typer.echo(f"{state}  {outcome.video_id}  {what}", err=as_json)
            if outcome.error is None:
                finish(outcome, _subtitles_beside(by_digest[outcome.digest], subtitles))

        def tell_earlier(outcome: batches.Outcome) -> None:
            beside = _subtitles_beside(by_digest[outcome.digest], subtitles)
            # What has been asked for since is still made.
            if beside is not None and (overwrite or not beside.exists()):
                typer.echo(f"before  {outcome.video_id}  v{outcome.version}", err=as_json)
                finish(outcome, beside)

        threading.Thread(target=_load, name="load", daemon=True).start()
        executor = _executor(where, jobs_at_once, cpus)
        summary = batches.run_batch(entries, noted, executor, shared, tell, tell_earlier)
    typer.echo(json.dumps(asdict(summary)) if as_json else str(summary))
    for message in chosen.unread.messages() if chosen is not None else ():
        typer.echo(message, err=True)
    if summary.failed:
        raise typer.Exit(EXIT_FAILED)


def _journal_of(videos: list[Path]) -> Path:
    """Beside a list, in a folder, or else in the working directory."""
    first = videos[0]
    if len(videos) == 1 and first.is_dir():
        return first / _JOURNAL
    return first.with_name(f"{first.name}.journal") if len(videos) == 1 else Path(_JOURNAL)


def _subtitles_beside(entry: Entry, kind: str) -> Path | None:
    """Where a video's subtitles go; None if it is in the store, or none are wanted."""
    return entry.file.with_suffix(f".{kind}") if kind != NO_SUBTITLES and entry.file is not None else None


def _load() -> None:
    """Import what :func:`_finish` needs, in a thread, to which no signal goes.

    If Ctrl-C came in the middle of an import, CPython would end the process by the signal, and not with an exit code.
    """
    import caption_extents.captions.subtitles
    import caption_extents.storage.versions  # noqa: F401


def _finish(
    outcome: Outcome, entry: Entry, store: str, beside: Path | None, reader: CaptionReader | None, overwrite: bool
) -> None:
    """Read a video's captions and write its subtitles; what fails is said, and the video counts as done."""
    try:
        opened, keys = open_versions(store, entry.tenant, entry.video_id)
        if reader is not None:
            from caption_extents.ocr.captions import store_texts

            store_texts(opened, keys, reader, outcome.version)
        if beside is None:
            return
        if beside.exists() and not overwrite:
            typer.echo(f"        {beside} is there already, and is kept; --overwrite replaces it", err=True)
            return
        _, unread = save_subtitles(opened, keys, outcome.version, beside)
        typer.echo(f"        {beside}{hint_of_unread(unread)}", err=True)
    except (InputError, ProcessingError) as error:
        typer.echo(f"        {entry.video_id} is done, but what belongs to it failed: {error}", err=True)


def _encoders_of_run(given: int | None, encoder: str) -> int:
    """As many as were asked for; otherwise what suits this machine, where it is this machine that encodes."""
    if given is not None:
        return given
    return DEFAULT_ENCODER_WORKERS if encoder in REMOTE_ENCODER_NAMES else encoders_of_machine()


def _executor(where: str, jobs_at_once: int | None, cpus: float) -> Executor:
    if where == "local":
        from caption_extents.deploy.local import LocalExecutor

        return LocalExecutor(jobs_at_once or 0)
    if where == "ray":
        from caption_extents.deploy.executors import RayExecutor

        return RayExecutor(cpus)
    if where == "modal":
        from caption_extents.deploy.executors import ModalExecutor

        return ModalExecutor(jobs_at_once or 1)
    raise InputError(f"cannot run on {where!r}; choose {choices(EXECUTOR_NAMES)}")


def compare(
    video: Annotated[str, typer.Argument(help="A video id; or, to compare implementations, a video to run.")],
    a: Annotated[str, typer.Argument(help="A version, or an implementation to run.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    crop: Annotated[str | None, typer.Option(help="Of a video to run: LEFT,TOP,RIGHT,BOTTOM.")] = None,
    store: StoreOption = None,
    tenant: TenantOption = "local",
    price_per_hour: Annotated[
        float | None, typer.Option(envvar=variable_of("price_per_hour"), help="Of the machine, for the costs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how two versions of a video, or two implementations, differ. Exits with 1 if labels or captions do."""
    with errors_as_exit_codes():
        from caption_extents.compare import compare_versions, read_version

        if price_per_hour is not None:
            check_price("price_per_hour", price_per_hour)
        run_them = {a, b} <= set(IMPLEMENTATION_NAMES)
        if not run_them and not all(one.isascii() and one.isdigit() for one in (a, b)):
            raise InputError(f"{a!r} and {b!r} are neither versions nor {choices(IMPLEMENTATION_NAMES)}")
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
        opened, keys = open_versions(store, tenant, video_id)
        reports = [read_version(opened, keys, number) for number in numbers]
        comparison = compare_versions(reports[0], reports[1], price_per_hour)
    typer.echo(json.dumps(comparison.to_dict()) if as_json else str(comparison))
    if not comparison.same_results:
        raise typer.Exit(EXIT_FAILED)
