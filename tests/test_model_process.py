"""A model in a child process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from caption_extents import CropRegion, spawning
from caption_extents.children import Children
from caption_extents.errors import InputError, ModelError, ProcessingError, StallError
from caption_extents.model.opened import LocalModel, OpenedModel, choose_device
from caption_extents.model.process import ModelProcess
from caption_extents.samples import SampleBatch

REGION = CropRegion(0.1, 0.8, 0.9, 0.95)


def batches(seed: int, count: int = 40, size: int = 16) -> Iterator[SampleBatch]:
    """Crops in which something changes now and then."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 255, (count // 10 + 1, 32, 256), np.uint8)
    luma = np.stack([pictures[number // 10] for number in range(count)])
    chroma = np.full((count, 16, 128), 128, np.uint8)
    for first in range(0, count, size):
        cut = slice(first, first + size)
        yield SampleBatch(first, luma[cut], chroma[cut], chroma[cut])


def label(model: OpenedModel, seed: int) -> np.ndarray:
    with model.labeller() as labeller:
        given = list(batches(seed))
        found = [part for batch in given for _, part in labeller.add(batch, is_last=batch is given[-1])]
    return np.concatenate(found)


@pytest.fixture
def model() -> Iterator[ModelProcess]:
    with closing(Children()) as children:
        kind = spawning.model(None, REGION.as_tuple(), "cpu", 1, videos_at_once=2)
        yield ModelProcess(kind, "cpu", children)


def test_probabilities_are_those_of_a_model_here(model: ModelProcess) -> None:
    """Of two videos at once, one after the other, and of frames between two samples."""
    with closing(LocalModel(None, REGION, "cpu", 1)) as here, ThreadPoolExecutor(2) as pool:
        assert model.identity() == here.identity()
        for seeds in ((1, 2), (3, 1)):
            for seed, found in zip(seeds, pool.map(lambda seed: label(model, seed), seeds), strict=True):
                assert np.array_equal(found, label(here, seed))
        frames = next(batches(5)).planes
        with model.labeller() as there_labels, here.labeller() as here_labels:
            compared = there_labels.compare_with_ends(frames), here_labels.compare_with_ends(frames)
        for one, other in zip(*compared, strict=True):
            assert np.array_equal(one, other)


def test_a_video_that_is_given_up_leaves_nothing_to_the_next(model: ModelProcess) -> None:
    with model.labeller() as labeller:
        list(labeller.add(next(batches(1)), is_last=False))
    first = label(model, 2)
    assert np.array_equal(first, label(model, 2))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"none")
    with closing(Children()) as children:
        for name, message in (("none.safetensors", "there is no model file"), ("w.safetensors", "cannot read")):
            kind = spawning.model(str(tmp_path / name), REGION.as_tuple(), "cpu", 1, 1)
            model = ModelProcess(kind, "cpu", children)
            with pytest.raises(ModelError, match=message):
                model.identity()


def test_what_goes_wrong_there_is_said_here(model: ModelProcess) -> None:
    with model.labeller() as labeller, pytest.raises(InputError, match="sample 16 came where sample 0 was due"):
        list(labeller.add(list(batches(1))[1], is_last=False))
    assert not model.has_failed
    assert len(label(model, 1)) == 39


def test_a_process_that_is_killed(model: ModelProcess) -> None:
    label(model, 1)
    killing = threading.Timer(0.2, os.kill, (model._child.process_id, signal.SIGKILL))
    killing.start()
    with pytest.raises(ProcessingError, match="the model's process was ended by signal SIGKILL"):
        np.concatenate([label(model, seed) for seed in range(1000)])
    assert model.has_failed


def test_an_answer_that_does_not_come_reaches_nobody_else(model: ModelProcess) -> None:
    label(model, 1)
    model._child.stall_seconds = 0.4
    os.kill(model._child.process_id, signal.SIGSTOP)
    try:
        with pytest.raises(StallError):
            label(model, 2)
    finally:
        os.kill(model._child.process_id, signal.SIGCONT)
    with pytest.raises(ProcessingError):
        label(model, 3)
    assert model.has_failed


def test_a_model_that_cannot_be_loaded_has_failed(tmp_path: Path) -> None:
    with closing(Children()) as children:
        kind = spawning.model(str(tmp_path / "later.safetensors"), REGION.as_tuple(), "cpu", 1, 1)
        model = ModelProcess(kind, "cpu", children)
        with pytest.raises(ModelError):
            model.identity()
        assert model.has_failed


@pytest.mark.parametrize("asked", ["cuda", "cuda:7", "gpu"])
def test_a_device_that_is_not_there(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_extents.video.nvdec.driver.device_count", lambda: 0)
    with pytest.raises(InputError, match=asked):
        choose_device(asked)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    monkeypatch.setattr("caption_extents.video.nvdec.driver.device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == "cuda:0"
    assert choose_device("cuda:1") == "cuda:1"
