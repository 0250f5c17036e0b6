"""Models that are not the package's own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import caption_extents
from caption_extents import CropRegion
from caption_extents.errors import InputError, ModelError
from caption_extents.labels import Label
from caption_extents.model.adapter import PairModuleModel
from caption_extents.model.fusion import FusionNetwork, load_fusion, merge_lora, open_fusion, spatial_features
from caption_extents.model.interface import PairModel
from caption_extents.model.opening import open_model
from caption_extents.model.preprocess import to_rgb
from caption_extents.results.database import open_database
from caption_extents.storage.store import open_store
from tests.media import Recipe, make_video

REGION = CropRegion(0.1, 0.8, 0.9, 1.0)
CPU = torch.device("cpu")


class ByBrightness(nn.Module):
    """A caption is what is bright; another brightness is another caption."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        first, second = (picture.mean((1, 2, 3)) for picture in (a, b))
        logits = torch.zeros(len(a), len(Label))
        shown = torch.stack([first > 0.2, second > 0.2], dim=1)
        labels = torch.where((first - second).abs() < 0.02, Label.SAME.value, Label.DIFFERENT.value)
        labels[~shown[:, 0] & ~shown[:, 1]] = Label.EMPTY_EMPTY.value
        labels[~shown[:, 0] & shown[:, 1]] = Label.EMPTY_VALID.value
        labels[shown[:, 0] & ~shown[:, 1]] = Label.VALID_EMPTY.value
        logits[torch.arange(len(a)), labels] = 8.0
        return logits


def model() -> PairModuleModel:
    return PairModuleModel(ByBrightness(), (16, 64), version="brightness", mean=(0, 0, 0), std=(1, 1, 1))


def test_colours_of_planes() -> None:
    """The corners of ITU-T H.273's limited-range BT.709."""
    y, u, v = (
        torch.tensor([[[value]]], dtype=torch.uint8).expand(1, size, size)
        for value, size in ((63, 8), (102, 4), (240, 4))
    )
    red = to_rgb(y, u, v, (8, 8))
    torch.testing.assert_close(red.mean((0, 2, 3)), torch.tensor([1.0, 0.0, 0.0]), atol=0.01, rtol=0)


def test_a_module_follows_the_protocol() -> None:
    assert isinstance(model(), PairModel)


class Own:
    """A model of the caller's."""

    device, version, digest = "cpu", "own", "1"
    closed = False

    def __exit__(self, *_: object) -> None:
        self.closed = True


def test_a_model_of_the_callers_stays_open() -> None:
    own: Any = Own()
    for _ in range(2):
        with open_model(own, REGION, "cpu", 1) as opened:
            assert opened.version == "own"
    assert not own.closed


@pytest.mark.parametrize("implementation", ["pipelined", "sequential"])
def test_a_job_with_another_model(implementation: str, tmp_path: Path) -> None:
    video = make_video(Recipe("video", pts=tuple(range(60))), tmp_path)
    result = caption_extents.crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", REGION, store=tmp_path / "store", model=model(), implementation=implementation
    )
    database = open_database(open_store(tmp_path / "store").get(result.caption_frame_extents_db_key))
    values = dict(database.execute("SELECT model_version, model_checkpoint_path FROM run_metadata"))
    assert values == {"brightness": "PairModuleModel"}
    assert sum(result.label_counts.values()) == result.frame_count - 1


def test_another_model_is_another_input() -> None:
    same, other = model(), PairModuleModel(nn.Identity(), (16, 64), version="brightness")
    assert model().digest == same.digest != other.digest


def checkpoint(folder: Path) -> tuple[Path, FusionNetwork]:
    """A checkpoint with low-rank weights, and the network that it stands for."""
    torch.manual_seed(1)
    network = FusionNetwork().eval()
    state = dict(network.state_dict())
    convs = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    for name in convs:
        weight = network.get_parameter(f"{name}.weight")
        down = torch.randn(16, *weight.shape[1:]) * 0.01
        up = torch.randn(weight.shape[0], 16, 1, 1) * 0.01
        state |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.lora_alpha": torch.tensor(8.0),
        }
        # Independent of the merging: the two convolutions applied one after the other to each unit impulse.
        with torch.no_grad():
            weight += 0.5 * (up.flatten(1) @ down.flatten(1)).view_as(weight)  # type: ignore[misc]
    path = folder / "fusion.pt"
    torch.save({"state_dict": state}, path)
    return path, network


def test_the_fusion_checkpoint_is_merged(tmp_path: Path) -> None:
    path, expected = checkpoint(tmp_path)
    loaded = load_fusion(path)
    inputs = torch.rand(3, 2, 3, 48, 480)
    spatial = spatial_features(REGION).expand(2, -1)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(*inputs, spatial), expected(*inputs, spatial), rtol=1e-4, atol=1e-4)


def test_low_rank_weights_act_as_two_convolutions() -> None:
    torch.manual_seed(2)
    weight, down, up = torch.randn(8, 5, 3, 3), torch.randn(2, 5, 3, 3), torch.randn(8, 2, 1, 1)
    merged = merge_lora({"c.weight": weight, "c.lora_down.weight": down, "c.lora_up.weight": up})
    x = torch.randn(1, 5, 9, 9)
    conv = nn.functional.conv2d
    torch.testing.assert_close(
        conv(x, merged["c.weight"]), conv(x, weight) + conv(conv(x, down), up), rtol=1e-4, atol=1e-4
    )


def test_where_the_caption_stands() -> None:
    features = spatial_features(CropRegion(0.0, 0.8, 0.3, 1.0))
    torch.testing.assert_close(features, torch.tensor([1.0, 0.0, 0.0, 0.15, 0.9, 0.3]))
    assert spatial_features(REGION)[:3].tolist() == [0.0, 1.0, 0.0]


def test_the_fusion_network_in_a_model(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    rng = np.random.default_rng(1)
    y, u, v = (rng.integers(0, 256, (3, h, w), np.uint8) for h, w in ((48, 480), (24, 240), (24, 240)))
    with open_model(path, REGION, "cpu", 1) as opened:
        assert (opened.version, opened.has_context) == ("fusion", False)
        embeddings = opened.embed((y, u, v))
        probabilities = opened.compare(embeddings[:-1], embeddings[1:])
    assert probabilities.shape == (2, 2, 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    elsewhere = open_fusion(path, CropRegion(0, 0, 0.5, 1), CPU).compare(embeddings[:-1], embeddings[1:])
    assert (elsewhere.numpy() != probabilities).any()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


def test_a_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("a.pt", None),
        ("b.pt", pickle.dumps(Evil())),
        ("c.pt", b"no checkpoint"),
        ("d.pt", b""),
        ("e.pt", b"."),
    ):
        if content is None:
            torch.save({"state_dict": Evil()}, name)
        else:
            Path(name).write_bytes(content)
        with pytest.raises(ModelError, match="cannot read checkpoint"), open_model(name, REGION, "cpu", 1):
            pass
    assert not Path("evil").exists()


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="there is no model file"),
        open_model(tmp_path / "none.safetensors", REGION, "cpu", 1),
    ):
        pass
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with (
        pytest.raises(ModelError, match="not of the ResNet-50 fusion network"),
        open_model(tmp_path / "other.pt", REGION, "cpu", 1),
    ):
        pass
