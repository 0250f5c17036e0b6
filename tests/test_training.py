"""The clips that training sees, and that training trains."""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFont
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessRaisedException

from caption_extents.labels import Label
from caption_extents.model.identity import read_identity
from caption_extents.model.network import CaptionNetwork, NetworkConfig
from caption_extents.model.weights import save_weights
from caption_extents.training import assets, backgrounds, captions, clips, distractors, fonts, steps, text
from caption_extents.training.average import average_weights
from caption_extents.training.backgrounds import BackgroundSource
from caption_extents.training.data import ClipPool, Group
from caption_extents.training.labels import pair_labels
from caption_extents.training.losses import Losses, around_pairs, change_loss, losses
from caption_extents.training.steps import Average, Step, make_optimizer, own_stream
from caption_extents.training.team import Team, run_as_team
from caption_extents.training.train import WEIGHTS_NAME, draw_together, train


@pytest.mark.parametrize("seed", range(8))
def test_clips_are_what_they_say(seed: int) -> None:
    clip = clips.random_clip(random.Random(seed), BackgroundSource(), 6, 256, 48)
    assert clip.y.shape == (6, 48, 256)
    assert clip.u.shape == clip.v.shape == (6, 24, 128)
    assert clip.ink.shape == (6, 12, 64)
    assert clip.caption_ids.shape == clip.unsure.shape == (6,)
    for k in range(6):
        if not clip.unsure[k]:
            assert (clip.ink[k].max() > 0.05) == (clip.caption_ids[k] > 0)


def test_a_seed_repeats_a_clip() -> None:
    first, second = (clips.random_clip(random.Random(5), BackgroundSource(), 4, 256, 48) for _ in range(2))
    for name in ("y", "u", "v", "caption_ids", "ink"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_what_is_no_caption_comes_and_goes_with_the_shots() -> None:
    frames = np.full((12, 40, 320, 3), 60, np.uint8)
    frames[5:] = 160
    assert distractors.shots(frames) == [(0, 5), (5, 12)]
    before = frames.copy()
    for seed in range(40):
        distractors.add_distractors(random.Random(seed), frames, 1.0)
    assert (frames != before).any(axis=(1, 2, 3)).all()
    distractors.add_distractors(random.Random(1), before, 0.0)
    assert (before[:5] == 60).all()


@pytest.mark.parametrize("seed", range(6))
def test_graphics_fill_the_picture(seed: int) -> None:
    frames = backgrounds.graphics(random.Random(seed), 5, 200, 30)
    assert frames.shape == (5, 30, 200, 3)
    assert frames.dtype == np.uint8


def test_letters_that_stand_apart_are_as_wide_as_they_say() -> None:
    style = captions.random_style(random.Random(3), 24, "latin")
    plain = replace(style, tracking_px=0, stretch=1.0, slant=0.0, soft_px=0.0, outline_px=0, box=None, align="left")
    apart = replace(plain, tracking_px=8)
    widths = []
    for chosen in (plain, apart):
        columns = np.flatnonzero(captions.draw_caption(chosen, ["mnmnm"], 600, 60, 50).ink.max(axis=0) > 0.3)
        widths.append(columns[-1] - columns[0])
    assert widths[1] - widths[0] == pytest.approx(4 * 8, abs=3)
    assert captions.line_width(apart, "mnmnm") - captions.line_width(plain, "mnmnm") == pytest.approx(5 * 8, abs=3)


@pytest.mark.parametrize("seed", range(20))
def test_exposed_pictures_keep_their_order_of_light(seed: int) -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (2, 256, 4, 3))
    found = backgrounds.exposed(random.Random(seed), ramp)
    levels = found[0, :, 0, 0].astype(int)
    assert (found == found[:1, :, :1, :1]).all()
    assert (np.diff(levels) >= 0).all()
    assert levels[-1] - levels[0] >= 60


def test_letters_on_a_light_box_are_dark() -> None:
    styles = [captions.random_style(random.Random(seed), 24, "latin") for seed in range(400)]
    boxed = [style for style in styles if style.name == "light-box"]
    assert boxed
    for style in boxed:
        assert style.box is not None
        assert min(style.box) - max(style.fill) > 50


