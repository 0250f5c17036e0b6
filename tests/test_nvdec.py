"""NVDEC against the CPU decoder, on machines that have it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from caption_extents.errors import InputError
from caption_extents.model.devices import parse_device
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import probe
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.capabilities import why_not_nvdec
from caption_extents.video.timeline import build_timeline
from caption_extents.video.video import open_video
from tests.engines import open_decoder
from tests.media import Recipe, make_video, reference_samples
from tests.test_exactness import RECIPES, REGION, check_batches

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@gpu
@pytest.mark.parametrize("segment_samples", [3, 64])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_samples_are_those_of_the_cpu(
    recipe: Recipe, segment_samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", segment_samples)
    path = make_video(replace(recipe, width=recipe.width + 160, height=recipe.height + 96), tmp_path)
    facts = probe(path)
    timeline, crop = build_timeline(facts, Fraction(10)), resolve_crop(REGION, facts)
    reason = why_not_nvdec(facts, 0)
    if reason is not None:
        with pytest.raises(InputError, match="the GPU cannot decode"):
            open_decoder(facts, timeline, crop, 0, only_gpu=True)
        with closing(open_decoder(facts, timeline, crop, 0)) as decoder:
            assert decoder.name == f"cpu ({reason})"
        return
    with closing(open_decoder(facts, timeline, crop, 0, only_gpu=True)) as decoder:
        assert decoder.name == "nvdec"
        batches = list(decoder)
        check_batches(batches, path, reference_samples(path, Fraction(10)))
        assert decoder.undecodable_samples == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InputError, match="finds no CUDA device"):
        parse_device("cuda")


@gpu
def test_a_device_number_that_is_not_there() -> None:
    with pytest.raises(InputError, match="cuda:99"):
        parse_device("cuda:99")


def test_a_codec_that_gpus_do_not_decode_exactly(tmp_path: Path) -> None:
    facts = probe(make_video(Recipe("old", codec="mpeg4"), tmp_path))
    assert "mpeg4" in (why_not_nvdec(facts, 0) or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_was_asked_for_is_not_replaced_in_silence(tmp_path: Path) -> None:
    path = make_video(Recipe("video"), tmp_path)
    with pytest.raises(InputError, match="device 'cuda' is not there: this machine has no CUDA devices"):
        open_video(path, device="cuda")
    with open_video(path) as video:
        assert video.samples(REGION).name == "cpu"
