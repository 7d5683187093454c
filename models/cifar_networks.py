"""Networks of three families for 32x32 colour images, of the parts that those for the digits are made of.

Each takes images [batch, 3, 32, 32] and returns logits [batch, 10].
"""

from __future__ import annotations

from digits_networks import CLASSES, Block, Bottleneck, Branches, ConvNormReLU
from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """Features, their mean over the image, and a classifier."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten classes."""
        return self.classifier(self.features(image).mean((2, 3)))


def residual() -> CifarNetwork:
    """A residual network (He et al. 2015): three stages of two blocks, 24, 48 and 96 channels wide."""
    return CifarNetwork(
        nn.Sequential(
            ConvNormReLU(3, 24, 3),
            *(Block(24, 24, 1), Block(24, 24, 1)),
            *(Block(24, 48, 2), Block(48, 48, 1)),
            *(Block(48, 96, 2), Block(96, 96, 1)),
        ),
        96,
    )


def inception() -> CifarNetwork:
    """An Inception network: blocks of the first version, reductions and factorized blocks of the third."""
    return CifarNetwork(
        nn.Sequential(
            ConvNormReLU(3, 32, 3),
            _mixed(32, 16, 16, 24, 8, 16, 16),
            _reduction(72, 40, 24, 32),
            _mixed(144, 32, 32, 48, 16, 24, 24),
            _factorized(128, 48, 32, 32),
            _reduction(128, 64, 32, 64),
            _factorized(256, 64, 48, 64),
        ),
        192,
    )


def squeezenext() -> CifarNetwork:
    """A SqueezeNext with group convolutions (Gholami et al. 2018): 2, 4 and 3 blocks, a last 1x1."""
    return CifarNetwork(
        nn.Sequential(
            ConvNormReLU(3, 64, 3),
            *(Bottleneck(64, 64, 1), Bottleneck(64, 64, 1)),
            *(Bottleneck(64, 128, 2), Bottleneck(128, 128, 1), Bottleneck(128, 128, 1), Bottleneck(128, 128, 1)),
            *(Bottleneck(128, 256, 2), Bottleneck(256, 256, 1), Bottleneck(256, 256, 1)),
            ConvNormReLU(256, 160, 1),
        ),
        160,
    )


def _mixed(channels: int, single: int, before3: int, three: int, before5: int, five: int, pooled: int) -> Branches:
    return Branches(
        ConvNormReLU(channels, single, 1),
        nn.Sequential(ConvNormReLU(channels, before3, 1), ConvNormReLU(before3, three, 3)),
        nn.Sequential(ConvNormReLU(channels, before5, 1), ConvNormReLU(before5, five, 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNormReLU(channels, pooled, 1)),
    )


def _reduction(channels: int, direct: int, before: int, deep: int) -> Branches:
    return Branches(
        ConvNormReLU(channels, direct, 3, stride=2),
        nn.Sequential(ConvNormReLU(channels, before, 1), ConvNormReLU(before, deep, 3, stride=2)),
        nn.MaxPool2d(3, 2, 1),
    )


def _factorized(channels: int, wide: int, narrow: int, pooled: int) -> Branches:
    return Branches(
        ConvNormReLU(channels, wide, 1),
        nn.Sequential(
            ConvNormReLU(channels, narrow, 1), ConvNormReLU(narrow, narrow, (1, 7)), ConvNormReLU(narrow, wide, (7, 1))
        ),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNormReLU(channels, pooled, 1)),
    )