def test_scripts_that_cannot_be_put_together_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "can_shape", lambda: True)
    assert fonts.drawable_scripts() == text.scripts()
    monkeypatch.setattr(fonts, "can_shape", lambda: False)
    left = set(text.scripts()) - set(fonts.drawable_scripts())
    assert {"arabic", "hebrew", "devanagari", "khmer"} < left
    assert {"latin", "han", "hangul", "thai"} <= set(fonts.drawable_scripts())
    styles = [captions.random_style(random.Random(seed), 24) for seed in range(200)]
    assert not any(style.script.needs_shaping for style in styles)
    with pytest.raises(SystemExit, match=f"arabic.*libfribidi0, or start again with LD_LIBRARY_PATH={tmp_path}"):
        train(argparse.Namespace(assets=tmp_path))


@pytest.mark.skipif(not fonts.can_shape(), reason="needs libfribidi")
def test_shaped_letters_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets.pack_shaping(tmp_path)
    assert (tmp_path / fonts.SHAPING_LIBRARY).stat().st_size > 10_000
    # A known font: in some a letter is as wide in a word as alone.
    monkeypatch.setattr(fonts, "fonts_for", fonts._wheel_fonts)
    font = fonts.random_font(random.Random(1), "ar", 40)
    if font is None:
        pytest.skip("needs matplotlib's fonts")
    letter = "\u0628"
    assert font.getlength(3 * letter) < 0.9 * 3 * font.getlength(letter)


@pytest.mark.parametrize("script", sorted(text.scripts()))
def test_every_script_writes_lines(script: str) -> None:
    rng, chosen = random.Random(1), text.scripts()[script]
    for _ in range(50):
        line = text.random_line(rng, chosen, 20)
        assert line.strip()
        assert text.small_edit(rng, chosen, line) != line


def test_captions_are_drawn_without_any_fonts_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "fonts_for", lambda language: {})
    style = captions.random_style(random.Random(2), 24, "han")
    overlay = captions.draw_caption(style, ["Hello"], 300, 60, 50)
    assert overlay.ink.max() > 0.4


def test_ten_scripts_are_drawn_with_the_fonts_of_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "installed_fonts", lambda language: {})
    fonts.fonts_for.cache_clear()
    try:
        found = [name for name, script in text.scripts().items() if fonts.fonts_for(script.language)]
        assert len(found) == 10
        assert all(fonts.random_font(random.Random(1), text.scripts()[name].language, 20) for name in found)
    finally:
        fonts.fonts_for.cache_clear()


def test_labels_of_pairs() -> None:
    first, second = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    expected = [Label.EMPTY_EMPTY, Label.EMPTY_VALID, Label.VALID_EMPTY, Label.SAME, Label.DIFFERENT]
    assert pair_labels(first, second).tolist() == expected


def _numbered_clips(first: int, count: int, height: int, width: int) -> Group:
    """Clips of two samples, all of whose captions have the clip's number."""
    ids = torch.arange(first, first + count)[:, None].repeat(1, 2)
    pictures = torch.zeros(count, 2, 3, height, width, dtype=torch.uint8)
    return Group(pictures, ids, torch.zeros_like(ids, dtype=torch.bool), pictures[:, :, 0, ::4, ::4])


def test_a_pool_holds_the_newest_clips_and_fewer_of_large_ones() -> None:
    pool = ClipPool(torch.device("cpu"), capacity=6)
    for first in range(0, 10, 2):
        pool.add(_numbered_clips(first, 2, 32, 1024))
        pool.add(_numbered_clips(100 + first, 2, 64, 1024))
    rng = random.Random(1)
    drawn = [pool.draw(rng, pool.draw_shape(rng), clip_count=4, samples=2).caption_ids for _ in range(200)]
    usual, large = ([ids for ids in drawn if (ids >= 100).all() == is_large] for is_large in (False, True))
    assert {len(ids) for ids in usual} == {4}
    assert {len(ids) for ids in large} == {2}
    kept = set(torch.cat([*usual, *large]).flatten().tolist())
    assert {number for number in kept if number < 100} == set(range(4, 10))
    assert {number for number in kept if number >= 100} == {107, 108, 109}
    # As many pixels of both in memory, so half as many clips are large, and a third of what is drawn.
    assert 40 <= len(large) <= 95


def _tiny_training(out: Path, **changed: Any) -> argparse.Namespace:
    usual: dict[str, Any] = {
        "out": str(out), "name": "tiny", "device": "cpu", "gpus": 1, "assets": None, "init": None,
        "rounds": 1, "steps": 2, "context_steps": 1, "max_seconds": 600.0, "rate": 1e-3, "seed": 1,
        "clips": 1, "window": 4, "samples": 6, "group_clips": 2, "reuse": 1, "pool": 8, "warm_groups": 2,
        "workers": 0, "log_every": 1, "save_every": 1, "fresh": False,
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **changed})


