"""Whether samples are the frames that FFmpeg times: ``python -m benchmarks.timing [KIND...]``.

Makes files of every kind of timing with the program ``ffmpeg``, lets it decode each with all streams mapped, so that
its clock starts where a player's does, and compares the time of the first frame, and for every sample which frame it
shows, by the checksum of its pixels.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from benchmarks.common import write_result
from caption_extents import open_video

RATES = (Fraction(10), Fraction(24))
_SOUND = "-f lavfi -i sine=440:d=12"
_X264 = "-c:v libx264 -preset veryfast -bf 2 -g 50 -pix_fmt yuv420p -c:a aac"
_MPEG2 = "-c:v mpeg2video -b:v 3M -bf 2 -g 15 -pix_fmt yuv420p -c:a mp2"
_SELECT = r'-vf "select=not(mod(n\,3))+gt(random(1)\,.5)"'
_INTERLACED = "-vf tinterlace=interleave_top,setfield=tff -flags +ilme+ildct -top 1"


def _film(rate: str = "25", filters: str = "null") -> str:
    return f"-f lavfi -i testsrc2=s=320x180:r={rate}:d=12,{filters}"


def _each(suffixes: str, arguments: str) -> list[tuple[str, str]]:
    return [(suffix, arguments) for suffix in suffixes.split()]


KINDS: dict[str, list[tuple[str, str]]] = {
    "picture and sound from the start": _each("mp4 mov mkv ts flv", "-i base.mp4 -c copy"),
    "picture later than sound": _each(
        "mp4 mov mkv ts flv", "-itsoffset 0.8 -i base.mp4 -i base.mp4 -map 0:v -map 1:a -c copy"
    ),
    "sound later than picture": _each(
        "mp4 mov mkv ts flv", "-i base.mp4 -itsoffset 0.8 -i base.mp4 -map 0:v -map 1:a -c copy"
    ),
    "picture alone, starting late": _each("mp4 mkv ts flv", "-itsoffset 3 -i base.mp4 -map 0:v -c copy"),
    "cut by stream copy (MP4: edit list off a key frame)": _each("mp4 mov mkv ts flv", "-ss 3.3 -i base.mp4 -c copy"),
    "cut with times kept": _each("mp4 mkv ts", "-ss 3.3 -copyts -i base.mp4 -c copy"),
    "negative times": _each("mp4 mov", "-ss 3.3 -i base.mp4 -c copy -avoid_negative_ts disabled"),
    "fragmented MP4": [("mp4", "-i base.mp4 -c copy -movflags +frag_keyframe+empty_moov")],
    "MP4 without edit lists": [("mp4", "-i base.mp4 -c copy -use_editlist 0")],
    "clock that wraps (MPEG-TS, 2^33)": _each("ts", "-i base.mp4 -c copy -output_ts_offset 95438"),
    "23.976, 29.97, 50 and 59.94 a second": [
        (suffix, f"{_film(rate)} {_SOUND} {_X264}")
        for rate in ("24000/1001", "30000/1001", "50", "60000/1001")
        for suffix in ("mp4", "mkv", "ts", "flv")
    ],
    "variable frame rate": _each("mp4 mkv ts flv", f"{_film()} {_SOUND} {_SELECT} -fps_mode vfr {_X264}"),
    "pictures that stand (slides)": [(suffix, f"{_film('1/3')} {_SOUND} {_X264}") for suffix in ("mp4", "mkv", "ts")],
    "interlaced, 25 frames of two fields": [
        *_each("mp4 mkv ts", f"{_film('50')} {_SOUND} {_INTERLACED} {_X264} -x264opts tff=1"),
        *_each("ts mpg mkv", f"{_film('50')} {_SOUND} {_INTERLACED} {_MPEG2}"),
    ],
    "telecined, 24 to 30 frames": [
        *_each("mp4 mkv ts", f"{_film('24')} {_SOUND} -vf telecine {_X264}"),
        *_each("ts mpg", f"{_film('24')} {_SOUND} -vf telecine {_MPEG2}"),
    ],
    "telecined by flags in the stream (soft)": _each("mpg ts mkv", "-fflags +genpts -i soft.m2v -c copy"),
    "open groups of pictures": [
        *_each("mp4 mkv ts", f"{_film()} {_SOUND} {_X264} -x264opts open-gop=1"),
        *_each(
            "mp4 mkv ts", f"{_film()} {_SOUND} -c:v libx265 -x265-params open-gop=1:keyint=50:log-level=none -c:a aac"
        ),
    ],
    "VP9 and Opus": _each(
        "webm mkv", f"{_film()} {_SOUND} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus"
    ),
    "without presentation times (AVI)": [
        ("avi", f"{_film()} {_SOUND} {_X264} -bf {b_frames} -c:a mp2") for b_frames in (0, 2)
    ],
    "times in some packets only (MPEG-PS)": [("mpg", f"{_film()} {_SOUND} {_MPEG2}")],
}
"""Containers and arguments of ``ffmpeg``; ``base.mp4`` is twelve seconds of film and sound."""


@dataclass(frozen=True)
class Edit:
    """An entry of an edit list: seconds, and where they are in the media (-1: nowhere)."""

    seconds: float
    media_seconds: float


def with_edits(data: bytes, edits: list[Edit], media_scale: int) -> bytes:
    """An MP4 whose first track, after its samples' data, has another edit list (ISO/IEC 14496-12, 8.6.6)."""
    at = data.index(b"elst") - 4
    old = struct.unpack(">I", data[at : at + 4])[0]
    rows = b"".join(
        struct.pack(
            ">Iihh",
            round(one.seconds * 1000),
            round(one.media_seconds * media_scale) if one.media_seconds >= 0 else -1,
            1,
            0,
        )
        for one in edits
    )
    new = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
    out = bytearray(data[:at] + new + data[at + old :])
    for kind in (b"edts", b"trak", b"moov"):
        box = data.rindex(kind, 0, at) - 4
        size = struct.unpack(">I", data[box : box + 4])[0]
        out[box : box + 4] = struct.pack(">I", size + len(new) - old)
    return bytes(out)


