"""The network as graphs for a CPU, stored in its weights file: ``python -m caption_extents.training.export WEIGHTS``.

Convolutions get 8-bit weights and activations (Jacob et al., 2018), whose ranges are measured on made clips (static
calibration). The weights have 7 bits: processors without instructions for sums of such products (VNNI) saturate with
eight, and all processors give the same results with seven.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from caption_extents.model.identity import DEFAULT_WEIGHTS
from caption_extents.model.network import CaptionNetwork
from caption_extents.model.weights import load_weights, write_graphs
from caption_extents.training.data import make_group, open_backgrounds

_OPSET = 18
_AROUND = ["before", "earlier", "later", "after"]
_MAPS, _PAIRS = {0: "count", 2: "height", 3: "width"}, {0: "count"}
"""Axes whose lengths may vary, of embeddings and of what is known of pairs."""

_SEED = 770_000


class _Describe(nn.Module):
    def __init__(self, network: CaptionNetwork) -> None:
        super().__init__()
        self.head = network.head

    def forward(
        self, before: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, after: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings to descriptions (N, 3, D), and to probabilities (N, 2, 5) of the pairs on their own."""
        first, second = torch.cat([earlier, later, before]), torch.cat([later, earlier, after])
        descriptions = torch.stack(self.head.compare(first, second)[0].chunk(3), dim=1)
        return descriptions, self.head.classify(descriptions[:, :2]).softmax(-1)


class _Classify(nn.Module):
    def __init__(self, network: CaptionNetwork) -> None:
        super().__init__()
        self.context = network.context

    def forward(self, descriptions: torch.Tensor) -> torch.Tensor:
        """Descriptions (P, 3, D) of consecutive pairs to probabilities (P, 2, 5)."""
        logits: torch.Tensor = self.context(descriptions[None])[0]
        return logits.softmax(-1)


def export_graphs(network: CaptionNetwork, clips: list[np.ndarray]) -> dict[str, bytes]:
    """The graphs of a network, serialised, by name.

    Args:
        network: in evaluation mode, with batch normalisation folded in, on the CPU.
        clips: consecutive samples at the network's input size, uint8 (N, 3, H, W), from which ranges are measured.
    """
    network = network.float().eval()
    pictures = [(clip.astype(np.float32) - 128) / 64 for clip in clips]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        example = torch.from_numpy(pictures[0][:4])
        embeddings = [network.encoder(torch.from_numpy(picture)) for picture in pictures]
        encoder = _exported(network.encoder, folder / "encoder.onnx", {"picture": example}, {"embeddings": _MAPS})
        around = dict.fromkeys(_AROUND, embeddings[0][:4])
        described, known = {"descriptions": _PAIRS}, {"probabilities": _PAIRS}
        describe = _exported(_Describe(network), folder / "describe.onnx", around, {**described, **known})
        descriptions = torch.zeros(4, 3, network.config.description_channels)
        classify = _exported(_Classify(network), folder / "classify.onnx", {"descriptions": descriptions}, known)
        _quantize(encoder, ["Conv", "Add", "Relu"], ({"picture": picture} for picture in pictures))
        _quantize(describe, ["Conv", "Relu"], map(_around, embeddings))
        graphs = {"embed": _with_planes(onnx.load(encoder)), "describe": onnx.load(describe)}
        graphs["classify"] = onnx.load(classify)
        helper.set_model_props(graphs["classify"], {"reach": str(network.config.reach)})
        return {name: graph.SerializeToString() for name, graph in graphs.items()}


def _around(embeddings: torch.Tensor) -> dict[str, np.ndarray]:
    count = len(embeddings) - 3
    return {name: embeddings[at : at + count].numpy() for at, name in enumerate(_AROUND)}


def _exported(
    module: nn.Module, path: Path, inputs: dict[str, torch.Tensor], outputs: dict[str, dict[int, str]]
) -> Path:
    axes = {name: _MAPS if tensor.ndim == 4 else _PAIRS for name, tensor in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and that another exporter is newer
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**axes, **outputs},
        )
    return path


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _quantize(path: Path, kinds: list[str], feeds: Iterable[dict[str, np.ndarray]]) -> None:
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=kinds,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _with_planes(encoder: onnx.ModelProto) -> onnx.ModelProto:
    """The encoder behind what :func:`caption_extents.model.preprocess.to_input` does."""
    planes, nodes = ["y", "u", "v"], []
    for name in planes:
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"{name}_float", "channel_axis"], [f"{name}_channel"]),
            helper.make_node(
                "Resize",
                [f"{name}_channel", "", "", "size"],
                [f"{name}_resized"],
                mode="linear",
                antialias=1,
                exclude_outside=1,  # as PyTorch does at the edges
                axes=[2, 3],
            ),
        ]
    nodes += [
        helper.make_node("Concat", [f"{name}_resized" for name in planes], ["planes"], axis=1),
        helper.make_node("Sub", ["planes", "middle"], ["centred"]),
        helper.make_node("Div", ["centred", "spread"], ["picture"]),
    ]
    graph = encoder.graph
    own = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *own])
    shapes: list[list[str]] = [["count", "rows", "columns"], *[["count", "half_rows", "half_columns"]] * 2]
    graph.input.extend(
        [
            *(
                helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
                for name, shape in zip(planes, shapes, strict=True)
            ),
            helper.make_tensor_value_info("size", TensorProto.INT64, [2]),
        ]
    )
    graph.initializer.extend(
        [
            helper.make_tensor("channel_axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("middle", TensorProto.FLOAT, [], [128.0]),
            helper.make_tensor("spread", TensorProto.FLOAT, [], [64.0]),
        ]
    )
    onnx.checker.check_model(encoder)
    return encoder


def made_clips(count: int, assets: Path | None) -> list[np.ndarray]:
    """Samples of made clips of many shapes, uint8 (N, 3, H, W) each."""
    source = open_backgrounds(assets)
    return [make_group(_SEED + number, source, clip_count=1, samples=16).pictures[0].numpy() for number in range(count)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, nargs="?", default=DEFAULT_WEIGHTS)
    parser.add_argument("--clips", type=int, default=64, help="made clips from which ranges are measured")
    parser.add_argument("--assets", type=Path, help="pack of backgrounds and fonts; by default those of this machine")
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(3)
    graphs = export_graphs(load_weights(arguments.weights), made_clips(arguments.clips, arguments.assets))
    write_graphs(arguments.weights, graphs)
    sizes = ", ".join(f"{name} {len(graph) >> 10} KiB" for name, graph in graphs.items())
    print(f"{arguments.weights}: {sizes}")


if __name__ == "__main__":
    main()
