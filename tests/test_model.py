from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from caption_extents.captions.extents import DecodingCosts
from caption_extents.errors import ModelError
from caption_extents.model.devices import single_threaded_pool
from caption_extents.model.identity import DEFAULT_WEIGHTS, INPUT_AREA_PX, read_identity
from caption_extents.model.inputs import STRIDE, input_size
from caption_extents.model.network import CaptionNetwork, NetworkConfig, fold_batch_norms
from caption_extents.model.preprocess import to_input
from caption_extents.model.torch_network import TorchNetwork
from caption_extents.model.weights import load_weights, save_weights, write_costs

SMALL = NetworkConfig(8, 8, 16, 1, 8, 16)


def planes(count: int, height: int = 48, width: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)

    def plane(h: int, w: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, h, w), dtype=torch.uint8, generator=generator)

    return plane(height, width), plane(height // 2, width // 2), plane(height // 2, width // 2)


@pytest.mark.parametrize("size", [(16, 16), (56, 1024), (28, 400), (200, 800), (30, 1200), (720, 1280), (1000, 20)])
def test_input_keeps_its_area(size: tuple[int, int]) -> None:
    height, width = input_size(*size)
    assert height % STRIDE == width % STRIDE == 0
    assert 0.7 < height * width / INPUT_AREA_PX < 1.4


def test_input_of_a_flat_picture_is_flat() -> None:
    y, u, v = (
        torch.full((1, h, w), value, dtype=torch.uint8) for h, w, value in ((32, 64, 192), (16, 32, 128), (16, 32, 64))
    )
    picture = to_input(y, u, v)
    assert picture.shape == (1, 3, *input_size(32, 64))
    for channel, value in enumerate((1.0, 0.0, -1.0)):
        torch.testing.assert_close(picture[0, channel], torch.full(input_size(32, 64), value))


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = CaptionNetwork(SMALL)
    network.train()
    pictures = torch.randn(6, 3, 32, 64)
    network(pictures[:3], pictures[3:])
    network.eval()
    before = network(pictures[:3], pictures[3:])
    fold_batch_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(pictures[:3], pictures[3:]), before, rtol=1e-4, atol=1e-4)


def test_both_ways_at_once_are_one_way_twice() -> None:
    torch.manual_seed(0)
    network = CaptionNetwork(SMALL).eval()
    a, b = (network.encoder(torch.randn(3, 3, 32, 64)) for _ in range(2))
    described, change = network.head.compare_both_ways(a, b)
    for way, pair in enumerate(((a, b), (b, a))):
        alone, alone_change = network.head.compare(*pair)
        torch.testing.assert_close(described[way], alone)
        torch.testing.assert_close(change[way], alone_change)


def test_a_film_that_runs_backwards_is_labelled_backwards() -> None:
    torch.manual_seed(0)
    network = CaptionNetwork(SMALL).eval()
    described = torch.randn(1, 40, 3, SMALL.description_channels)
    logits = network.context(described)
    reversed_film = network.context(described[:, :, [1, 0, 2]].flip(1))
    torch.testing.assert_close(reversed_film[:, :, [1, 0]].flip(1), logits)


class _NoConstants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where a tensor is made out of Python's numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket is not torch.ops.aten.lift_fresh, "a GPU would have to wait for it to be copied"
        return func(*args, **(kwargs or {}))


def test_nothing_is_copied_to_the_device_on_the_way() -> None:
    """On a GPU the network's operations are recorded and replayed, which a copy from the host makes impossible."""
    with pytest.raises(AssertionError, match="copied"), _NoConstants():  # type: ignore[no-untyped-call]
        torch.zeros(3)[[1, 0]]
    network = CaptionNetwork(SMALL).eval()
    fold_batch_norms(network)
    with torch.inference_mode(), _NoConstants():  # type: ignore[no-untyped-call]
        e = network.encoder(to_input(*planes(4)))
        described = network.describe(e, e, e, e)
        network.context(described[None])
        network.head(e, e)


def test_embeddings_do_not_depend_on_the_batch() -> None:
    y, u, v = planes(20)
    with TorchNetwork(device="cpu", threads=2) as model:
        whole = model.embed(y, u, v)
        single = torch.cat([model.embed(y[k : k + 1], u[k : k + 1], v[k : k + 1]) for k in range(20)])
        torch.testing.assert_close(whole, single, rtol=1e-3, atol=1e-4)