def test_training_runs_and_resumes(tmp_path: Path) -> None:
    first = train(_tiny_training(tmp_path)).read_bytes()
    train(_tiny_training(tmp_path, context_steps=3))
    assert len((tmp_path / "round-1" / "log.jsonl").read_text().splitlines()) == 5
    resumed = tmp_path / "round-1" / WEIGHTS_NAME
    before = resumed.stat().st_mtime_ns
    weights = train(_tiny_training(tmp_path, context_steps=3, rounds=2))
    assert resumed.stat().st_mtime_ns == before
    assert len({first, resumed.read_bytes(), weights.read_bytes()}) == 3
    assert read_identity(weights).version == "tiny"
    rounds = [load_file(tmp_path / f"round-{number}" / WEIGHTS_NAME) for number in (1, 2)]
    for name, tensor in load_file(weights).items():
        assert not tensor.is_floating_point() or torch.allclose(tensor, (rounds[0][name] + rounds[1][name]) / 2)


def test_a_team_trains_one_network(tmp_path: Path) -> None:
    assert read_identity(train(_tiny_training(tmp_path, gpus=2))).version == "tiny"
    lines = (tmp_path / "round-1" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]


def test_what_the_last_steps_learnt_is_kept_when_time_is_up(tmp_path: Path) -> None:
    train(_tiny_training(tmp_path, steps=1000, context_steps=1000, max_seconds=2.0, log_every=1000, save_every=1000))
    (line,) = (tmp_path / "round-1" / "log.jsonl").read_text().splitlines()
    done = torch.load(tmp_path / "round-1" / "checkpoint.pt", weights_only=True)["numbers"]
    assert 0 < json.loads(line)["context_step"] == done[1] < 1000


def _squares(network: torch.nn.Module, group: Group, _: torch.Generator) -> Losses:
    loss = network(group.pictures.flatten(0, 1).flatten(1).float() / 255).square().mean()
    nothing = torch.zeros(())
    return Losses(loss, nothing, nothing, nothing, nothing)


def _go_down(team: Team, seeds: list[int], out: Path) -> None:
    """Three steps with the clips of the member's seed, or with those of all seeds for a member that is alone."""
    torch.manual_seed(7)
    network = torch.nn.Linear(3 * 8 * 8, 1)
    step = Step(partial(_squares, network), make_optimizer(list(network.parameters()), 0.01), team=team)
    own = seeds if team.size == 1 else [seeds[team.member]]
    clips = [
        torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        for seed in own
    ]
    pictures = torch.cat(clips)
    group = Group(pictures, torch.zeros(1), torch.zeros(1), torch.zeros(1))
    for _ in range(3):
        step(group, seed=1, rate=0.01)
    torch.save(network.state_dict(), out / f"{team.size}-{team.member}.pt")


def test_a_team_goes_down_the_mean_of_its_gradients(tmp_path: Path) -> None:
    run_as_team(_go_down, 1, [3, 4], tmp_path)
    run_as_team(_go_down, 2, [3, 4], tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor)
        assert torch.equal(first[name], second[name])


def _draw_shapes(team: Team, out: Path) -> None:
    pool, rng = ClipPool(torch.device("cpu"), capacity=6), random.Random(team.member)
    for height in (32, 40, 48)[team.member :]:
        pool.add(_numbered_clips(0, 2, height, 1024))
    drawn = [draw_together(pool, team, rng, clip_count=1).pictures.shape[-2] for _ in range(20)]
    torch.save(drawn, out / f"{team.member}.pt")


def test_a_team_draws_clips_of_one_shape_or_the_nearest_that_each_has(tmp_path: Path) -> None:
    run_as_team(_draw_shapes, 2, tmp_path)
    leaders, others = (torch.load(tmp_path / f"{member}.pt") for member in range(2))
    assert set(leaders) == {32, 40, 48}
    assert others == [max(40, height) for height in leaders]


def test_what_a_member_of_a_team_cannot_do_ends_all(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match="seed"):
        run_as_team(_go_down, 2, [3, "no seed"], tmp_path)


