"""Commands about versions that are stored: subtitles, report, corrections, listing, removing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caption_extents.cli.errors import check_output, errors_as_exit_codes
from caption_extents.cli.options import (
    LanguageOption,
    OcrOption,
    QuietOption,
    ReaderOption,
    StoreOption,
    TenantOption,
    VersionOption,
)
from caption_extents.cli.progress import progress_of
from caption_extents.errors import InputError
from caption_extents.files import write_atomically
from caption_extents.options import DEFAULT_STORE, check_id, id_from_name

if TYPE_CHECKING:
    from caption_extents.ocr.reading import CaptionReader
    from caption_extents.storage.keys import VideoKeys
    from caption_extents.storage.store import Store


def subtitles(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    output: Annotated[Path, typer.Argument(help="Subtitle file to write (.srt, .vtt or .ass).")],
    ocr: OcrOption = False,
    language: LanguageOption = None,
    reader: ReaderOption = "auto",
    version: VersionOption = None,
    store: StoreOption = None,
    tenant: TenantOption = "local",
    quiet: QuietOption = False,
) -> None:
    """Write a video's captions as subtitles; captions whose text was not read are numbered."""
    with errors_as_exit_codes():
        check_subtitles(output)
        chosen = open_reader(ocr, language, reader)
        opened, keys = open_versions(store, tenant, video_id)
        if chosen is not None:
            read_texts(opened, keys, version, chosen, quiet)
        count, unread = save_subtitles(opened, keys, version, output)
    typer.echo(f"{count} captions written to {output}{hint_of_unread(unread)}")


def report(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    version: VersionOption = None,
    store: StoreOption = None,
    tenant: TenantOption = "local",
    quiet: QuietOption = False,
) -> None:
    """Write a page that shows and corrects a video's captions, beside its chunks; open it in any browser."""
    with errors_as_exit_codes():
        opened, keys = open_versions(store, tenant, video_id)
        key = save_report(opened, keys, version, quiet)
    typer.echo(address_of(opened, key))


def import_corrections(
    file: Annotated[Path, typer.Argument(help="What the report page's 'Export corrections' gave.")],
    truth: Annotated[
        Path | None, typer.Option(help="Also write the captions as labels, for training and evaluation (.json).")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write corrections of the report page into the version's database."""
    with errors_as_exit_codes():
        from caption_extents.report.corrections import import_corrections as write
        from caption_extents.report.corrections import read_corrections
        from caption_extents.storage.store import open_store

        check_output(truth)
        corrections, opened = read_corrections(file), open_store(store or DEFAULT_STORE)
        changed = write(opened, corrections)
        if truth is not None:
            labels = json.dumps(corrections.truth(opened), ensure_ascii=False, indent=1)
            write_atomically(truth, labels)
    what = f"version {corrections.version} of {corrections.keys.video_id} in {opened.address}"
    typer.echo(f"{changed} captions corrected of {len(corrections.captions)}, {what}")
    if truth is not None:
        typer.echo(f"labels written to {truth}")


def versions(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    store: StoreOption = None,
    tenant: TenantOption = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List a video's versions: complete, running or abandoned."""
    from caption_extents.storage.versions import check_video, list_versions

    with errors_as_exit_codes():
        opened, keys = open_versions(store, tenant, video_id)
        states = list_versions(opened, keys)
        if not states:
            check_video(opened, keys)
    if as_json:
        typer.echo(json.dumps([asdict(state) for state in states]))
        return
    for state in states:
        source = f"  {state.source}" if state.source else ""
        typer.echo(
            f"v{state.version}  {state.state:<10}  {state.chunk_count} chunks  run {state.run_id or 'unknown'}{source}"
        )
    if not states:
        typer.echo(f"all versions of {video_id} of tenant {tenant} in {opened.address} have been removed")


def prune(
    video_id: Annotated[str, typer.Argument(help="Video id.")],
    store: StoreOption = None,
    tenant: TenantOption = "local",
    keep: Annotated[
        int | None, typer.Option(min=1, help="Also remove complete versions but for the newest KEEP.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove versions whose runs have died or failed, and old ones if asked to."""
    from caption_extents.storage.versions import check_video, prunable_versions, remove_version

    with errors_as_exit_codes():
        opened, keys = open_versions(store, tenant, video_id)
        states = prunable_versions(opened, keys, keep)
        if not states:
            check_video(opened, keys)
            typer.echo(f"nothing of {video_id} of tenant {tenant} to remove in {opened.address}")
        for state in states:
            source = f" of {state.source}" if state.source else ""
            what = f"v{state.version} ({state.state}, {state.chunk_count} chunks{source})"
            if dry_run:
                typer.echo(f"would remove {what}")
            elif yes or typer.confirm(f"remove {what}?"):
                typer.echo(f"removed {what}: {remove_version(opened, keys, state.version, state.state)} objects")


def open_versions(store: str | None, tenant: str, video_id: str) -> tuple[Store, VideoKeys]:
    """A store, and the keys of a video in it."""
    from caption_extents.storage.keys import VideoKeys
    from caption_extents.storage.store import open_store

    try:
        check_id(video_id, "VIDEO_ID")
    except InputError as error:
        likely = id_from_name(video_id)
        raise InputError(f"{error}; a run of a file of this name has the id {likely!r}") from error
    return open_store(store or DEFAULT_STORE), VideoKeys(tenant, video_id)


def save_report(store: Store, keys: VideoKeys, version: int | None, quiet: bool) -> str:
    """Write a version's page; its key."""
    from caption_extents.report.page import write_report

    with progress_of("report", quiet) as tell:
        return write_report(store, keys, version, tell)


def address_of(store: Store, key: str) -> str:
    """Where an object can be found: a path, or an address."""
    return str(store.folder / key) if store.folder else f"{store.address}/{key}"


def save_subtitles(opened: Store, keys: VideoKeys, version: int | None, path: Path) -> tuple[int, int]:
    """Write a version's captions as subtitles; how many there are, and how many of these have no text yet."""
    from caption_extents.captions.subtitles import write_subtitles
    from caption_extents.results.database import read_captions
    from caption_extents.storage.versions import read_manifest

    number = read_manifest(opened, keys, version).version
    captions = read_captions(opened.get(keys.database(number)))
    write_subtitles(captions, path)
    return len(captions), sum(not caption.text for caption in captions)


def hint_of_unread(count: int) -> str:
    """What to do about subtitles that are only numbered, to follow the name of their file."""
    return f"; {count} are only numbered, --ocr reads their text" if count else ""


def check_subtitles(path: Path) -> None:
    """Raise an InputError if subtitles cannot be written there, before there is work to lose."""
    from caption_extents.captions.subtitles import check_subtitle_path

    check_subtitle_path(path)
    check_output(path)


def open_reader(is_wanted: bool, language: str | None, reader: str) -> CaptionReader | None:
    """What reads captions, before there is work to lose; None if nobody wants their text.

    Raises:
        InputError: nothing that is installed reads the language.
    """
    if not (is_wanted or language is not None or reader != "auto"):
        return None
    from caption_extents.ocr.captions import open_reader as open_it

    return open_it(language, reader)


def read_texts(opened: Store, keys: VideoKeys, version: int | None, reader: CaptionReader, quiet: bool) -> None:
    """Read the text of a version's captions into its database, and say what was not read."""
    from caption_extents.ocr.captions import store_texts

    with progress_of("reading", quiet) as tell:
        store_texts(opened, keys, reader, version, tell)
    for message in reader.unread.messages():
        typer.echo(message, err=True)
