"""The library, step by step, without a store: each part works alone. Written to be read."""

from __future__ import annotations

import inspect
import json
import pydoc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pysubs2
import pytest

import caption_extents as ce
from caption_extents.chunks.encode import ChunkFormat, decode_chunk
from caption_extents.chunks.plan import ChunkAssembler, plan_chunks
from caption_extents.chunks.presets import PRESETS
from caption_extents.encoders.base import ThreadEncoder
from caption_extents.ocr.reader import ReadText
from caption_extents.results.database import build_database, read_captions
from caption_extents.training.sample_video import CROP
from tests.media import Recipe, make_video


@pytest.fixture(scope="module")
def film(captioned_video: Path) -> str:
    """Twelve seconds with burned-in captions."""
    return str(captioned_video)


@pytest.fixture(scope="module")
def truth(captioned_video: Path) -> list[tuple[int, int]]:
    """The first sample of each caption, and the first after it."""
    captions = json.loads(captioned_video.with_suffix(".json").read_text())
    return [(caption["start_frame"], caption["end_frame"]) for caption in captions]


@pytest.fixture
def model() -> Iterator[ce.CaptionModel]:
    with ce.CaptionModel(device="cpu") as opened:
        yield opened


def test_numbers_may_be_those_of_numpy() -> None:
    job = ce.Job(
        "film.mp4", "t", "v", np.array([0.25, 0.75, 1, 1]), np.int64(10), np.int16(4), stall_seconds=np.int8(9)
    )
    assert job == ce.Job("film.mp4", "t", "v", (0.25, 0.75, 1, 1), 10, 4, stall_seconds=9)
    assert {type(value) for value in (job.frame_rate, job.encoder_workers, job.stall_seconds)} == {int}
    json.dumps([job.encoder_workers, job.stall_seconds, job.crop_region.crop_left])


def test_the_captions_of_a_file(film: str, truth: list[tuple[int, int]]) -> None:
    captions = ce.find_captions(film, crop=CROP)
    assert [(caption.first_sample, caption.end_sample) for caption in captions] == truth
    first = captions[0]
    assert (first.start, first.end) == (first.first_sample / 10, first.end_sample / 10)
    assert 0.5 < first.confidence <= 1
    assert first.text is None


def test_captions_come_while_the_video_is_still_decoded(film: str, model: ce.CaptionModel) -> None:
    decoded: list[int] = []

    class Watched(ce.CaptionModel):
        def label_parts(self, samples):  # type: ignore[no-untyped-def]
            return super().label_parts(batch for batch in samples if not decoded.append(len(batch)))

    with Watched(device="cpu") as watched:
        captions = ce.iter_captions(film, CROP, 30, model=watched)
        first = next(captions)
        assert sum(decoded) < 360
        rest = list(captions)
    assert sum(decoded) == 360
    expected = ce.find_captions(film, CROP, 30, model=model)
    assert [(c.start, c.end) for c in (first, *rest)] == [(c.start, c.end) for c in expected]


def test_an_iterator_that_is_closed_leaves_nothing_open(film: str, model: ce.CaptionModel) -> None:
    captions = ce.iter_captions(film, CROP, model=model)
    next(captions)
    captions.close()  # type: ignore[attr-defined]
    assert list(captions) == []
    assert ce.find_captions(film, CROP, model=model)  # the caller's model stays open


def test_step_by_step(film: str, truth: list[tuple[int, int]], tmp_path: Path) -> None:
    with ce.open_video(film, sample_rate=10) as video, ce.CaptionModel(device="auto") as model:
        assert (video.sample_count, float(video.sample_rate), video.width, video.height) == (120, 10, 640, 360)
        probabilities = model.label(video.samples(CROP))
    assert probabilities.shape == (119, 2, 5)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, atol=1e-5)
    captions = ce.decode_captions(probabilities, sample_rate=10)
    assert [(caption.first_sample, caption.end_sample) for caption in captions] == truth
    ce.write_subtitles(captions, tmp_path / "film.srt")
    lines = pysubs2.load(str(tmp_path / "film.srt"))
    assert (lines[0].start, lines[0].text) == (round(captions[0].start * 1000), "[1]")
    assert len(lines) == len(captions)


