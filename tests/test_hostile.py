"""Files made to do harm are refused, at once and with a clear message."""

from __future__ import annotations

import re
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest

from caption_extents import CropInferResult, crop_and_infer_caption_frame_extents
from caption_extents.errors import InputError
from caption_extents.region import CropRegion
from tests.media import Recipe, encode_h264, make_video, transport_stream
from tests.mutations import run_all

pytestmark = pytest.mark.undisturbed

LIMIT_SECONDS = 2.0


def refuse(path: Path, message: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        crop_and_infer_caption_frame_extents(str(path), "t1", "v1", CropRegion(0, 0, 1, 1), store=store)
    assert time.monotonic() - started < LIMIT_SECONDS
    assert not store.exists()


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '/etc/passwd'\n",
        "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><BaseURL>http://127.0.0.1/</BaseURL></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "P6\n16 16\n255\n" + "x" * 768,
    ],
    ids=["m3u8", "concat", "svg", "dash", "sdp", "picture"],
)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "ffconcat", "svg", "mpd", "sdp", "%03d.ppm"])
def test_files_that_name_other_files(content: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"video.{suffix}"
    path.write_text(content)
    refuse(path, "cannot open", tmp_path)


def test_a_picture_of_60000_by_60000(tmp_path: Path) -> None:
    path = make_video(Recipe("huge", "avi", codec="mjpeg", pixel_format="yuvj420p"), tmp_path)
    start_of_frame = re.compile(rb"(\xff\xc0..\x08)....", re.DOTALL)
    data, count = start_of_frame.subn(rb"\1" + struct.pack(">HH", 60_000, 60_000), path.read_bytes())
    assert count >= 45
    path.write_bytes(data)
    refuse(path, "60000x60000 pixels|no frame of", tmp_path)


def test_two_hours_of_one_byte_packets(tmp_path: Path) -> None:
    path = tmp_path / "tiny.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(2 * 3600 * 30):
            packet = av.Packet(b"\x00")
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, 30), stream
            packet.is_keyframe = index == 0
            container.mux(packet)
    refuse(path, "no frame of|cannot open", tmp_path)


def _vint(value: int) -> bytes:
    """An EBML size of eight bytes."""
    return struct.pack(">Q", value | 1 << 56)


def test_ten_thousand_streams(tmp_path: Path) -> None:
    whole = make_video(Recipe("one", "mkv", codec="mjpeg", pixel_format="yuvj420p"), tmp_path).read_bytes()
    # The seek head names the element too; the last mention is the element itself.
    segment, tracks = whole.index(b"\x18\x53\x80\x67"), whole.rindex(b"\x16\x54\xae\x6b")
    entry = whole.index(b"\xae\x01", tracks + 4)
    end = entry + 9 + (int.from_bytes(whole[entry + 1 : entry + 9], "big") & ~(1 << 56))
    number_at = whole.index(b"\xd7\x81\x01", entry)
    before, after = whole[entry + 9 : number_at], whole[number_at + 3 : end]
    bodies = (before + b"\xd7\x82" + struct.pack(">H", number) + after for number in range(1, 10_001))
    many = b"".join(b"\xae" + _vint(len(body)) + body for body in bodies)
    path = tmp_path / "streams.mkv"
    unknown_size = b"\x01" + b"\xff" * 7
    path.write_bytes(
        whole[: segment + 4] + unknown_size + whole[segment + 12 : tracks + 4] + _vint(len(many)) + many + whole[end:]
    )
    refuse(path, "at most 200", tmp_path)


def test_timestamps_that_claim_years(tmp_path: Path) -> None:
    pts = (*range(30), 40_000_000_000)
    path = make_video(Recipe("years", "mkv", pts=pts, time_base=Fraction(1, 1000)), tmp_path)
    refuse(path, "its timestamps are damaged", tmp_path)


def test_a_flood_of_packets(tmp_path: Path) -> None:
    options = {"preset": "ultrafast"}
    recipe = Recipe(
        "flood", "mkv", pts=tuple(range(3000)), time_base=Fraction(1, 100_000), width=32, height=32, options=options
    )
    refuse(make_video(recipe, tmp_path), "no frame of|packets in", tmp_path)


def test_damaged_videos(tmp_path: Path) -> None:
    """A few of the files that ``python -m tests.mutations`` makes; it makes two thousand."""
    table, bad, _ = run_all(60, 7, tmp_path)
    assert sum(table.values()) == 60
    assert bad == []


def _encode(size: tuple[int, int], frames: range) -> list[bytes]:
    """Annex B access units of an H.264 stream without B frames."""
    options = {"bf": "0", "x264-params": "keyint=15:log-level=none"}
    return [bytes(packet) for packet in encode_h264(len(frames), size, frames.start, **options)]


def _transport_stream(path: Path, units: list[bytes], pts: list[int]) -> Path:
    timed = enumerate(zip(units, pts, strict=True))
    return transport_stream(path, ((unit, time, 3000 * k + 90_000, k % 15 == 0) for k, (unit, time) in timed))


def run(video: Path, store: Path, **options: float) -> CropInferResult:
    return crop_and_infer_caption_frame_extents(str(video), "t1", "v1", CropRegion(0, 0, 1, 1), store=store, **options)


def test_a_stream_that_changes_its_size(tmp_path: Path) -> None:
    """No damage: frames of another size are cropped at the same place and scaled."""
    units = [*_encode((160, 96), range(120)), *_encode((192, 112), range(120, 150))]
    video = _transport_stream(tmp_path / "sizes.ts", units, [3000 * k + 90_000 for k in range(150)])
    result = run(video, tmp_path / "store")
    assert result.frame_count == 50
    assert result.undecodable_samples == ()
    assert [(change.sample, change.width, change.height) for change in result.picture_changes] == [(40, 192, 112)]


def test_timestamps_that_go_backwards(tmp_path: Path) -> None:
    """A second part that begins again at an earlier time: it would be left out, so it is refused."""
    first = _transport_stream(tmp_path / "1.ts", _encode((160, 96), range(90)), [3000 * k + 90_000 for k in range(90)])
    again = _transport_stream(tmp_path / "2.ts", _encode((160, 96), range(60)), [3000 * k + 90_000 for k in range(60)])
    video = tmp_path / "back.ts"
    video.write_bytes(first.read_bytes() + again.read_bytes())
    refuse(video, "go back by 3.0 s", tmp_path)


def test_packets_that_are_missing(tmp_path: Path) -> None:
    units = _encode((160, 96), range(300))
    kept = [index for index in range(300) if not 155 <= index < 163]
    times = [3000 * index + 90_000 for index in kept]
    video = _transport_stream(tmp_path / "missing.ts", [units[index] for index in kept], times)
    result = run(video, tmp_path / "store", max_undecodable_share=0.1)
    assert result.frame_count == 100
    # The frames between are shown longer; those that refer to lost ones are concealed or listed, never other samples.
    assert set(result.undecodable_samples) <= set(range(51, 61))
