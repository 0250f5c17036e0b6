from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import caption_extents
from caption_extents.batch import Summary
from caption_extents.cli import app
from caption_extents.options import check_id, encoders_of_machine, id_from_name
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import acquire_version
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest
from tests.media import Recipe, make_video

CROP = "0,0.3,1,0.9"


def call(*arguments: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.exception
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_a_run_for_people(tmp_path: Path) -> None:
    video = make_video(Recipe("my video (1)"), tmp_path)
    srt = tmp_path / "out.srt"
    code, out, _ = call("run", str(video), "--crop", CROP, "--store", str(tmp_path / "s"), "--subtitles", str(srt))
    assert code == 0
    assert "local/client/videos/my-video-1/cropped_frames_v1" in out
    for section in ("Performance metrics", "Extraction", "Inference", "Encoding", "Upload", "Overlap analysis"):
        assert section in out
    assert srt.exists()


def test_a_run_for_programs(tmp_path: Path) -> None:
    video = make_video(Recipe("video"), tmp_path)
    code, out, _ = call("run", str(video), "--crop", CROP, "--store", str(tmp_path / "s"), "--tenant", "t", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["frame_count"] == 15
    assert result["caption_frame_extents_db_key"] == "t/server/videos/video/caption_frame_extents_v1.db.gz"
    assert set(result["metrics"]["stages"]) == {"extraction", "inference", "encoding", "upload"}


@pytest.mark.parametrize(
    ("cores", "shares", "encoders"), [(1, 1, 4), (4, 1, 4), (16, 1, 16), (32, 2, 16), (32, 20, 4), (256, 1, 64)]
)
def test_encoders_are_as_many_as_cores(cores: int, shares: int, encoders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_extents.options.usable_cores", lambda: cores)
    assert encoders_of_machine(shares) == encoders


def test_a_run_encodes_with_all_cores_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_extents.options.usable_cores", lambda: 7)
    video = make_video(Recipe("video"), tmp_path)
    for options, workers in (([], 7), (["--encoder-workers", "2"], 2)):
        code, out, _ = call("run", str(video), "--crop", CROP, "--store", str(tmp_path / "s"), "--json", *options)
        assert code == 0
        assert json.loads(out)["metrics"]["stages"]["encoding"]["workers"] == workers


@pytest.mark.parametrize(
    ("options", "encoders"),
    [
        (["--on", "local", "--jobs", "2"], None),
        (["--on", "local", "--encoder-workers", "3"], 3),
        (["--on", "ray"], 4),
        (["--on", "ray", "--cpus", "8.5"], 8),
        (["--on", "modal"], None),
        (["--on", "modal", "--encoder-workers", "3"], 3),
    ],
)
def test_videos_of_a_list_are_encoded_with_their_share(
    options: list[str], encoders: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, given = tmp_path / "films.csv", list[Any]()
    listed.write_text(f'video,crop\nfilm.mp4,"{CROP}"\n')
    monkeypatch.setattr("caption_extents.options.usable_cores", lambda: 12)
    monkeypatch.setattr("caption_extents.cli.jobs._executor", lambda *_: None)
    monkeypatch.setattr("caption_extents.batch.run_batch", lambda *arguments: given.extend(arguments) or Summary())
    code, _, err = call("batch", str(listed), "--store", str(tmp_path), *options)
    assert code == 0, err
    assert given[3].get("encoder_workers") == encoders


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "0,0,1"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["--crop", "0,0,1,1.2"], "between 0 and 1"),
        (["--crop", "0.9,0,0.1,1"], "must be smaller"),
        (["--crop", "0,0,0.05,1"], "at least 16x16"),
        (["--rate", "0"], "--rate is 0;"),
        (["--rate", "100000"], "--rate is 100000;"),
        (["--rate", "ten"], "the rate is 'ten'"),
        (["--rate", "1/0"], "the rate is '1/0'"),
        (["--subtitles", "nowhere/film.srt"], "there is no folder 'nowhere'"),
        (["--trace", "nowhere/trace.json"], "there is no folder 'nowhere'"),
        (["--trace", "."], "it is a folder"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["--tenant", "../up"], "--tenant '../up'"),
        (["--video-id", "a/b"], "--video-id 'a/b'"),
        (["--video-id", ".."], "--video-id '..'"),
        (["--implementation", "other"], "pipelined or sequential"),
        (["--device", "tpu"], "auto, cpu, cuda or cuda:N"),
        (["--encoder-workers", "0"], "--encoder-workers is 0"),
        (["--model", "none.safetensors"], "none.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_exits_with_2_and_writes_nothing(options: list[str], message: str, tmp_path: Path) -> None:
    video = make_video(Recipe("video"), tmp_path)
    store = tmp_path / "store"
    code, _, errors = call("run", str(video), "--crop", CROP, "--store", str(store), *options)
    assert code == 2
    assert message in " ".join(errors.split())
    assert not store.exists()


def test_text_that_cannot_be_read_is_known_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, store = make_video(Recipe("video"), tmp_path), tmp_path / "store"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, errors = call("run", str(video), "--crop", CROP, "--store", str(store), "--ocr")
    assert code == 2
    assert "needs the extra 'ocr'" in errors
    assert not store.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    """Also by the processes that would have begun to use it."""
    command = [sys.executable, "-m", "caption_extents", "run", str(make_video(Recipe("video"), tmp_path))]
    command += ["--crop", CROP, "--store", str(tmp_path / "store"), "--device", "cuda"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_exact_rates(tmp_path: Path) -> None:
    video = make_video(Recipe("video"), tmp_path)
    options = ["--crop", CROP, "--store", str(tmp_path / "s"), "--rate", "30000/1001"]
    code, _, errors = call("run", str(video), *options, "--tenant", "t1", "--video-id", "v1", "--json")
    assert code == 0, errors
    assert read_manifest(open_store(str(tmp_path / "s")), VideoKeys("t1", "v1")).frame_rate == "30000/1001"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no video"), (b"", "is empty"), (b"not a video at all" * 50, "cannot open")],
    ids=["missing", "empty", "text"],
)
def test_bad_input_exits_with_2_and_writes_nothing(content: bytes | None, message: str, tmp_path: Path) -> None:
    video, store = tmp_path / "video.mp4", tmp_path / "store"
    if content is not None:
        video.write_bytes(content)
    code, _, errors = call("run", str(video), "--crop", CROP, "--store", str(store))
    assert code == 2
    assert message in errors
    assert not store.exists()


def test_a_failing_store_exits_with_1(tmp_path: Path) -> None:
    video = make_video(Recipe("video"), tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "local").write_text("a file where a folder should be")
    code, _, errors = call("run", str(video), "--crop", CROP, "--store", str(tmp_path / "store"))
    assert code == 1
    assert "could not write" in errors
    assert "Not a directory" in errors


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("film.mp4", "film"),
        ("films/My film (1).mkv", "My-film-1"),
        ("Où est — ça?.mp4", "Ou-est-ca"),
        (unicodedata.normalize("NFD", "Où est — ça?.mp4"), "Ou-est-ca"),
        ("-v.ts", "v"),
        ("a..b.mp4", "a.b"),
        ("電影.mp4", "video-"),
        ("Фильм 2.mp4", "2-"),
        ("...", "video-"),
        ("", "video-"),
        ("x" * 300, "x" * 119 + "-"),
    ],
)
def test_ids_are_made_of_names(name: str, expected: str) -> None:
    made = id_from_name(name)
    assert made.startswith(expected)
    assert len(made) == len(expected) + 8 * expected.endswith("-")


def _without_accents(name: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6), min_size=2, max_size=2))
def test_names_of_other_letters_give_other_ids(names: list[str]) -> None:
    alike = len({_without_accents(name) for name in names}) == 1
    one, other = (id_from_name(f"{name}.mp4") for name in names)
    check_id(one, "video_id")
    assert (one != other) or alike