def _cut_within_a_group(folder: Path) -> bytes:
    data = (folder / "base.ts").read_bytes()
    packets = len(data) // 188
    return data[packets * 3 // 10 * 188 : packets * 9 // 10 * 188]


PATCHED: dict[str, list[tuple[str, Callable[[Path], bytes]]]] = {
    "MP4 with an empty edit first": [
        ("mp4", lambda folder: with_edits((folder / "film.mp4").read_bytes(), [Edit(1.5, -1), Edit(12, 0.08)], 12800))
    ],
    "MP4 with several edits": [
        (
            "mp4",
            lambda folder: with_edits(
                (folder / "film.mp4").read_bytes(), [Edit(2.0, 0.08), Edit(3.0, 4.08), Edit(2.0, 9.08)], 12800
            ),
        )
    ],
    "MPEG-TS cut in the middle of a group": [("ts", _cut_within_a_group)],
    "MPEG-TS put together": [
        ("ts", lambda folder: b"".join((folder / f"part{part}.ts").read_bytes() for part in (0, 1)))
    ],
}


def make_bases(folder: Path) -> None:
    """The files that others are made from."""
    _ffmpeg(folder, f"{_film()} {_SOUND} {_X264} base.mp4")
    _ffmpeg(folder, "-i base.mp4 -map 0:v -c copy film.mp4")
    _ffmpeg(folder, "-i base.mp4 -c copy base.ts")
    _ffmpeg(folder, f"{_film('30000/1001')} -t 9.6 {_MPEG2} -flags +ilme+ildct -top 1 -an plain.m2v")
    (folder / "soft.m2v").write_bytes(with_pulldown((folder / "plain.m2v").read_bytes()))
    for part, start in enumerate((0, 6)):
        times = f"-muxdelay 0 -output_ts_offset {start}"
        _ffmpeg(folder, f"-ss {start} -t 6 -i base.mp4 -an {_X264} -bf 0 {times} part{part}.ts")


_PICTURE, _GROUP, _EXTENSION = 0x00, 0xB8, 0xB5
_PULLDOWN = ((1, 1), (0, 0), (0, 1), (1, 0))
"""For four pictures in a row: whether the top field comes first, and whether the first field is shown again."""


def with_pulldown(data: bytes) -> bytes:
    """MPEG-2 video whose 24 pictures are to be shown as 30 (ISO/IEC 13818-2, ``repeat_first_field`` in 6.3.10)."""
    out, shown_before, group = bytearray(data), 0, 0
    at = out.find(b"\0\0\1")
    number = 0
    while 0 <= at < len(out) - 9:
        kind = out[at + 3]
        if kind == _GROUP:
            shown_before, group = shown_before + group, 0
        elif kind == _PICTURE:
            number = shown_before + (out[at + 4] << 2 | out[at + 5] >> 6)
            group += 1
        elif kind == _EXTENSION and out[at + 4] >> 4 == 8:  # picture_coding_extension
            top_first, repeat = _PULLDOWN[number % 4]
            out[at + 7] = out[at + 7] & ~0x82 | top_first << 7 | repeat << 1
            out[at + 8] |= 0x80  # progressive_frame
        at = out.find(b"\0\0\1", at + 4)
    return bytes(out)


def _ffmpeg(folder: Path, arguments: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *shlex.split(arguments)], check=True, cwd=folder)


@dataclass(frozen=True)
class Reference:
    """What FFmpeg says of a file's frames: when each is shown, in seconds, and a checksum of its luma."""

    times: list[Fraction]
    checksums: list[int]


