"""Samples as pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from caption_extents.model.preprocess import to_rgb
from caption_extents.pictures import resized, to_picture, to_png


@pytest.mark.parametrize("size", [(56, 512), (112, 900), (20, 130)], ids=["same", "larger", "smaller"])
def test_pictures_are_resized_as_the_networks_input_is(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    planes = tuple(rng.integers(16, 236, shape, np.uint8) for shape in ((56, 512), (28, 256), (28, 256)))
    y, u, v = (torch.from_numpy(plane)[None] for plane in planes)
    expected = (to_rgb(y, u, v, size)[0].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(to_picture(planes, size) - expected).max() <= 1
    np.testing.assert_allclose(resized(np.full((9, 31), 77, np.uint8), (5, 80)), 77, rtol=1e-5)


def test_png() -> None:
    picture = np.random.default_rng(3).integers(0, 256, (45, 81, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(to_png(picture)))) == picture).all()
    assert to_png(picture[:, ::-1])