def test_results_do_not_depend_on_threads() -> None:
    y, u, v = planes(33)
    results = []
    for threads in (1, 2, 5):
        before = torch.get_num_threads()
        with TorchNetwork(device="cpu", threads=threads) as model:
            embeddings = model.embed(y, u, v)
            results.append((embeddings, model.compare(embeddings[:-1], embeddings[1:])))
        assert torch.get_num_threads() == before
    for embeddings, probabilities in results[1:]:
        assert embeddings.equal(results[0][0])
        assert probabilities.equal(results[0][1])


def test_threads_that_compute_alone_leave_others_as_they_were() -> None:
    """Also where a pool is made in a thread of another, as when a job loads its model."""

    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with single_threaded_pool(2, "outer") as outer:
            assert outer.submit(torch.get_num_threads).result() == 1
            with outer.submit(single_threaded_pool, 2, "inner").result() as inner:
                assert inner.submit(torch.get_num_threads).result() == 1
            assert outer.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == of_a_new_thread() == 3
    finally:
        torch.set_num_threads(before)


def test_directions_are_what_they_say() -> None:
    y, u, v = planes(3)
    with TorchNetwork() as model:
        e = model.embed(y, u, v)
        there, back = model.compare(e[:1], e[1:2]), model.compare(e[1:2], e[:1])
    torch.testing.assert_close(there[:, 0], back[:, 1])
    torch.testing.assert_close(there[:, 1], back[:, 0])
    torch.testing.assert_close(there.sum(dim=2), torch.ones(1, 2))


def test_the_package_carries_small_weights() -> None:
    assert DEFAULT_WEIGHTS.stat().st_size < 10_000_000
    assert read_identity().version


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = CaptionNetwork(SMALL).eval()
    save_weights(network, tmp_path / "w.safetensors", name="mine")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert read_identity(tmp_path / "w.safetensors").version == "mine"
    pictures = torch.randn(2, 3, 32, 64)
    torch.testing.assert_close(loaded(pictures, pictures), network(pictures, pictures), rtol=1e-4, atol=1e-4)


def test_weights_bring_their_costs(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(CaptionNetwork(SMALL), path, name="mine")
    assert read_identity(path).costs == {}
    before = load_weights(path)
    write_costs(path, {"different": 2.5, "hasty": 4})
    after = load_weights(path)
    assert read_identity(path).version == "mine"
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    with TorchNetwork(path) as model:
        assert DecodingCosts.of(model) == DecodingCosts(different=2.5, hasty=4.0)
    assert DecodingCosts.of(object()) == DecodingCosts()


@pytest.mark.parametrize("costs", ['{"different": "much"}', "[1]", '{"different": NaN}', "{"])
def test_costs_that_are_no_numbers(costs: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"kind": "caption-network", "costs": costs})
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        read_identity(tmp_path / "w.safetensors")


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_weights_never_run_code(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ModelError, match="cannot read model weights"):
        load_weights(path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ModelError, match="cannot read"):
        load_weights(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="does not hold weights of this network"):
        load_weights(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"kind": "caption-network", "config": "{}"})
    with pytest.raises(ModelError, match="do not fit"):
        load_weights(path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_says_what_a_cpu_says() -> None:
    crops, found = planes(24), []
    for device in ("cpu", "cuda"):
        with TorchNetwork(device=device) as model:
            embeddings = model.embed(*crops)
            found.append(model.compare(embeddings[:-1], embeddings[1:]))
    # One computes in half precision.
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_looks_as_closely_as_a_cpu() -> None:
    crops, found = planes(24), []
    k = torch.arange(23)
    around = tuple((k + step).clamp(0, 23) for step in (-1, 0, 1, 2))
    for device in ("cpu", "cuda"):
        with TorchNetwork(device=device) as model:
            found.append(model.classify(model.describe_closely(*crops, around)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_each_gpu_records_for_itself() -> None:
    crops = planes(8)
    found = []
    for device in ("cuda:0", "cuda:1"):
        with TorchNetwork(device=device) as model:
            # The first time it is computed, the second time recorded, the third time replayed.
            found += [model.embed(*crops).cpu() for _ in range(3)]
    for embeddings in found[1:]:
        torch.testing.assert_close(embeddings, found[0], rtol=1e-2, atol=1e-2)