def test_samples_are_numpy_arrays(film: str) -> None:
    with ce.open_video(film, Fraction(30000, 1001), device="cpu") as video:
        batches = list(video.samples(ce.CropRegion(0.25, 0.5, 0.75, 1)))
    y, u, v = batches[0].planes
    assert (y.shape, u.shape, v.shape) == ((32, 180, 320), (32, 90, 160), (32, 90, 160))
    assert {plane.dtype for plane in (y, u, v)} == {np.dtype(np.uint8)}
    assert [batch.first_sample for batch in batches] == list(range(0, sum(map(len, batches)), 32))


def test_labels_come_in_parts(film: str, model: ce.CaptionModel) -> None:
    with ce.open_video(film, device="cpu") as video:
        parts = list(model.label_parts(video.samples(CROP)))
    with ce.open_video(film, device="cpu") as video:
        whole = model.label(video.samples(CROP))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_chunks_of_samples(film: str) -> None:
    """Which sample goes where, VP9 in WebM, and back."""
    encoder, assembler, form = ThreadEncoder(PRESETS["fast"], 1), ChunkAssembler(), ChunkFormat(Fraction(10))
    with ce.open_video(film, device="cpu") as video:
        chunks = [chunk for batch in video.samples(CROP) for chunk in assembler.add(batch.first_sample, batch.planes)]
    chunks += assembler.flush()
    assert {chunk.plan for chunk in chunks} == set(plan_chunks(120))
    encoded, effort = encoder.encode(chunks[0], form)
    assert effort.seconds > 0
    frames = decode_chunk(encoded.data)
    assert [plane.shape for plane in frames[0]] == [plane.shape[1:] for plane in chunks[0].planes]


def test_a_database_of_results() -> None:
    captions = [ce.Caption(0.0, 0.2, 0, 2, 0.9, "hello", 0.8)]
    data = build_database({"cropped_frames_version": 1} | _METADATA, np.full((2, 2, 5), 0.2), captions)
    assert read_captions(data) == captions


_METADATA = dict.fromkeys(
    (
        *("model_version", "model_checkpoint_path", "run_id", "started_at", "completed_at", "frame_rate", "crop"),
        *("crop_px", "source_key", "source_fingerprint", "encoder_preset", "implementation", "decoder"),
        *("undecodable_samples", "package_version", "metrics"),
    ),
    "",
) | {"total_pairs": 2, "processing_time_seconds": 0.1, "frame_count": 3}


def test_the_whole_job(film: str, truth: list[tuple[int, int]], tmp_path: Path) -> None:
    """Store, versions, chunks; the result has the captions too."""
    result = ce.run_job(ce.Job(film, "me", "film", ce.CropRegion(*CROP), store=tmp_path))
    assert [(caption.first_sample, caption.end_sample) for caption in result.captions] == truth
    assert (tmp_path / result.cropped_frames_prefix / "manifest.json").is_file()
    assert result.version == 1
    assert [(c.start, c.end) for c in result.captions] == [(c.start, c.end) for c in ce.find_captions(film, CROP)]


