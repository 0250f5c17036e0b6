"""From which frame on a caption that fades counts as shown."""

from __future__ import annotations

import numpy as np
import pytest

from caption_extents.captions.opacity import VISIBLE_OPACITY, shown_in_fade

HEIGHT, WIDTH = 40, 240


def letters(seed: int) -> np.ndarray:
    """Strokes of a few pixels, bool (H, W)."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    for left, top in zip(rng.integers(4, WIDTH - 12, 40), rng.integers(8, HEIGHT - 16, 40), strict=True):
        drawn[top : top + int(rng.integers(2, 10)), left : left + int(rng.integers(2, 8))] = True
    return drawn


def film(
    opacities: list[np.ndarray], ink: list[np.ndarray], *, noise: float = 3.0, detail: float = 4.0, pan: int = 0
) -> np.ndarray:
    """Frames of captions, each with an opacity per frame, on a picture with detail that may move."""
    rng = np.random.default_rng(1)
    rough = rng.normal(0, detail, (HEIGHT, WIDTH + 400))
    for axis in (0, 1):
        rough = rough + np.roll(rough, 1, axis) + np.roll(rough, 2, axis)
    wide = np.clip(90 + rough, 0, 255)
    frames = []
    for number in range(len(opacities[0])):
        picture = wide[:, pan * number : pan * number + WIDTH].copy()
        for opacity, drawn in zip(opacities, ink, strict=True):
            picture += (235 - picture) * drawn * opacity[number]
        frames.append(picture + rng.normal(0, noise, picture.shape))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def fade(count: int, first: int, steps: int) -> np.ndarray:
    """Opacity of frames: none, then rising in equal steps, then full."""
    return np.clip((np.arange(count) - first + 1) / (steps + 1), 0, 1)


@pytest.mark.parametrize("steps", [2, 3, 5, 6, 9, 14])
@pytest.mark.parametrize("pan", [0, 1, 7])
def test_a_fade_is_measured(steps: int, pan: int) -> None:
    """To some hundredths of full opacity, which is the right frame unless one happens to be that near."""
    opacity = fade(36, 10, steps)
    frames = film([opacity], [letters(1)], pan=pan)
    for luma, full, without in ((frames, 35, 0), (frames[::-1], 0, 35)):
        shown = shown_in_fade(luma, full, without)
        assert shown is not None
        shown = shown if full else shown[::-1]
        assert opacity[shown].min() > VISIBLE_OPACITY - 0.05
        assert opacity[~shown].max() < VISIBLE_OPACITY + 0.05


def test_one_caption_fades_out_before_another_fades_in() -> None:
    first, second = fade(40, 8, 6)[::-1], fade(40, 22, 6)
    frames = film([first, second], [letters(1), letters(2)])
    out, into = shown_in_fade(frames, full=0, without=39), shown_in_fade(frames, full=39, without=0)
    assert out is not None
    assert into is not None
    assert out.tolist() == (first >= VISIBLE_OPACITY).tolist()
    assert into.tolist() == (second >= VISIBLE_OPACITY).tolist()


def test_what_is_not_a_fade() -> None:
    """A caption that is there at once, one that is written letter by letter, one that moves in, and none."""
    drawn, at_once = letters(1), (np.arange(36) >= 15).astype(float)
    assert shown_in_fade(film([at_once], [drawn]), full=35, without=0) is None
    written = [drawn & (np.arange(WIDTH) < 8 * number) for number in range(36)]
    assert shown_in_fade(film([np.ones(1)], [drawn])[:1].repeat(36, 0), full=35, without=0) is None
    for shapes in (written, [np.roll(drawn, 36 - number, axis=1) * (number > 5) for number in range(36)]):
        frames = np.concatenate([film([np.ones(1)], [shape]) for shape in shapes])
        assert shown_in_fade(frames, full=35, without=0) is None


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5, 5), (4, 6, 2000)])
def test_small_crops(shape: tuple[int, int, int]) -> None:
    assert shown_in_fade(np.zeros(shape, np.uint8), full=shape[0] - 1, without=0) is None
