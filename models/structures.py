"""Exports one of four structures at full size: ResNet50, InceptionV3, SqueezeNext, RetinaNet with ResNet50.

Run from the repository's root: `python models/structures.py resnet50 -o resnet50.onnx`. Weights are random, or those
of `--weights FILE`, a state_dict that torch.save wrote (nothing but tensors is unpickled). The first three are
pytorchcv's, whose names the weights need; the last is retinanet.py's.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from amq_onnx.exporting import export


@dataclass(frozen=True)
class Structure:
    """How a network is made, and the side of its images in pixels."""

    make: Callable[[], nn.Module]
    pixels: int


def _resnet50() -> nn.Module:
    from pytorchcv.models.resnet import resnet50

    return resnet50()  # type: ignore[no-any-return]


def _inceptionv3() -> nn.Module:
    from pytorchcv.models.inceptionv3 import inceptionv3

    return inceptionv3()  # type: ignore[no-any-return]


def _squeezenext() -> nn.Module:
    from pytorchcv.models.squeezenext import sqnxt23_w1

    return sqnxt23_w1(in_size=(227, 227))  # type: ignore[no-any-return]


def _retinanet() -> nn.Module:
    from retinanet import retinanet_resnet50

    return retinanet_resnet50()


STRUCTURES = {
    "resnet50": Structure(_resnet50, 224),
    "inceptionv3": Structure(_inceptionv3, 299),
    "squeezenext": Structure(_squeezenext, 227),
    "retinanet": Structure(_retinanet, 512),
}


def write(name: str, path: Path, weights: Path | None = None) -> None:
    """Write a structure to `path`, with random weights of one seed or those of a file. Exits where they don't fit."""
    torch.manual_seed(0)
    structure = STRUCTURES[name]
    network = structure.make()
    if weights is not None:
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, AttributeError) as error:
            sys.exit(f"--weights '{weights}' is no state_dict of {name}: {str(error).splitlines()[0]}")
    with warnings.catch_warnings(action="ignore"):
        if name == "retinanet":
            from retinanet import RetinaNet, export_detector

            assert isinstance(network, RetinaNet)
            export_detector(network, path, structure.pixels)
        else:
            export(network.eval(), path, inputs={"input": (1, 3, structure.pixels, structure.pixels)}, opset=20)


def main() -> None:
    """Export one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", choices=STRUCTURES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="a state_dict that torch.save wrote")
    arguments = parser.parse_args()
    write(arguments.structure, arguments.output, arguments.weights)
    print(f"wrote {arguments.output}: {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
