"""What a person is told when something outside of the program is wrong: a line that names it and says what to do.

Each message here stands in ``docs/troubleshooting.md``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import caption_extents
from caption_extents.cli.errors import with_options
from caption_extents.entries import read_list
from caption_extents.errors import InputError, OutputError, ProcessingError
from caption_extents.files import write_atomically
from caption_extents.job import run as runs
from caption_extents.results.database import open_database
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import acquire_version
from caption_extents.storage.store import open_store
from caption_extents.video.truncation import lacks_index, missing_bytes
from tests.media import Recipe, make_video
from tests.test_cli import CROP, call

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
LONG = "x" * 300 + ".mp4"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(Recipe("film", pts=tuple(range(90))), tmp_path_factory.mktemp("film"))


def run(path: Path | str, store: Path, *options: str) -> tuple[int, str, str]:
    return call("run", str(path), "--crop", CROP, "--store", str(store), "--quiet", *options)


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def folder(path: Path) -> Path:
    (path / "film.mp4").mkdir()
    return path / "film.mp4"


def pipe(path: Path) -> Path:
    os.mkfifo(path / "film.mp4")
    return path / "film.mp4"


def encrypted(path: Path) -> Path:
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    return make_video(Recipe("film", muxer_options=options), path)


def without_index(path: Path) -> Path:
    return cut(make_video(Recipe("film"), path), 0.8)


def cut_off(container: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        codec = "mpeg4" if container == "avi" else "libx264"
        options = {"movflags": "faststart"} if container == "mp4" else {}
        film = Recipe("film", container, codec, pts=tuple(range(300)), muxer_options=options, options={"g": "30"})
        return cut(make_video(film, path), 0.6)

    return make


VIDEOS: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "folder": (folder, r"'.*film\.mp4' is a folder; give a video file"),
    "pipe": (pipe, r"'.*film\.mp4' is no file that can be read again, as a pipe is not; save it as a file first"),
    "missing": (
        lambda path: path / "film.mp4",
        r"there is no video '.*film\.mp4': no file of this name here, and no object",
    ),
    "long name": (lambda path: path / LONG, r"cannot read '.*x\.mp4': File name too long"),
    "https": (lambda path: "https://host/film.mp4", r"'https://host/film\.mp4' is an address.*download it first"),
    "encrypted": (encrypted, r"film\.mp4' is encrypted \(CENC, DRM\) and cannot be decoded; give a copy without prot"),
    "no index": (without_index, r"film\.mp4' has no index: the recording was cut off.*untrunc"),
    **{
        f"cut off {kind}": (
            cut_off(kind),
            rf"film\.{kind}' ends early: it holds [\d,]+ of [\d,]+ bytes \(60%\), the first \d\.\d seconds; the "
            r"download or copy was cut off\. Fetch it again, or give --partial to take it as far as it goes",
        )
        for kind in ("mp4", "mkv", "avi")
    },
}


@pytest.mark.parametrize("case", VIDEOS)
def test_videos_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    make, message = VIDEOS[case]
    code, out, errors = run(make(tmp_path), tmp_path / "store")
    assert code == 2, errors
    assert re.search(message, errors), errors
    assert errors.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_file_that_ends_early_is_taken_when_asked_to(kind: str, isolate: bool, tmp_path: Path) -> None:
    path = cut_off(kind)(tmp_path)
    options = ["--isolate"] if isolate else []
    code, _, errors = run(path, tmp_path / "s", *options)
    assert code == 2, errors
    code, out, errors = run(path, tmp_path / "s", "--partial", "--json", *options)
    assert code == 0, errors
    assert 40 < json.loads(out)["frame_count"] < 70


def test_whole_files_miss_nothing(video: Path, tmp_path: Path) -> None:
    recipes = [Recipe("a", kind) for kind in ("mkv", "mov", "ts", "flv")] + [Recipe("b", "avi", "mpeg4")]
    recipes += [Recipe("c", muxer_options={"movflags": flags}) for flags in ("faststart", "frag_keyframe+empty_moov")]
    for recipe in recipes:
        path = make_video(recipe, tmp_path)
        assert missing_bytes(path) == 0, recipe
        assert not lacks_index(path)
    for content in (b"", b"\x1aE\xdf\xa3", b"\0\0\0\x08ftyp" * 3, os.urandom(64), b"RIFF\xff\xff\xff\xffAVI "):
        (tmp_path / "x").write_bytes(content)
        assert missing_bytes(tmp_path / "x") >= 0
        assert not lacks_index(tmp_path / "x")


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are Unicode there")
def test_a_name_that_is_not_utf8(video: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(name)).write_bytes(video.read_bytes())
    store = tmp_path / "s"
    code, _, errors = run(
        os.fsdecode(name), store, "--video-id", "v", "--subtitles", str(tmp_path / "v.srt"), "--report"
    )
    assert code == 0, errors
    data = open_store(store).get(VideoKeys("local", "v").database(1))
    assert open_database(data).execute("SELECT source_key FROM run_metadata").fetchone()[0].endswith(r"caf\xe9.mp4")


def test_a_relative_path_may_lead_out_of_this_folder(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = os.path.relpath(video, tmp_path / "here")
    assert ".." in path
    assert run(path, tmp_path / "s")[0] == 0
    for missing in ("../none.mp4", "./none.mp4", r"C:\films\none.mp4", "/none.mp4"):
        code, _, errors = run(missing, tmp_path / "s")
        assert code == 2
        assert f"there is no video {missing!r}" in errors


def test_a_file_address_is_a_file(video: Path, tmp_path: Path) -> None:
    code, _, errors = run(video.as_uri(), tmp_path / "s", "--video-id", "v")
    assert code == 0, errors


@pytest.mark.skipif(not AS_ROOT, reason="gives up root's rights in a child")
@pytest.mark.parametrize("what", ["video", "store", "output"])
def test_places_without_permission(what: str, video: Path, tmp_path: Path) -> None:
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (tmp_path / "film.mp4").write_bytes(video.read_bytes())
    (closed / "film.mp4").write_bytes(video.read_bytes())
    film = (closed if what == "video" else tmp_path) / "film.mp4"
    home = tmp_path / "home"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    store = closed / "s" if what == "store" else home / "s"
    output = (closed if what == "output" else home) / "film.srt"
    arguments = ["run", str(film), "--crop", CROP, "--store", str(store), "--subtitles", str(output), "--quiet"]
    # Python itself may stand where only root reads: everything is loaded by a run before.
    before = ["run", str(video), "--crop", CROP, "--store", str(tmp_path / "before"), "--quiet", "--json"]
    before += ["--subtitles", str(tmp_path / "before.srt")]
    script = (
        "import contextlib, os\nfrom caption_extents.cli import app\n"
        f"with contextlib.redirect_stdout(open(os.devnull, 'w')): app({before}, standalone_mode=False)\n"
        f"os.setgid(65534); os.setuid(65534)\napp({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=home)
    assert done.returncode in {1, 2}, done.stderr
    assert "ermission denied" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with a few kilobytes on it that are free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_file(full_disk: Path) -> None:
    old = full_disk / "film.srt"
    old.write_text("a good file")
    with pytest.raises(OutputError, match=r"film\.srt': No space left on device; what was there before is as it was"):
        write_atomically(old, "x" * 100_000)
    assert old.read_text() == "a good file"
    assert list(full_disk.iterdir()) == [old]


def test_subtitles_on_a_full_disk_are_told_in_a_line(video: Path, full_disk: Path, tmp_path: Path) -> None:
    code, _, errors = run(video, tmp_path / "s")
    assert code == 0, errors
    (full_disk / "film.srt").write_text("a good file")
    (full_disk / "filler").write_bytes(bytes(os.statvfs(full_disk).f_bavail * os.statvfs(full_disk).f_bsize))
    code, _, errors = call("subtitles", "film", str(full_disk / "film.srt"), "--store", str(tmp_path / "s"))
    # Without captions there may be nothing to write, for which there is always room.
    if code:
        assert code == 1
        assert re.fullmatch(r"caption-extents: could not write '.*film\.srt': No space.*\n", errors)
        assert (full_disk / "film.srt").read_text() == "a good file"


def test_files_are_replaced_with_their_rights_and_through_links(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o640)
    (tmp_path / "link").symlink_to("old")
    write_atomically(tmp_path / "link", "né")
    assert (tmp_path / "old").read_text(encoding="utf-8") == "né"
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    write_atomically(Path(os.devnull), "for nobody")


@pytest.mark.parametrize(
    ("table", "encoding"),
    [
        ("video;crop\nfilm.mp4;0.1,0.8,0.9,0.95\n", "utf-8"),
        ('video, crop\nfilm.mp4, "0.1,0.8,0.9,0.95"\n', "utf-8"),
        ("video\tcrop\nfilm.mp4\t0.1,0.8,0.9,0.95\n", "utf-16"),
        ('video,crop\r\nfilm.mp4,"0.1, 0.8, 0.9, 0.95"\r\n', "utf-8-sig"),
        ('Video,Crop\nfilm.mp4,"0.1,0.8,0.9,0.95"\n', "utf-16-le"),
        ('{"video": "film.mp4", "crop": [0.1, 0.8, 0.9, 0.95]}', "utf-16-be"),
    ],
    ids=["semicolons", "spaces", "UTF-16 and tabs", "UTF-8 with a mark", "UTF-16 without", "UTF-16 big end first"],
)
def test_tables_as_programs_save_them(table: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(table.encode(encoding))
    entries = read_list(tmp_path / "list.csv", "t")
    assert [(entry.video, entry.crop) for entry in entries] == [("film.mp4", (0.1, 0.8, 0.9, 0.95))]


def test_a_table_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("video,crop\nÜber.mp4".encode("latin-1"))
    with pytest.raises(InputError, match="is neither UTF-8 nor UTF-16 at byte 11; save it as UTF-8"):
        read_list(tmp_path / "list.csv", "t")


def test_options_are_named_as_they_are_given() -> None:
    assert with_options("raise max_undecodable_share") == "raise --max-undecodable-share"
    assert with_options("decode with `isolate`") == "decode with --isolate"
    assert with_options("the device") == "the device"
    assert with_options("frame_rate is 0; give samples") == "--rate is 0; give samples"
    assert with_options("crop_left is 2; give a fraction") == "left of --crop is 2; give a fraction"
    assert with_options("tenant_id '/' cannot be used") == "--tenant '/' cannot be used"


def test_two_files_of_one_name(video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their versions are told apart, since one may be pruned for the other."""
    (tmp_path / "again").mkdir()
    again = make_video(Recipe(video.stem, pts=tuple(range(40))), tmp_path / "again")
    assert again.name == video.name
    assert run(video, tmp_path / "s")[0] == 0
    assert run(video, tmp_path / "s")[0] == 0
    assert not caplog.messages
    assert run(again, tmp_path / "s")[0] == 0
    assert f"video id 'film' has versions of another file, {str(video)!r} (version 2)" in caplog.text
    code, output, _ = call("prune", "film", "--store", str(tmp_path / "s"), "--keep", "1", "--dry-run")
    assert code == 0
    assert output == f"would remove v1 (complete, 3 chunks of {video})\n"


