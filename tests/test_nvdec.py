"""NVDEC against the CPU decoder, on machines that have it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from caption_extents.errors import InputError
from caption_extents.video import segments
from caption_extents.video.crop import resolve_crop
from caption_extents.video.cuda import parse_device, why_not_nvdec
from caption_extents.video.decoder import open_decoder
from caption_extents.video.source import probe
from caption_extents.video.timeline import build_timeline
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
    facts, device = probe(path), torch.device("cuda", 0)
    timeline, crop = build_timeline(facts, Fraction(10)), resolve_crop(REGION, facts)
    reason = why_not_nvdec(facts, 0)
    if reason is not None:
        with pytest.raises(InputError, match="the GPU cannot decode"):
            open_decoder(facts, timeline, crop, device=device, insist=True)
        with closing(open_decoder(facts, timeline, crop, device=device)) as decoder:
            assert decoder.name == f"cpu ({reason})"
        return
    with closing(open_decoder(facts, timeline, crop, device=device, insist=True)) as decoder:
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


def test_a_gpu_that_was_asked_for_is_not_replaced_in_silence(tmp_path: Path) -> None:
    facts = probe(make_video(Recipe("video"), tmp_path))
    timeline = build_timeline(facts, Fraction(10))
    with pytest.raises(InputError, match=r"the GPU was asked to decode.*but the model computes on the CPU"):
        open_decoder(facts, timeline, resolve_crop(REGION, facts), device="cpu", insist=True)
