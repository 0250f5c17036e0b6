"""Training of the caption network on rendered clips: ``python -m caption_extents.training.train --out weights``.

Everything that is random comes from the seed and the step, so a run can be repeated, and resumed from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from caption_extents.model.labels import Label
from caption_extents.model.network import CaptionNetwork, NetworkConfig
from caption_extents.model.preprocess import INPUT_AREA_PX, STRIDE, input_size, to_input
from caption_extents.model.weights import save_weights
from caption_extents.training import backgrounds, clips

UNSURE_WEIGHT = 0.15
MASK_LOSS_WEIGHT = 1.0
FAR_PAIR_WEIGHT = 0.5


@dataclass(frozen=True)
class Batch:
    """Clips of one input size.

    Attributes:
        pictures: network input, float16 (B, T, 3, H, W).
        caption_ids: int64 (B, T), 0 for none.
        unsure: bool (B, T).
        ink: caption coverage at the mask's resolution, float32 (B, T, H/8, W/8).
    """

    pictures: torch.Tensor
    caption_ids: torch.Tensor
    unsure: torch.Tensor
    ink: torch.Tensor


def make_batch(seed: int, source: backgrounds.BackgroundSource, clip_count: int, samples: int) -> Batch:
    """Random clips, all of one random aspect ratio, at random source resolutions."""
    rng = random.Random(seed)
    aspect = math.exp(rng.uniform(math.log(4), math.log(40)))
    area = rng.choice([INPUT_AREA_PX * 3 // 8, INPUT_AREA_PX // 2, INPUT_AREA_PX * 3 // 4, INPUT_AREA_PX])
    height, width = input_size(100, round(100 * aspect), area)
    pictures, ids, unsure, ink = [], [], [], []
    for _ in range(clip_count):
        scale = math.exp(rng.uniform(math.log(0.6), math.log(2.0)))
        crop = (max(16, round(height * scale / 2) * 2), max(64, round(width * scale / 2) * 2))
        clip = clips.random_clip(rng, source, samples, crop[1], crop[0])
        y, u, v = (torch.from_numpy(np.ascontiguousarray(plane)) for plane in (clip.y, clip.u, clip.v))
        pictures.append(to_input(y, u, v, (height, width)).half())
        ids.append(torch.from_numpy(clip.caption_ids))
        unsure.append(torch.from_numpy(clip.unsure))
        coarse = torch.from_numpy(clip.ink)[:, None]
        ink.append(functional.interpolate(coarse, (height // STRIDE, width // STRIDE), mode="area")[:, 0])
    return Batch(torch.stack(pictures), torch.stack(ids), torch.stack(unsure), torch.stack(ink))


def pair_labels(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Labels of pairs from caption numbers (0 for none) of both samples; int64 of the same shape."""
    labels = torch.full_like(first, Label.DIFFERENT.value)
    labels[first == second] = Label.SAME.value
    labels[(first == 0) & (second == 0)] = Label.EMPTY_EMPTY.value
    labels[(first == 0) & (second != 0)] = Label.EMPTY_VALID.value
    labels[(first != 0) & (second == 0)] = Label.VALID_EMPTY.value
    return labels


class _Batches(IterableDataset[Batch]):
    def __init__(self, seed: int, first_step: int, steps: int, clip_count: int, samples: int) -> None:
        self._range = (first_step, steps)
        self._seed, self._clip_count, self._samples = seed, clip_count, samples

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        source = backgrounds.BackgroundSource(backgrounds.find_pictures(), backgrounds.find_footage())
        for step in range(self._range[0] + number, self._range[1], stride):
            yield make_batch(self._seed * 10_000_000 + step, source, self._clip_count, self._samples)


def losses(network: CaptionNetwork, batch: Batch, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Pair loss, mask loss and the accuracy on sure consecutive pairs."""
    count, samples = batch.caption_ids.shape
    embeddings = network.encoder(batch.pictures.float().flatten(0, 1).contiguous(memory_format=torch.channels_last))
    mask_loss = functional.binary_cross_entropy_with_logits(embeddings[:, -1], batch.ink.flatten(0, 1).clamp(0, 1))
    embeddings = embeddings.unflatten(0, (count, samples))
    near = [(k, k + 1) for k in range(samples - 1)]
    far = [(k, rng.choice([m for m in range(samples) if abs(m - k) > 1])) for k in range(0, samples, 2)]
    pairs = [*near, *((b, a) for a, b in near), *far]
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    logits = network.head(embeddings[:, first].flatten(0, 1), embeddings[:, second].flatten(0, 1))
    labels = pair_labels(batch.caption_ids[:, first], batch.caption_ids[:, second]).flatten()
    unsure = (batch.unsure[:, first] | batch.unsure[:, second]).flatten()
    weights = torch.where(unsure, UNSURE_WEIGHT, 1.0)
    nearness = torch.tensor([1.0] * (2 * len(near)) + [FAR_PAIR_WEIGHT] * len(far)).repeat(count)
    weights = weights * nearness
    pair_loss = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    sure_near = ~unsure & (nearness == 1.0)
    accuracy = float((logits.argmax(1) == labels)[sure_near].float().mean())
    return pair_loss, mask_loss, accuracy


def _average_into(average: CaptionNetwork, network: CaptionNetwork, decay: float) -> None:
    """Exponential moving average of weights and statistics (Polyak averaging)."""
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def train(arguments: argparse.Namespace) -> CaptionNetwork:
    """Run the training that the arguments describe; returns the averaged network."""
    torch.manual_seed(arguments.seed)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    network, average = CaptionNetwork(NetworkConfig()), CaptionNetwork(NetworkConfig())
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=0.02)
    first_step, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists() and not arguments.fresh:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    batches = _Batches(arguments.seed, first_step, arguments.steps, arguments.clips, arguments.samples)
    loader = DataLoader(
        batches, batch_size=None, num_workers=arguments.workers, prefetch_factor=4 if arguments.workers else None
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    started, log = time.perf_counter(), (out / "log.jsonl").open("a")
    running: dict[str, float] = {}
    for step, batch in enumerate(loader, start=first_step):
        progress = step / arguments.steps
        rate = arguments.rate * min(1.0, (step + 1) / 200) * (0.5 * (1 + math.cos(math.pi * progress)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        pair_loss, mask_loss, accuracy = losses(network, batch, random.Random(step))
        optimizer.zero_grad(set_to_none=True)
        (pair_loss + MASK_LOSS_WEIGHT * mask_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        _average_into(average, network, min(0.998, (step + 1) / (step + 20)))
        for name, value in (("pair", pair_loss.item()), ("mask", mask_loss.item()), ("accuracy", accuracy)):
            running[name] = running.get(name, value) * 0.98 + value * 0.02
        if (step + 1) % arguments.log_every == 0 or step + 1 == arguments.steps:
            record = {"step": step + 1, "seconds": round(time.perf_counter() - started, 1), "lr": round(rate, 6)}
            record |= {name: round(value, 5) for name, value in running.items()}
            print(json.dumps(record), flush=True)
            log.write(json.dumps(record) + "\n")
            log.flush()
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            state = {"network": network.state_dict(), "average": average.state_dict(), "step": step + 1}
            torch.save({**state, "optimizer": optimizer.state_dict()}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            save_weights(average, out / "caption-network.safetensors", name=arguments.name)
    return average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for weights, checkpoint and log")
    parser.add_argument("--name", default="caption-network", help="model version written into the weights")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--clips", type=int, default=6, help="clips in a batch")
    parser.add_argument("--samples", type=int, default=8, help="samples in a clip")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that render clips")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in the folder")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
