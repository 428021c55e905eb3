"""A small trained network on the UCI digits: 8x8 grey images in ten classes, everything it needs beside this file.

    mbqc compile examples/digits/model.py --passes quant,bncorrect,hasb

`digits.npz` holds the 1 797 images of scikit-learn's `load_digits` in a fixed random order, 1 197 to train and 600 to
test; `weights.safetensors` is what `train.py` wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"
MEAN, STD = 0.3053, 0.3760
"""Of the training images, after their values 0..16 are scaled to 0..1."""


class Residual(nn.Module):
    """Two 3x3 convolutions and an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + x)


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class DigitsNet(nn.Module):
    """Plain, residual, strided and depthwise-separable convolutions, average pooling and one linear layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn_relu(1, 16, 3), conv_bn_relu(16, 32, 3))
        self.block = Residual(32)
        self.down = conv_bn_relu(32, 64, 3, stride=2)
        self.separable = nn.Sequential(conv_bn_relu(64, 64, 3, groups=64), conv_bn_relu(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.separable(self.down(self.block(self.stem(x))))
        return self.fc(self.flatten(self.pool(x)))


def model() -> nn.Module:
    """The trained float network in eval mode."""
    net = DigitsNet()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def example_inputs() -> tuple[Tensor]:
    """One image's worth of zeros."""
    return (torch.zeros(1, 1, 8, 8),)


def images(part: str) -> tuple[Tensor, Tensor]:
    """Normalised images [n, 1, 8, 8] and labels [n] of one part: `train` or `test`."""
    with np.load(HERE / "digits.npz") as stored:
        pixels, labels = stored[f"{part}_images"], stored[f"{part}_labels"]
    inputs = (torch.from_numpy(pixels)[:, None].float() / 16 - MEAN) / STD
    return inputs, torch.from_numpy(labels).long()


def calibration_data() -> Iterator[Tensor]:
    """The first 512 training images in batches of 128."""
    inputs, _ = images("train")
    return iter(inputs[:512].split(128))


class Batches:
    """Training batches in a new order on every iteration; the same sequence in every process."""

    def __init__(self, inputs: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self.inputs, self.labels, self.batch = inputs, labels, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.inputs) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.inputs), generator=self.generator)
        for pick in order[: len(self) * self.batch].split(self.batch):
            yield self.inputs[pick], self.labels[pick]


def train_data() -> Batches:
    """The training images in batches of 64."""
    return Batches(*images("train"), batch=64, seed=0)


def eval_data() -> Iterator[tuple[Tensor, Tensor]]:
    """The 600 held-out images in batches of 200."""
    inputs, labels = images("test")
    return zip(inputs.split(200), labels.split(200), strict=True)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(output, target)


def metric(output: Tensor, target: Tensor) -> float:
    """Accuracy in percent."""
    return 100.0 * (output.argmax(1) == target).sum().item() / len(target)