def test_samples_around_each_pair() -> None:
    embeddings = torch.arange(2 * 5 * 3, dtype=torch.float32).reshape(10, 3, 1, 1)
    clips, k = embeddings.reshape(2, 5, 3), torch.arange(4)
    for found, step in zip(around_pairs(embeddings, 5), (-1, 0, 1, 2), strict=True):
        assert torch.equal(found.reshape(2, 4, 3), clips[:, (k + step).clamp(0, 4)])


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_recorded_step_is_like_any_other(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the first steps of a shape are computed, those after them replayed."""

    def losses_of_steps(unrecorded: int) -> list[float]:
        monkeypatch.setattr(steps, "_UNRECORDED", unrecorded)
        torch.manual_seed(5)
        network, average = CaptionNetwork().to(device), CaptionNetwork().to(device)
        step = Step(
            partial(losses, network), make_optimizer(list(network.parameters()), 1e-3), Average(network, average)
        )
        return [float(step(group, seed=number // 2, rate=1e-3).total) for number in range(8) for group in groups]

    rng = torch.Generator().manual_seed(3)
    groups = [
        Group(
            torch.randint(0, 256, (2, 4, 3, height, width), dtype=torch.uint8, generator=rng).to(device),
            torch.randint(0, 2, (2, 4), generator=rng).to(device),
            torch.zeros((2, 4), dtype=torch.bool, device=device),
            torch.randint(0, 256, (2, 4, height // 4, width // 4), dtype=torch.uint8, generator=rng).to(device),
        )
        for height, width in ((16, 64), (24, 48))
    ]
    with own_stream(torch.device(device)):
        computed, recorded = losses_of_steps(1000), losses_of_steps(2)
    assert recorded == pytest.approx(computed, rel=2e-3)
    assert recorded[-1] < recorded[0]


def test_an_average_follows_its_network() -> None:
    network, into = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    average = Average(network, into)
    network.weight.data.fill_(3.0)
    average.set_decay(0.75)
    average.update()
    assert into.weight.tolist() == [1.5, 1.5]
    assert network.weight.tolist() == [3.0, 3.0]


def test_a_font_that_cannot_draw_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some fonts can be opened, and fail only when they draw."""
    families = fonts.fonts_for("en")
    assert families
    draws = ImageFont.FreeTypeFont.getmask
    failed: list[str] = []

    def getmask(font: ImageFont.FreeTypeFont, *arguments: Any, **options: Any) -> Any:
        if len(failed) < 3:
            failed.append(str(font.path))
            raise OSError("invalid opcode")
        return draws(font, *arguments, **options)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getmask", getmask)
    assert fonts.random_font(random.Random(1), "en", 20, "words") is not None
    assert len(failed) == 3


def test_letters_that_gave_way_are_where_the_change_is_learnt() -> None:
    ink = torch.zeros(1, 2, 4, 8)
    ink[:, :, 0, :4] = 0.8
    ink[:, 1, 0, 2] = 0.0
    first, second = torch.tensor([0]), torch.tensor([1])
    here, nowhere = torch.full((1, 1, 2, 4), -9.0), torch.full((1, 1, 2, 4), -9.0)
    here[0, 0, 0, 1] = 9.0
    different, same = torch.tensor([[True]]), torch.tensor([[False]])
    assert (
        change_loss(here, ink, first, second, different)
        < 1e-3
        < 1
        < change_loss(nowhere, ink, first, second, different)
    )
    # Letters that come one by one, or shine, are the same caption's.
    assert change_loss(nowhere, ink, first, second, same) < 1e-3 < 1 < change_loss(here, ink, first, second, same)


def test_a_caption_shown_again_has_its_number_again() -> None:
    style = captions.CaptionStyle(script=text.scripts()["latin"], font=fonts.builtin_font(20))
    again = 0
    for seed in range(40):
        shown = clips._schedule(random.Random(seed), style, 100, 400, 1)
        by_number = {showing.number: showing.lines for showing in shown}
        assert all(by_number[showing.number] == showing.lines for showing in shown)
        assert len({tuple(lines) for lines in by_number.values()}) == len(by_number)
        again += len(shown) - len(by_number)
    assert again > 10


def test_weights_are_averaged(tmp_path: Path) -> None:
    names = ["one", "two"]
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        save_weights(CaptionNetwork(), tmp_path / name, name=name)
    average_weights([tmp_path / name for name in names], tmp_path / "mean")
    one, two, mean = (load_file(tmp_path / name) for name in [*names, "mean"])
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, ((one[name].double() + two[name].double()) / 2).to(tensor.dtype))
    assert read_identity(tmp_path / "mean").version == "one"
    save_weights(CaptionNetwork(NetworkConfig(head_channels=32)), tmp_path / "other", name="other")
    with pytest.raises(ValueError, match="different networks"):
        average_weights([tmp_path / "one", tmp_path / "other"], tmp_path / "mean")
