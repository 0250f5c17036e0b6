"""The network on a CPU by ONNX Runtime, and everything without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save_file

import caption_extents as ce
from caption_extents.errors import InputError, ModelError
from caption_extents.model import captioner
from caption_extents.model.backend import Backend
from caption_extents.model.identity import DEFAULT_WEIGHTS, GRAPHS
from caption_extents.model.labeller import label_samples
from caption_extents.model.network import CaptionNetwork, NetworkConfig
from caption_extents.model.portable import PortableNetwork, read_graphs
from caption_extents.model.torch_backend import TorchBackend
from caption_extents.model.torch_network import TorchNetwork
from caption_extents.model.weights import load_weights, save_weights, write_graphs
from caption_extents.samples import Planes, SampleBatch, slice_planes
from caption_extents.training.export import export_graphs
from caption_extents.training.sample_video import CROP
from tests.films import make_film

CAPTIONS = [(5, 30), (30, 52), (60, 90)]
"""In samples, of which there are ten a second of thirty frames."""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make_film(path, [(3 * start, 3 * end) for start, end in CAPTIONS])
    return path


@pytest.fixture(scope="module")
def planes(film: Path) -> Planes:
    with ce.open_video(film, 10, device="cpu") as video:
        batches = list(video.samples(ce.CropRegion(*CROP)))
    y, u, v = (np.concatenate(plane) for plane in zip(*(batch.planes for batch in batches), strict=True))
    return y, u, v


def opened(threads: int, path: Path = DEFAULT_WEIGHTS) -> PortableNetwork:
    graphs = read_graphs(path)
    assert graphs is not None
    return PortableNetwork(path, graphs, threads)


@pytest.fixture
def portable() -> Iterator[PortableNetwork]:
    with closing(opened(2)) as network:
        yield network


@pytest.fixture(scope="module")
def reference() -> Iterator[Backend]:
    with TorchNetwork(device="cpu", threads=2) as network:
        yield TorchBackend(network)


def batches_of(planes: Planes, sizes: list[int]) -> list[SampleBatch]:
    found, at, turn = [], 0, 0
    while at < len(planes[0]):
        found.append(SampleBatch(at, *slice_planes(planes, at, at + sizes[turn % len(sizes)])))
        at, turn = at + len(found[-1]), turn + 1
    return found


def test_labels_are_those_of_pytorch(planes: Planes, portable: PortableNetwork, reference: Backend) -> None:
    found, expected = (label_samples(model, batches_of(planes, [32])) for model in (portable, reference))
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    assert np.abs(found - expected).max() < 0.1
    captions = ce.decode_captions(found, 10)
    assert [(caption.first_sample, caption.end_sample) for caption in captions] == CAPTIONS


def test_a_closer_look_and_pairs_on_their_own(planes: Planes, portable: PortableNetwork, reference: Backend) -> None:
    k = np.arange(20, 40)
    around = np.stack([k - 1, k, k + 1, k + 2])
    closely, alone = [], []
    for model in (portable, reference):
        embeddings = model.embed(slice_planes(planes, 0, 40))
        alone.append(model.compare(embeddings[:1], embeddings))
        closely.append(model.classify(model.describe_closely(planes, around)))
    for found, expected in (closely, alone):
        assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.97
        np.testing.assert_allclose(found, expected, atol=0.15)


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), threads=st.integers(1, 4))
def test_results_depend_neither_on_threads_nor_on_batches(planes: Planes, sizes: list[int], threads: int) -> None:
    short = slice_planes(planes, 0, 60)
    with closing(opened(threads)) as network, closing(opened(1)) as alone:
        found, expected = (
            label_samples(network, batches_of(short, sizes)),
            label_samples(alone, batches_of(short, [32])),
        )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_closed_model_says_so(planes: Planes) -> None:
    network = opened(1)
    network.close()
    with pytest.raises(InputError, match="closed"):
        network.embed(planes)


SMALL = NetworkConfig(8, 8, 1, 16, 1, 8, 4, 16, 16, 16, 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights without graphs."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(CaptionNetwork(SMALL).eval(), path, name="small")
    return path


def test_an_exported_network_computes_the_same(small: Path, planes: Planes, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(small.read_bytes())
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (8, 3, 32, width), np.uint8) for width in (256, 512)]
    write_graphs(path, export_graphs(load_weights(path), clips))
    weights = load_weights(small).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in load_weights(path).state_dict().items())
    with closing(opened(2, path)) as network, TorchNetwork(small, "cpu", 2) as torch_network:
        assert (network.version, network.reach) == ("small", SMALL.reach)
        models = network, TorchBackend(torch_network)
        found, expected = (label_samples(model, batches_of(slice_planes(planes, 0, 40), [16])) for model in models)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_graphs_that_are_damaged(small: Path, tmp_path: Path) -> None:
    assert read_graphs(small) is None
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(small.read_bytes())
    write_graphs(path, dict.fromkeys(GRAPHS, b"no graph"))
    with pytest.raises(ModelError, match=r"cannot use the graphs in .*damaged"):
        ce.CaptionModel(path, "cpu")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="does not hold weights of this network"):
        ce.CaptionModel(tmp_path / "other.safetensors", "cpu")


def test_graphs_read_no_files(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of a graph may stand in other files."""
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(b"SECRET!!")
    outside = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", "8")):
        outside.external_data.add(key=key, value=value)
    known = helper.make_tensor_value_info("o", TensorProto.UINT8, [8])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "g", [], [known], [outside])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    assert bytes(onnxruntime.InferenceSession(model).run(None, {})[0]) == b"SECRET!!"
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(small.read_bytes())
    write_graphs(path, dict.fromkeys(GRAPHS, model))
    with pytest.raises(ModelError, match="cannot use the graphs"):
        ce.CaptionModel(path, "cpu")


def test_weights_without_graphs_need_pytorch(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ce.CaptionModel(small, "cpu", 1) as model:
        assert isinstance(model.backend, TorchBackend)
    with pytest.raises(InputError, match="closed"):
        model.backend.embed(tuple(np.zeros((1, 32 // half, 64 // half), np.uint8) for half in (1, 2, 2)))
    monkeypatch.setattr(captioner, "need_torch", _refuse)
    with pytest.raises(InputError, match=r"small\.safetensors.* holds no graphs"):
        ce.CaptionModel(small, "cpu")


def _refuse(what: str) -> None:
    raise InputError(what)


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['torch'] = None\nfrom caption_extents.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_everything_works_without_pytorch(film: Path, tmp_path: Path) -> None:
    crop = ",".join(map(str, CROP))
    store = ["--store", str(tmp_path / "store")]
    done = without_torch("run", str(film), "--crop", crop, *store, "--refine", "--report", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "3 captions in" in done.stdout
    for command in (["doctor", *store], ["versions", film.stem, *store], ["report", film.stem, *store]):
        done = without_torch(*command)
        assert done.returncode == 0, done.stderr


def test_what_needs_pytorch_says_so(film: Path, tmp_path: Path) -> None:
    (tmp_path / "fusion.pt").write_bytes(b"")
    done = without_torch(
        "run", str(film), "--crop", "0,0,1,1", "--store", str(tmp_path), "--model", str(tmp_path / "fusion.pt")
    )
    assert done.returncode != 0
    assert "pip install 'caption-extents[gpu]'" in " ".join(done.stderr.split())
