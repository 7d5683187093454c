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

    make: Callable[..., nn.Module]
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


def _retinanet(classes: int = 80) -> nn.Module:
    from retinanet import retinanet_resnet50

    return retinanet_resnet50(classes)


STRUCTURES = {
    "resnet50": Structure(_resnet50, 224),
    "inceptionv3": Structure(_inceptionv3, 299),
    "squeezenext": Structure(_squeezenext, 227),
    "retinanet": Structure(_retinanet, 512),
}


def write(
    name: str, path: Path, weights: Path | None = None, side: int | None = None, classes: int | None = None
) -> None:
    """Write a structure to `path`, with random weights of one seed or those of a file. Exits where they don't fit.

    side, classes: of RetinaNet, if not the usual ones.
    """
    torch.manual_seed(0)
    if (side or classes) and name != "retinanet":
        sys.exit(f"--side and --classes are for retinanet, not {name}")
    network = STRUCTURES[name].make(*([] if classes is None else [classes]))
    pixels = side or STRUCTURES[name].pixels
    if weights is not None:
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, AttributeError) as error:
            sys.exit(f"--weights '{weights}' is no state_dict of {name}: {str(error).splitlines()[0]}")
    with warnings.catch_warnings(action="ignore"):
        if name == "retinanet":
            from retinanet import RetinaNet, export_detector

            assert isinstance(network, RetinaNet)
            export_detector(network, path, pixels)
        else:
            export(network.eval(), path, inputs={"input": (1, 3, pixels, pixels)}, opset=20)


def main() -> None:
    """Export one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", choices=STRUCTURES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="a state_dict that torch.save wrote")
    parser.add_argument("--side", type=int, help="of retinanet: height and width of an image (default: 512)")
    parser.add_argument("--classes", type=int, help="of retinanet (default: 80)")
    arguments = parser.parse_args()
    write(arguments.structure, arguments.output, arguments.weights, arguments.side, arguments.classes)
    print(f"wrote {arguments.output}: {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