def test_a_result_that_cannot_be_printed(video: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is full")
    command = [sys.executable, "-m", "caption_extents", "versions", "film", "--store", str(tmp_path)]
    with acquire_version(open_store(tmp_path), VideoKeys("local", "film"), "inputs"):
        pass
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "caption-extents: could not print the result: No space left on device\n"


@pytest.mark.parametrize("place", ["_make_plan", "_acquire", "_run_metadata", "choose_device"])
def test_every_error_that_leaves_is_one_of_the_package(
    place: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(runs, place, fail)
    with pytest.raises(ProcessingError, match="unexpectedly: ZeroDivisionError: planted") as caught:
        caption_extents.crop_and_infer_caption_frame_extents(
            str(video), "t", "v", caption_extents.CropRegion.parse(CROP), store=tmp_path / "s"
        )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_the_message_says_works(tmp_path: Path) -> None:
    """Each message's first words stand in the table of messages."""
    table = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for words in (
        "is a folder; give a video file",
        "is no file that can be read again",
        "there is no video",
        "File name too long",
        "is an address",
        "is encrypted (CENC, DRM)",
        "has no index",
        "ends early",
        "No space left on device",
        "permission denied",
        "is neither UTF-8 nor UTF-16",
        "gave no sign of life",
    ):
        assert words in table, words


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"x" * 99, lambda d: d[:-9]])
def test_a_damaged_database_is_told_in_a_line(damage: Any, video: Path, tmp_path: Path) -> None:
    assert run(video, tmp_path / "s")[0] == 0
    path = tmp_path / "s" / VideoKeys("local", "film").database(1)
    path.write_bytes(damage(path.read_bytes()))
    code, _, errors = call("subtitles", "film", str(tmp_path / "a.srt"), "--store", str(tmp_path / "s"))
    assert code == 2
    assert "a results database is damaged" in errors
    assert errors.count("\n") == 1


def test_a_list_with_a_quote_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('video,crop\na.mp4,"0.1,0.8,0.9,0.95\n' + "b.mp4,0\n" * 40_000)
    with pytest.raises(InputError, match=r"is no table: field larger.*is a quote missing"):
        read_list(tmp_path / "list.csv", "t")


@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), b"\r\n" * 4, b"made by a program that leaves notes\n", b"\xff" * 64]
)
def test_what_stands_behind_the_last_box_is_no_box(tail: bytes, tmp_path: Path) -> None:
    path = make_video(Recipe("film"), tmp_path)
    path.write_bytes(path.read_bytes() + tail)
    assert missing_bytes(path) == 0


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_an_avi_that_does_not_know_its_length(length: int, tmp_path: Path) -> None:
    path = make_video(Recipe("film", "avi", "mpeg4"), tmp_path)
    data = bytearray(path.read_bytes())
    data[4:8] = length.to_bytes(4, "little")
    path.write_bytes(data)
    assert missing_bytes(path) == 0
