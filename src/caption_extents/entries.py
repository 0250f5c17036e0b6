"""The videos of a batch: a list, folders, or files.

A list is CSV with a header, or JSON lines. Each entry has ``video`` and ``crop`` (``L,T,R,B``, four numbers, or
``auto``), and may have ``video_id``, ``tenant`` and ``rate``. A file that is not there is looked for beside the list.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

from caption_extents.errors import InputError
from caption_extents.options import Job, id_from_name, parse_rate
from caption_extents.region import CropRegion

AUTO = "auto"
WHOLE = (0.0, 0.0, 1.0, 1.0)

BatchOptions: TypeAlias = Mapping[str, Any]
"""Options of :class:`~caption_extents.options.Job` that all videos of a list share, by their names."""

_FIELDS = frozenset({"video", "crop", "video_id", "tenant", "rate"})
_LISTS = frozenset({".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson"})
_VIDEOS = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob"),
        *(".avi", ".flv"),
    }
)


@dataclass(frozen=True)
class Entry:
    """One video of a list.

    Attributes:
        video: path of a file on the machine that runs the job, or a key in the store.
        crop: left, top, right and bottom of the region, as fractions of the displayed picture; None to look for it.
        video_id, tenant: ids that become part of every key that is written.
        rate: samples per second, exact.
    """

    video: str
    crop: tuple[float, float, float, float] | None
    video_id: str
    tenant: str
    rate: Fraction

    def job(self, options: BatchOptions) -> Job:
        """The job for this entry, with the options that all entries share; of the whole picture without a crop.

        Raises:
            InputError: an option cannot be used.
        """
        return Job(self.video, self.tenant, self.video_id, CropRegion(*(self.crop or WHOLE)), self.rate, **options)

    @property
    def file(self) -> Path | None:
        """The video's file on this machine, if there is one."""
        return _file(Path(self.video))

    @property
    def digest(self) -> str:
        """Hexadecimal digest of all fields, which identifies the entry in the journal."""
        # The rate is written as a decimal number if it is one: journals of earlier versions contain it in this form.
        number = float(self.rate)
        rate = number if Fraction(str(number)) == self.rate else str(self.rate)
        return hashlib.sha256(json.dumps({**asdict(self), "rate": rate}, sort_keys=True).encode()).hexdigest()[:16]


def read_list(path: Path, tenant: str) -> list[Entry]:
    """Read and check all entries of a list.

    Args:
        path: the CSV or JSON lines file.
        tenant: tenant id of entries that do not name one.

    Raises:
        InputError: a line cannot be used, or two entries have the same tenant and video id; the message names the line.
    """
    try:
        text = _decoded(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the list {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"the list {str(path)!r} is neither UTF-8 nor UTF-16 at byte {error.start}; save it as UTF-8"
        ) from error
    try:
        rows = _read_json_lines(text, path) if text.lstrip().startswith("{") else _read_csv(text, path)
    except csv.Error as error:
        raise InputError(f"the list {str(path)!r} is no table: {error}; is a quote missing?") from error
    entries: dict[tuple[str, str], Entry] = {}
    for line, row in rows:
        try:
            entry = _entry(row, tenant, path.parent)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"line {line} of {str(path)!r} cannot be used: {error}") from error
        if (entry.tenant, entry.video_id) in entries:
            raise InputError(
                f"line {line} of {str(path)!r} has the video id {entry.video_id!r} of an earlier line; "
                "give them different ones in a column video_id"
            )
        entries[entry.tenant, entry.video_id] = entry
    if not entries:
        raise InputError(f"the list {str(path)!r} is empty")
    return list(entries.values())