def ffmpeg_frames(path: Path) -> Reference:
    """Decode with all streams mapped."""
    command = ["ffmpeg", "-hide_banner", "-i", str(path), "-map", "0:v:0", "-map", "0:a?", "-fps_mode", "passthrough"]
    told = subprocess.run(
        [*command, "-vf", "showinfo", "-f", "null", "-"], check=True, capture_output=True, text=True
    ).stderr
    base = re.search(r"config in time_base: (\d+)/(\d+)", told)
    assert base is not None
    frames = re.findall(r"n: *\d+ pts: *(-?\d+).*? plane_checksum:\[(\w+)", told)
    return Reference(
        [int(pts) * Fraction(int(base[1]), int(base[2])) for pts, _ in frames],
        [int(checksum, 16) for _, checksum in frames],
    )


_GOES_ON_SECONDS = Fraction(1, 2)
"""By which the sound must outlast the picture, so that the last picture stands until its end."""


def last_picture_seconds(path: Path) -> Fraction:
    """For how long the last picture is shown, by FFmpeg's packets: while the sound goes on, it stands."""
    entries = [
        "-show_entries",
        "packet=pts_time,dts_time,duration_time,flags:format=start_time,duration",
        "-of",
        "json",
    ]
    found = []
    for kind in ("v:0", "a:0"):
        command = ["ffprobe", "-v", "error", "-select_streams", kind, *entries, str(path)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        shown = [
            (Fraction(packet.get("pts_time") or packet["dts_time"]), Fraction(packet.get("duration_time", 0)))
            for packet in told.get("packets", [])
            if "D" not in packet["flags"] and {"pts_time", "dts_time"} & set(packet)
        ]
        found.append(max(shown, default=None))
    picture, sound = found
    assert picture is not None
    end = picture[0] + picture[1]
    if sound is not None:
        # The last packet may hold more than is to be heard.
        of_container = Fraction(told["format"].get("start_time", 0)) + Fraction(told["format"]["duration"])
        of_sound = min(sound[0] + sound[1], of_container)
        end = of_sound if of_sound >= end + _GOES_ON_SECONDS else end
    return end - picture[0]


@dataclass(frozen=True)
class Comparison:
    """How far the samples of a file are from FFmpeg's frames.

    Attributes:
        container: the file's suffix.
        first_off: of the first frame's time, in seconds.
        frames_off: frames by which a sample is off at most.
        samples: how many were compared.
        samples_off: how many there are too few or too many.
    """

    container: str
    first_off: Fraction
    frames_off: int
    samples: int
    samples_off: int


def compare(path: Path) -> Comparison:
    """Compare a file's samples, at every rate, with FFmpeg's frames."""
    reference = ffmpeg_frames(path)
    off, count, count_off, first_off = 0, 0, 0, Fraction(0)
    lasts = reference.times[-1] - reference.times[0] + last_picture_seconds(path)
    for rate in RATES:
        with open_video(path, rate, device="cpu") as video:
            first_off = abs(video.first_sample_seconds - reference.times[0])
            shown = [zlib.adler32(y, 0) for batch in video.samples((0, 0, 1, 1)) for y in batch.y]
        for sample, checksum in enumerate(shown):
            ought = bisect_right(reference.times, reference.times[0] + sample / rate) - 1
            if checksum != reference.checksums[ought]:
                at = [n for n, other in enumerate(reference.checksums) if other == checksum]
                off = max(off, min((abs(n - ought) for n in at), default=len(reference.times)))
        count += len(shown)
        count_off = max(count_off, abs(len(shown) - math.ceil(lasts * rate)))
    return Comparison(path.suffix[1:], first_off, off, count, count_off)


def compare_kind(kind: str, folder: Path) -> dict[str, object]:
    """Make the files of a kind, compare each, and sum up."""
    found = []
    for number, (suffix, how) in enumerate([*KINDS.get(kind, ()), *PATCHED.get(kind, ())]):
        path = folder / f"made-{number}.{suffix}"
        if isinstance(how, str):
            _ffmpeg(folder, f"{how} {path.name}")
        else:
            path.write_bytes(how(folder))
        found.append(compare(path))
        if found[-1].first_off > Fraction(1, 1000) or found[-1].frames_off or found[-1].samples_off:
            print(f"  {how}: {found[-1]}", file=sys.stderr)
    return {
        "files": len(found),
        "containers": " ".join(dict.fromkeys(one.container for one in found)),
        "samples": sum(one.samples for one in found),
        "first_frame_off_ms": round(1000 * float(max(one.first_off for one in found)), 3),
        "most_frames_off": max(one.frames_off for one in found),
        "most_samples_off": max(one.samples_off for one in found),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="only kinds that contain one of these words")
    wanted = parser.parse_args().kinds
    table: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_bases(folder)
        for kind in [*KINDS, *PATCHED]:
            if not wanted or any(word in kind for word in wanted):
                table[kind] = compare_kind(kind, folder)
                print(f"{kind:54} {table[kind]}", flush=True)
    off = [kind for kind, row in table.items() if row["most_frames_off"] or row["most_samples_off"]]
    if off:
        raise SystemExit(f"not as FFmpeg has it: {', '.join(off)}")
    if not wanted:
        write_result("timing", {"rates": list(map(str, RATES)), "kinds": table})


if __name__ == "__main__":
    main()
