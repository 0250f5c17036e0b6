from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_extents.chunks.encode import ChunkFormat, decode_chunk, encode_chunk
from caption_extents.chunks.plan import (
    CHUNK_SAMPLES,
    LEVELS,
    ChunkAssembler,
    ChunkFrames,
    ChunkPlan,
    chunk_of,
    level_of,
    plan_chunks,
    rank_in_level,
    sample_at,
)
from caption_extents.chunks.presets import PRESETS, find_preset
from caption_extents.errors import EncodeError, InputError

FORM = ChunkFormat(Fraction(10))


@given(st.integers(0, 3000))
def test_every_sample_is_in_exactly_one_chunk(count: int) -> None:
    chunks = list(plan_chunks(count))
    assert sorted(sample for chunk in chunks for sample in chunk.samples) == list(range(count))
    for chunk in chunks:
        assert 1 <= len(chunk.samples) <= CHUNK_SAMPLES
        assert {level_of(sample) for sample in chunk.samples} == {chunk.level}
        assert list(chunk.samples) == sorted(chunk.samples)
    for level in LEVELS:
        sizes = [len(chunk.samples) for chunk in chunks if chunk.level == level]
        assert all(size == CHUNK_SAMPLES for size in sizes[:-1])


@given(st.integers(0, 10**9))
def test_rank_and_sample_are_inverse(sample: int) -> None:
    assert sample_at(level_of(sample), rank_in_level(sample)) == sample
    level, first, position = chunk_of(sample)
    assert level == level_of(sample)
    assert rank_in_level(sample) - rank_in_level(first) == position


def test_levels_by_hand() -> None:
    assert [level_of(k) for k in range(18)] == [16, 1, 1, 1, 4, 1, 1, 1, 4, 1, 1, 1, 4, 1, 1, 1, 16, 1]


def planes_of(samples: list[int], height: int = 16, width: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat pictures whose grey tells the sample."""
    values = np.asarray([16 + (sample * 7) % 200 for sample in samples], np.uint8)
    shape = (len(samples), height, width)
    half = (len(samples), height // 2, width // 2)
    return (
        np.broadcast_to(values[:, None, None], shape).copy(),
        np.full(half, 128, np.uint8),
        np.full(half, 128, np.uint8),
    )


@given(count=st.integers(1, 700), cut=st.integers(1, 70))
def test_assembler_gives_the_planned_chunks(count: int, cut: int) -> None:
    assembler, chunks = ChunkAssembler(), []
    for start in range(0, count, cut):
        chunks += assembler.add(start, planes_of(list(range(start, min(start + cut, count))), 2, 2))
    chunks += assembler.flush()
    assert {chunk.plan for chunk in chunks} == set(plan_chunks(count))
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.planes[0], planes_of(list(chunk.plan.samples), 2, 2)[0])


def test_assembler_refuses_gaps_and_repeats() -> None:
    assembler = ChunkAssembler()
    assembler.add(0, planes_of([0, 1, 2]))
    for wrong in (2, 4):
        with pytest.raises(ValueError, match="sample 3 was expected"):
            assembler.add(wrong, planes_of([wrong]))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("count", [1, 2, 31, 32])
def test_chunks_hold_their_samples_in_order(preset: str, count: int) -> None:
    samples = tuple(range(0, 16 * count, 16))
    planes = planes_of(list(samples))
    encoded = encode_chunk(ChunkFrames(ChunkPlan(16, samples), planes), PRESETS[preset], FORM)
    frames = decode_chunk(encoded.data)
    assert len(frames) == count
    for (y, u, v), expected in zip(frames, planes[0], strict=True):
        assert y.shape == (16, 32)
        assert u.shape == v.shape == (8, 16)
        assert abs(float(y.mean()) - float(expected.mean())) < 4


def test_the_same_frames_give_the_same_bytes() -> None:
    frames = ChunkFrames(ChunkPlan(1, tuple(range(1, 33))), planes_of(list(range(1, 33)), 64, 256))
    first, second = (encode_chunk(frames, PRESETS["reference"], FORM).data for _ in range(2))
    assert first == second


def test_reference_preset_is_the_original_design() -> None:
    preset = find_preset("reference")
    assert preset.threads == 2
    assert dict(preset.options) == {
        "crf": "30",
        "deadline": "good",
        "cpu-used": "2",
        "tile-columns": "1",
        "frame-parallel": "1",
        "row-mt": "1",
        "auto-alt-ref": "1",
        "lag-in-frames": "25",
    }


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'nice'; there are .*reference"):
        find_preset("nice")


def test_a_refusing_encoder_names_the_chunk() -> None:
    broken = type(PRESETS["reference"])("broken", 1, {"crf": "900"})
    with pytest.raises(EncodeError, match="chunk 48 of level 16"):
        encode_chunk(ChunkFrames(ChunkPlan(16, (48,)), planes_of([48])), broken, FORM)


def test_colour_reaches_the_file() -> None:
    import io

    import av

    form = ChunkFormat(Fraction(10), colour_range=2, colour_space=1, colour_primaries=1, colour_transfer=1)
    data = encode_chunk(ChunkFrames(ChunkPlan(16, (0,)), planes_of([0])), PRESETS["reference"], form).data
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.color_range), int(frame.colorspace)) == (2, 1)