def _decoded(data: bytes) -> str:
    """Decode a text file as spreadsheet programs save it: UTF-8 or UTF-16, with or without a byte order mark."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    # In UTF-16 without a byte order mark, every second byte of the ASCII header is zero.
    zeros = data[1:2] == b"\0", data[:1] == b"\0"
    return data.decode("utf-16-le" if zeros[0] else "utf-16-be" if zeros[1] else "utf-8-sig")


def _read_csv(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    # In many locales, spreadsheet programs separate columns by semicolons, some by tabs.
    header = next(iter(text.splitlines()), "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"video", "crop"} <= set(reader.fieldnames or ()):
        raise InputError(f"the list {str(path)!r} needs a header with the columns video and crop")
    return [(reader.line_num, {name: value for name, value in row.items() if value}) for row in reader]


def _read_json_lines(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    # Not splitlines(): a file name may contain other characters that Unicode treats as line breaks.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise InputError(f"line {number} of {str(path)!r} is no JSON: {error}") from error
    return rows


def _entry(row: dict[str, Any], tenant: str, folder: Path) -> Entry:
    if None in row:
        raise ValueError('more values than columns; a crop stands in quotes, as "0.05,0.8,0.95,0.98"')
    unknown = set(row) - _FIELDS
    if unknown:
        raise ValueError(f"unknown column {sorted(unknown)[0]!r}; there are {', '.join(sorted(_FIELDS))}")
    missing = {"video", "crop"} - set(row)
    if missing:
        raise ValueError("no crop; give left, top, right and bottom, or auto" if "video" in row else "no video")
    video = str(row["video"])
    if _file(Path(video)) is None and _file(folder / video) is not None:
        video = str(folder / video)
    return Entry(
        video=video,
        crop=_crop(row["crop"]),
        video_id=str(row.get("video_id") or id_from_name(video)),
        tenant=str(row.get("tenant") or tenant),
        rate=parse_rate(str(row.get("rate") or Job.frame_rate).strip()),
    )


def _file(path: Path) -> Path | None:
    """The path, if it is of a file of this machine."""
    try:
        expanded = path.expanduser()
        return expanded if expanded.is_file() else None
    except (OSError, ValueError, RuntimeError):  # what is no path on this machine, or has no home here
        return None


def _crop(given: object) -> tuple[float, float, float, float] | None:
    if given == AUTO:
        return None
    if isinstance(given, str):
        return CropRegion.parse(given).as_tuple()
    if isinstance(given, list) and len(given) == 4:
        return CropRegion(*given).as_tuple()
    raise ValueError(f"crop is {given!r}; give left, top, right and bottom, or auto")


def read_entries(paths: Sequence[Path], tenant: str, crop: tuple[float, float, float, float] | None) -> list[Entry]:
    """The entries of lists, of the videos in folders, and of single videos.

    Args:
        paths: lists (by their endings), folders or videos.
        tenant: tenant id of entries that do not name one.
        crop: of the videos that are in no list; None to look for it.

    Raises:
        InputError: a list cannot be used, a folder holds no video, there is no file to look for a crop in, or two
            videos have the same tenant and video id.
    """
    entries = list[Entry]()
    for path in paths:
        if path.suffix.lower() in _LISTS and not path.is_dir():
            entries += read_list(path, tenant)
            continue
        if crop is None and not path.is_dir() and _file(path) is None:
            raise InputError(f"there is no file or folder {str(path)!r}; for a video in the store, give its --crop")
        videos = _videos_in(path) if path.is_dir() else [path]
        rate = parse_rate(str(Job.frame_rate))
        entries += [Entry(str(video), crop, id_from_name(str(video)), tenant, rate) for video in videos]
    _check_ids(entries)
    return entries


def _videos_in(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _VIDEOS and path.is_file())
    except OSError as error:
        raise InputError(f"cannot read the folder {str(folder)!r}: {error.strerror or error}") from error
    if not found:
        raise InputError(
            f"there is no video in {str(folder)!r}; known are {', '.join(sorted(_VIDEOS))}, and folders in it are "
            "given on their own"
        )
    return found


def _check_ids(entries: Iterable[Entry]) -> None:
    known: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        other = known.setdefault((entry.tenant, entry.video_id), entry)
        if other is not entry:
            raise InputError(
                f"{entry.video!r} has the video id {entry.video_id!r} of {other.video!r}; rename one, or name them "
                "in a list with a column video_id"
            )
