"""Pairs that are looked at closely, while batches come in."""

from __future__ import annotations

import itertools
from typing import Self

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from caption_extents.labels import Label
from caption_extents.model.interface import SecondLookModel
from caption_extents.model.labeller import Labeller
from caption_extents.model.torch_backend import TorchBackend
from caption_extents.model.torch_network import TorchNetwork
from caption_extents.pipeline.clocks import INFERENCE, StageClock
from caption_extents.pipeline.stages import Inference
from caption_extents.samples import SampleBatch


class _Counting:
    """Knows samples by their brightness; a description adds up four of them, a label the descriptions around it."""

    device = torch.device("cpu")
    version, digest, reach = "counting", "counting-1", 2

    def __init__(self) -> None:
        self.looked_at = 0

    def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return y[:, 0, 0].double()

    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        raise AssertionError("pairs have others around them")

    def describe(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        return before + 3 * earlier + 7 * later + 20 * after

    def classify(self, descriptions: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([torch.zeros(2), descriptions, torch.zeros(2)]).double()
        around = sum(padded[at : at + len(descriptions)] * (at + 1) for at in range(5))
        found = torch.zeros(len(descriptions), 2, 5)
        found[..., Label.DIFFERENT.value] = ((around % 100) / 100).float()[:, None]
        return found

    def needs_second_look(self, probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities[:, 0, Label.DIFFERENT.value] < 0.3

    def describe_closely(
        self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, around: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        self.looked_at += len(around[0])
        seen = y[:, 0, 0].double() + 1000 * u[:, 0, 0].double()
        return self.describe(*(seen[numbers] for numbers in around))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _expected(brightness: list[int]) -> tuple[torch.Tensor, int]:
    """Probabilities of all pairs, and how many were worth a look, with all samples at hand."""
    model, samples = _Counting(), torch.tensor(brightness).double()
    k = torch.arange(len(samples) - 1)
    around = [(k + step).clamp(0, len(samples) - 1) for step in (-1, 0, 1, 2)]
    first = model.describe(*(samples[numbers] for numbers in around))
    worth = model.needs_second_look(model.classify(first))
    closely = samples + 1000 * (samples // 2)
    again = torch.where(worth, model.describe(*(closely[numbers] for numbers in around)), first)
    return model.classify(again), int(worth.sum())


@given(st.lists(st.integers(0, 255), min_size=2, max_size=60), st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_any_batches_give_what_all_samples_at_once_give(brightness: list[int], sizes: list[int]) -> None:
    model = _Counting()
    assert isinstance(model, SecondLookModel)
    inference = Inference(Labeller(TorchBackend(model)), len(brightness), StageClock(INFERENCE))
    at = 0
    for size in itertools.cycle(sizes):
        part = np.asarray(brightness[at : at + size], np.uint8)[:, None, None]
        chroma = part // 2
        inference.infer(SampleBatch(at, part.repeat(2, 1).repeat(2, 2), chroma, chroma))
        at += size
        if at >= len(brightness):
            break
    expected, looked_at = _expected(brightness)
    np.testing.assert_allclose(inference.probabilities, expected.numpy())
    assert model.looked_at == looked_at


def test_a_close_look_sees_the_pair_that_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(0, 256, (6, 48, 400), dtype=torch.uint8, generator=generator)
    u, v = torch.randint(0, 256, (2, 6, 24, 200), dtype=torch.uint8, generator=generator).unbind()
    around = (torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([2, 5]), torch.tensor([3, 5]))
    with TorchNetwork(threads=2) as model:
        assert isinstance(model, SecondLookModel)
        both = model.describe_closely(y, u, v, around)
        one = model.describe_closely(y[3:], u[3:], v[3:], tuple(numbers[1:] - 3 for numbers in around))
        coarse = model.embed(y, u, v)
        first = model.describe(*(coarse[numbers] for numbers in around))
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-4)
    assert both.shape == first.shape
    assert not torch.allclose(both, first, atol=1e-2)


def test_what_may_be_one_caption_or_two_is_worth_a_look() -> None:
    probabilities = torch.zeros(4, 2, 5)
    probabilities[:, :, Label.DIFFERENT.value] = torch.tensor([[0.0, 0.05], [0.04, 0.08], [0.9, 0.7], [0.99, 0.98]])
    with TorchNetwork() as model:
        assert model.needs_second_look(probabilities).tolist() == [False, True, True, False]
