"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): a full-size one on ResNet50, and a small one for scenes of 128x128 px.

Each takes images `input` [batch, 3, height, width] and returns raw heads: `scores` [batch, anchors, classes], logits,
and `boxes` [batch, anchors, 4], offsets (anchors.py). The two heads are the same at every level, so each of their
weights is read several times.

structures.py writes the full-size one.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from anchors import FULL, SMALL, Anchors
from digits_networks import Block, ConvNormReLU
from torch import Tensor, nn
from torch.nn.functional import interpolate

from amq_onnx.exporting import export

# The chance of an object that an untrained network gives everywhere (section 4.1).
_PRIOR = 0.01


class Levels(nn.Module):
    """A backbone's stages, and what the last ones give: C3, C4, C5."""

    def __init__(self, stem: nn.Module, *stages: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of the last three stages, finest first."""
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[-3:]


class Pyramid(nn.Module):
    """Feature pyramid network (Lin et al. 2016, arXiv 1612.03144): coarser features added to finer ones.

    widths: channels of C3, C4, C5. coarser: levels beyond those, each half the size of the one before.
    """

    def __init__(self, widths: tuple[int, int, int], channels: int, coarser: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        sources = [widths[-1], *[channels] * coarser][:coarser]
        self.coarser = nn.ModuleList(nn.Conv2d(source, channels, 3, 2, 1) for source in sources)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """P3, P4, P5 and the coarser levels, all of the same channels."""
        merged: list[Tensor] = []
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            inner = lateral(feature)
            merged.append(inner + interpolate(merged[-1], scale_factor=2.0) if merged else inner)
        levels = [smooth(level) for smooth, level in zip(self.smooth, reversed(merged), strict=True)]
        last = features[-1]
        for number, convolution in enumerate(self.coarser):
            last = convolution(torch.relu(last) if number else last)
            levels.append(last)
        return levels


class RetinaHead(nn.Sequential):
    """3x3 convolutions with ReLU, and one that gives `values` for each of the `anchors` of a place."""

    def __init__(self, channels: int, depth: int, anchors: int, values: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(channels, anchors * values, 3, padding=1))
        self.values = values

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The values of all anchors of all levels, [batch, anchors, values]."""
        found = [super(RetinaHead, self).forward(level).permute(0, 2, 3, 1) for level in levels]
        return torch.cat([values.reshape(values.shape[0], -1, self.values) for values in found], 1)


class RetinaNet(nn.Module):
    """Backbone, pyramid and the two heads.

    widths: channels of what the backbone gives. channels, depth: of the heads.
    """

    def __init__(
        self,
        backbone: nn.Module,
        widths: tuple[int, int, int],
        anchors: Anchors,
        classes: int,
        channels: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = Pyramid(widths, channels, len(anchors.strides) - 3)
        self.scores = RetinaHead(channels, depth, anchors.places, classes)
        self.boxes = RetinaHead(channels, depth, anchors.places, 4)
        self._reset(channels)

    def _reset(self, channels: int) -> None:
        """Pyramid and heads so that features keep their size, and every anchor starts as unlikely."""
        for part in (self.pyramid, self.scores, self.boxes):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(
                        module.weight, nonlinearity="relu" if part is not self.pyramid else "linear"
                    )
                    nn.init.zeros_(module.bias)
        for head in (self.scores, self.boxes):
            nn.init.normal_(head[-1].weight, std=0.01)
        nn.init.constant_(self.scores[-1].bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and boxes."""
        levels = self.pyramid(self.backbone(image))
        return self.scores(levels), self.boxes(levels)


def retinanet_resnet50(classes: int = 80) -> RetinaNet:
    """The paper's network: ResNet50, P3 to P7 of 256 channels, heads of four convolutions, nine anchors a place."""
    from pytorchcv.models.resnet import resnet50

    features = resnet50().features
    stages = [features.stage1, features.stage2, features.stage3, features.stage4]
    return RetinaNet(Levels(features.init_block, *stages), (512, 1024, 2048), FULL, classes, 256, 4)


def retinanet_small(classes: int = 10) -> RetinaNet:
    """Three stages of two residual blocks, P3 to P5 of 48 channels, heads of two convolutions, three squares a place.

    Its C3 lies four pixels apart, where the paper's lies eight, for scenes of 128x128 px.
    """
    backbone = Levels(
        ConvNormReLU(3, 24, 3, stride=2),
        nn.Sequential(Block(24, 32, 2), Block(32, 32, 1)),
        nn.Sequential(Block(32, 64, 2), Block(64, 64, 1)),
        nn.Sequential(Block(64, 96, 2), Block(96, 96, 1)),
    )
    return RetinaNet(backbone, (32, 64, 96), SMALL, classes, 48, 2)


def export_detector(network: RetinaNet, path: Path, side: int) -> None:
    """Write the network with outputs `scores` and `boxes`, for images of `side` pixels, the batch free."""
    export(network, path, inputs={"input": (1, 3, side, side)}, outputs=["scores", "boxes"], opset=20)