def test_a_file_that_ends_early_or_is_damaged_is_no_silent_success(film: str, tmp_path: Path) -> None:
    whole = Path(film).read_bytes()
    original = make_video(Recipe("film", "mkv", pts=tuple(range(300)), options={"g": "30"}), tmp_path)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(original.read_bytes()[: original.stat().st_size // 2])
    with pytest.raises(ce.InputError, match=r"ends early: it holds .* give `partial`"):
        ce.find_captions(cut, CROP)
    assert isinstance(ce.find_captions(cut, CROP, partial=True), list)
    damaged = bytearray(whole)
    with av.open(film) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size and not packet.is_keyframe]
    for packet in packets[40:140]:
        assert packet.pos is not None
        damaged[packet.pos + 4 : packet.pos + packet.size] = b"\xff" * (packet.size - 4)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    for find in (ce.find_captions, lambda *a: list(ce.iter_captions(*a))):
        with pytest.raises(ce.ProcessingError, match="could not be decoded so far"):
            find(tmp_path / "damaged.mp4", CROP)


def test_reading_text_of_captions_that_lie_outside(film: str) -> None:
    class Reader:
        def read(self, picture: np.ndarray) -> ReadText:
            return ReadText("text", 0.5)

    captions = [
        ce.Caption(start, end, 0, 1, 1.0) for start, end in ((-3, -2), (1, 2), (1.5, 1.6), (11.9, 30), (99, 100))
    ]
    assert [c.text for c in ce.read_text(film, captions, CROP, Reader())] == [None, "text", "text", "text", None]
    assert ce.read_text(film, [], CROP, Reader()) == []


def test_the_text_of_captions(film: str, model: ce.CaptionModel) -> None:
    pytest.importorskip("rapidocr")
    captions = ce.read_text(film, ce.find_captions(film, CROP, model=model), CROP)
    read = [caption for caption in captions if caption.text]
    assert read
    assert all(caption.text_confidence is not None for caption in read)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda film: ce.find_captions("none.mp4", CROP), "no such video file: 'none.mp4'"),
        (lambda film: ce.find_captions(film, (0.5, 0, 0.4, 1)), r"crop_left \(0.5\) must be smaller than crop_right"),
        (lambda film: ce.find_captions(film, CROP, device="tpu"), "device 'tpu' is unknown; choose auto, cpu, cuda"),
        (lambda film: ce.find_captions(film, CROP[:3]), "give left, top, right and bottom"),
        (lambda film: ce.find_captions(film, None), "give left, top, right and bottom"),
        (lambda film: ce.decode_captions([[1, 2]]), "must be finite numbers of shape"),
        (lambda film: ce.open_video(film, threads=-1), "threads is -1; give a whole number between 0"),
        (lambda film: ce.decode_captions(np.full((3, 2, 5), np.nan)), "must be finite numbers of shape"),
        (lambda film: ce.decode_captions(np.full((3, 2, 5), 0.2), sample_rate=-10), "sample_rate is -10; give samples"),
        (lambda film: ce.open_video(film, sample_rate=0), "sample_rate is 0; give samples a second between 0.001"),
        (lambda film: ce.open_video(film, device="cuda:77"), "device 'cuda:77' is not there"),
        (lambda film: ce.write_subtitles([], "film.txt"), "cannot write subtitles to 'film.txt'"),
        (lambda film: ce.Job(film, "../up", "v", ce.CropRegion(*CROP)), "tenant_id '../up' cannot be used"),
        (lambda film: ce.Job(film, "t", "v", ce.CropRegion(*CROP), preset="x").rate and ce.run_job(
            ce.Job(film, "t", "v", ce.CropRegion(*CROP), preset="x")), "preset 'x' is unknown; choose fast"),
    ],
)  # fmt: skip
def test_errors_name_the_value_and_what_is_allowed(call, message: str, film: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ce.InputError, match=message):
        call(film)


def test_what_is_closed_or_used_up_says_so(film: str) -> None:
    with ce.CaptionModel(device="cpu") as model, ce.open_video(film, device="cpu") as video:
        samples = video.samples(CROP)
        assert len(model.label(samples)) == 119
        with pytest.raises(ce.InputError, match="can be taken once"):
            model.label(samples)
        assert len(model.label(video.samples(CROP))) == 119
    with pytest.raises(ce.InputError, match="is closed; open it again"):
        video.samples(CROP)
    with pytest.raises(ce.InputError, match="the model is closed"):
        ce.find_captions(film, CROP, model=model)
    assert ce.Job(film, "t", "v", CROP).crop_region == ce.CropRegion(*CROP)  # type: ignore[arg-type]


def test_every_public_name_says_what_it_takes_and_gives() -> None:
    for name in ce.__all__:
        if name == "__version__":
            continue
        thing = getattr(ce, name)
        text = pydoc.render_doc(
            thing,
            renderer=pydoc.plaintext,  # type: ignore[attr-defined]
        )
        assert len(inspect.getdoc(thing) or "") > 30, name
        if inspect.isfunction(thing) and not name.startswith("crop_and_infer"):
            for parameter in inspect.signature(thing).parameters:
                assert f"{parameter}:" in text, f"{name} does not describe {parameter}"
    assert "video_key, tenant_id, video_id" in inspect.getdoc(ce.crop_and_infer_caption_frame_extents).replace("`", "")  # type: ignore[union-attr]
    parameters = list(inspect.signature(ce.crop_and_infer_caption_frame_extents).parameters.values())
    assert [p.name for p in parameters[:6]] == [
        *("video_key", "tenant_id", "video_id", "crop_region", "frame_rate", "encoder_workers")
    ]  # fmt: skip
    assert {p.kind for p in parameters[6:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert (parameters[4].default, parameters[5].default) == (10.0, 4)
