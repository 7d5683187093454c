"""The networks of the shipped models, small versions of five families; every one maps an image to ten scores.

Each takes images [batch, 1, 8, 8] and returns logits [batch, 10].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, after its last ReLU."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A residual network (He et al. 2015): three stages of two blocks, 12, 24 and 40 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(Block(12, 12, 1), Block(12, 12, 1)),
            nn.Sequential(Block(12, 24, 2), Block(24, 24, 1)),
            nn.Sequential(Block(24, 40, 2), Block(40, 40, 1)),
        )
        self.classifier = nn.Linear(40, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits."""
        features = self.stages(self.stem(image))
        return self.classifier(features.mean((2, 3)))


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps the size at stride 1 (`kernel` is odd), batch normalization, ReLU."""

    def __init__(
        self, channels: int, wider: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1
    ) -> None:
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (height // 2, width // 2)
        super().__init__(
            nn.Conv2d(channels, wider, (height, width), stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
        )


class Branches(nn.Module):
    """Branches that read the same tensor and whose outputs are joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """All branches' channels, in order."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class DigitsInception(nn.Module):
    """An Inception network: a block of the first version, then a reduction and a block of the third.

    Szegedy et al. 2014, figure 2b (1x1, 3x3, 5x5 and pooled branches); Szegedy et al. 2015, figures 6 and 10
    (a 7x7 as 1x7 and 7x1; convolutions and a pooling that halve the size side by side).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormReLU(1, 32, 3)
        self.mixed = Branches(
            ConvNormReLU(32, 16, 1),
            nn.Sequential(ConvNormReLU(32, 24, 1), ConvNormReLU(24, 32, 3)),
            nn.Sequential(ConvNormReLU(32, 8, 1), ConvNormReLU(8, 16, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNormReLU(32, 16, 1)),
        )
        self.reduction = Branches(
            ConvNormReLU(80, 40, 3, stride=2),
            nn.Sequential(ConvNormReLU(80, 24, 1), ConvNormReLU(24, 32, 3), ConvNormReLU(32, 40, 3, stride=2)),
            nn.MaxPool2d(3, 2, 1),
        )
        self.factorized = Branches(
            ConvNormReLU(160, 48, 1),
            nn.Sequential(ConvNormReLU(160, 32, 1), ConvNormReLU(32, 32, (1, 7)), ConvNormReLU(32, 48, (7, 1))),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNormReLU(160, 32, 1)),
        )
        self.classifier = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits."""
        features = self.factorized(self.reduction(self.mixed(self.stem(image))))
        return self.classifier(features.mean((2, 3)))


class Bottleneck(nn.Module):
    """SqueezeNext's block: two 1x1 that squeeze, a 3x1 and a 1x3 in two groups, a 1x1 that expands, a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.squeeze = nn.Sequential(ConvNormReLU(channels, half, 1, stride), ConvNormReLU(half, quarter, 1))
        self.separable = nn.Sequential(
            ConvNormReLU(quarter, half, (3, 1), groups=2), ConvNormReLU(half, half, (1, 3), groups=2)
        )
        self.expand = ConvNormReLU(half, wider, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != wider:
            self.shortcut = ConvNormReLU(channels, wider, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, after its last ReLU."""
        return torch.relu(self.expand(self.separable(self.squeeze(x))) + self.shortcut(x))


class DigitsSqueezeNext(nn.Module):
    """A SqueezeNext with group convolutions (1.0-G-SqNxt, Gholami et al. 2018): 2, 3 and 3 blocks, a last 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormReLU(1, 32, 3)
        self.stages = nn.Sequential(
            *_stage(32, [48, 48], 1),
            *_stage(48, [80, 80, 80], 2),
            *_stage(80, [128, 128, 128], 2),
        )
        self.head = ConvNormReLU(128, 64, 1)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits."""
        features = self.head(self.stages(self.stem(image)))
        return self.classifier(features.mean((2, 3)))


def _stage(channels: int, widths: Sequence[int], stride: int) -> list[Bottleneck]:
    """Bottlenecks of the widths; the first has the stride."""
    strides = [stride, *[1] * (len(widths) - 1)]
    before = [channels, *widths[:-1]]
    return [Bottleneck(*sizes) for sizes in zip(before, widths, strides, strict=True)]


class DigitsTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2020): the rows as tokens, three pre-norm blocks, 64 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, (1, 8))
        # As strong as what the patches give: the mean over tokens is blind to where they stood.
        self.positions = nn.Parameter(torch.randn(8, 64) * 0.3)
        self.blocks = nn.Sequential(
            *[
                nn.TransformerEncoderLayer(
                    64, 4, 128, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(3)
            ]
        )
        self.norm = nn.LayerNorm(64)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits, from the mean of the tokens."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


class DigitsLSTM(nn.Module):
    """Two layers of 96 LSTM cells (Hochreiter and Schmidhuber 1997) that read the eight rows from the top."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 96, 2, batch_first=True, dropout=0.1)
        self.classifier = nn.Linear(96, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits, from the state after the last row."""
        states, _ = self.lstm(image.flatten(1, 2))
        return self.classifier(states[:, -1])
