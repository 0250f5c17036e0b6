"""From which frame on a caption that fades counts as shown."""

from __future__ import annotations

import numpy as np
import pytest

from caption_extents.captions.opacity import VISIBLE_OPACITY, change_in_fade

HEIGHT, WIDTH = 40, 240


def letters(seed: int) -> np.ndarray:
    """Strokes of a few pixels, bool (H, W)."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    for left, top in zip(rng.integers(4, WIDTH - 12, 40), rng.integers(8, HEIGHT - 16, 40), strict=True):
        drawn[top : top + int(rng.integers(2, 10)), left : left + int(rng.integers(2, 8))] = True
    return drawn


def picture(seed: int, detail: float, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = rng.normal(0, detail, (HEIGHT, width))
    for axis in (0, 1):
        rough = rough + np.roll(rough, 1, axis) + np.roll(rough, 2, axis)
    return np.clip(90 + rough, 0, 255)


def film(
    opacities: list[np.ndarray],
    ink: list[np.ndarray],
    *,
    pictures: list[np.ndarray] | None = None,
    pan: int = 0,
    colour: np.ndarray | float = 235.0,
) -> np.ndarray:
    """Frames of captions, each with an opacity per frame, on a picture with detail that may move."""
    rng = np.random.default_rng(1)
    wide, frames = picture(1, 4.0, WIDTH + 1000), []
    for number in range(len(opacities[0])):
        below = wide[:, pan * number : pan * number + WIDTH].copy() if pictures is None else pictures[number].copy()
        white = colour if isinstance(colour, float) else colour[number]
        for opacity, drawn in zip(opacities, ink, strict=True):
            below += (white - below) * drawn * opacity[number]
        frames.append(below + rng.normal(0, 3.0, below.shape))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def fade(count: int, first: int, steps: int) -> np.ndarray:
    """Opacity of frames: none, then rising in equal steps, then full."""
    return np.clip((np.arange(count) - first + 1) / (steps + 1), 0, 1)


@pytest.mark.parametrize("steps", [2, 3, 5, 6, 9, 14, 30])
@pytest.mark.parametrize("pan", [0, 1, 7])
def test_a_fade_is_measured(steps: int, pan: int) -> None:
    """To some hundredths of full opacity, which is the right frame unless one happens to be that near."""
    opacity = fade(70, 12, steps)
    frames = film([opacity], [letters(1)], pan=pan)
    seen = int(np.argmax(opacity > 0.2))
    found = change_in_fade(list(frames), full=69, without=0, seen=seen)
    backwards = change_in_fade(list(frames[::-1]), full=0, without=69, seen=70 - seen)
    assert found is not None
    assert backwards is not None
    for at in (found, 70 - backwards):
        assert opacity[at - 1] < VISIBLE_OPACITY + 0.05
        assert opacity[at] > VISIBLE_OPACITY - 0.05


def test_one_caption_fades_out_before_another_fades_in() -> None:
    first, second = fade(50, 15, 6)[::-1], fade(50, 27, 6)
    frames = list(film([first, second], [letters(1), letters(2)]))
    assert change_in_fade(frames, full=0, without=49, seen=34) == int(np.argmin(first >= VISIBLE_OPACITY))
    assert change_in_fade(frames, full=49, without=0, seen=28) == int(np.argmax(second >= VISIBLE_OPACITY))


def start(frames: np.ndarray, seen: int) -> int | None:
    return change_in_fade(list(frames), full=len(frames) - 1, without=0, seen=seen)


AT_ONCE = (np.arange(60) >= 20).astype(float)


def test_a_caption_that_is_there_at_once() -> None:
    assert start(film([AT_ONCE], [letters(1)]), 20) is None
    assert start(film([AT_ONCE], [letters(1)], pan=3), 20) is None


@pytest.mark.parametrize("speed", [8, 40])
def test_letters_that_come_one_by_one_or_move_in(speed: int) -> None:
    drawn = letters(1)
    written = [drawn & (np.arange(WIDTH) < speed * (number - 15)) for number in range(60)]
    moved = [np.roll(drawn, max(0, 40 - number), axis=1) * (number > 15) for number in range(60)]
    for shapes in (written, moved):
        assert start(np.concatenate([film([np.ones(1)], [shape]) for shape in shapes]), 16) is None


@pytest.mark.parametrize("fill", [5, 10, 30])
@pytest.mark.parametrize("dim", [150.0, 180.0])
def test_a_caption_that_is_dim_first_is_there_already(fill: int, dim: float) -> None:
    """As karaoke is, whose letters are filled with another colour."""
    colour = dim + (235 - dim) * np.clip((np.arange(60) - 22) / fill, 0, 1)
    assert start(film([AT_ONCE], [letters(1)], colour=colour), 20) is None


@pytest.mark.parametrize("length", [8, 16, 25])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("begins", [16, 24, 30])
def test_a_picture_that_dissolves_is_no_caption(length: int, same: bool, begins: int) -> None:
    """Sharp pictures, and the frame without the caption shows another one, or the same again."""
    share = np.clip((np.arange(60) - begins) / length, 0, 1)
    one, other = picture(1, 9.0), picture(2, 9.0)
    pictures = [one * (1 - part) + other * part for part in share]
    before = (np.arange(60) < 17).astype(float)
    frames = film([before, AT_ONCE], [letters(1 if same else 2), letters(1)], pictures=pictures)
    found = start(frames, 20)
    assert found is None or abs(found - 20) <= 1
    found = start(film([AT_ONCE], [letters(1)], pictures=pictures), 20)
    assert found is None or abs(found - 20) <= 1


@pytest.mark.parametrize("steps", [60, 100])
def test_a_fade_that_goes_on_longer_than_is_seen(steps: int) -> None:
    """What is shown in full is not known."""
    opacity = fade(60, 12, steps)
    assert start(film([opacity], [letters(1)]), int(np.argmax(opacity > 0.2))) is None


def test_the_model_sees_something_else() -> None:
    """Opacity is far from where the caption begins."""
    assert start(film([fade(60, 12, 6)], [letters(1)]), 30) is None


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5, 5), (4, 6, 2000), (30, 16, 16)])
def test_small_crops(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert start(frames, 1) is None