@given(st.text())
def test_ids_from_names_can_be_used(name: str) -> None:
    check_id(id_from_name(name), "video_id")


@pytest.mark.parametrize("code", ["import caption_extents", "import caption_extents.cli as c; c.app(['--help'])"])
def test_start_is_quick(code: str) -> None:
    def cpu_seconds() -> float:
        """Whatever else the machine does meanwhile."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(5)) < 0.5


def test_start_loads_nothing_heavy() -> None:
    code = (
        "import sys, caption_extents.cli; print([m for m in ('torch', 'av', 'numpy', 'obstore') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_version() -> None:
    assert call("--version")[1].strip() == caption_extents.__version__


def test_versions_and_prune(tmp_path: Path) -> None:
    video, store = make_video(Recipe("video"), tmp_path), str(tmp_path / "s")
    for command in ("versions", "prune"):
        code, out, errors = call(command, "video", "--store", store)
        assert (code, out) == (2, "")
        assert f"there is no store '{store}'; give the one that the run wrote to: --store\n" in errors
    assert "would end with this command" in call("run", str(video), "--crop", CROP, "--store", "memory://")[2]
    Path(store).mkdir()
    assert (
        f"{store} has no versions of video 'video' of tenant 'local'\n" in call("prune", "video", "--store", store)[2]
    )
    for _ in range(2):
        assert call("run", str(video), "--crop", CROP, "--store", store, "--quiet")[0] == 0
    assert "did you mean 'video'?" in call("versions", "vidoe", "--store", store)[2]
    keys, opened = VideoKeys("local", "video"), open_store(store)
    with acquire_version(opened, keys, "other") as failed:
        record = ChunkRecord(keys.chunk(3, 16, 0), 16, (0,), 1, "")
        failed.record(record, opened.put(record.key, b"x", "video/webm"))
    code, out, _ = call("versions", "video", "--store", store)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["v1", "complete"],
        ["v2", "complete"],
        ["v3", "abandoned"],
    ]
    assert [state["version"] for state in json.loads(call("versions", "video", "--store", store, "--json")[1])] == [
        1,
        2,
        3,
    ]
    assert call("prune", "video", "--store", store, "--dry-run")[1] == "would remove v3 (abandoned, 1 chunks)\n"
    answered = CliRunner().invoke(app, ["prune", "video", "--store", store], input="n\n")
    assert "removed" not in answered.stdout
    assert "removed v3" in call("prune", "video", "--store", store, "--yes")[1]
    assert "removed v1" in call("prune", "video", "--store", store, "--keep", "1", "--yes")[1]
    assert call("versions", "video", "--store", store)[1].startswith("v2")
    assert call("prune", "video", "--store", store, "--keep", "0")[0] == 2
    assert call("versions", "../x", "--store", store)[0] == 2
    code, _, errors = call("versions", "мой фильм", "--store", store)
    assert code == 2
    assert f"the id '{id_from_name('мой фильм.mp4')}'" in errors
    assert (
        call("prune", "video", "--store", store, "--yes")[1]
        == f"nothing of video of tenant local to remove in {store}\n"
    )
    assert (
        "has no complete version 9; complete are 2"
        in call("subtitles", "video", "x.srt", "--version", "9", "--store", store)[2]
    )


@pytest.mark.parametrize(("shell", "what"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")])
def test_shell_completion(shell: str, what: str) -> None:
    program = Path(sys.executable).with_name("caption-extents")
    environment = {**os.environ, "_CAPTION_EXTENTS_COMPLETE": f"source_{shell}"}
    script = subprocess.run([str(program)], env=environment, check=True, capture_output=True, text=True).stdout
    assert what in script
    asked = {
        **os.environ,
        "_CAPTION_EXTENTS_COMPLETE": "complete_bash",
        "COMP_WORDS": "caption-extents re",
        "COMP_CWORD": "1",
    }
    found = subprocess.run([str(program)], env=asked, check=True, capture_output=True, text=True).stdout
    assert "report" in found
