"""MobileNetV2 1.0/224 with torchvision's ImageNet weights, quantized from twenty photos without training.

    mbqc compile examples/mobilenet_v2/model.py --passes quant,bncorrect,hasb

Reads `mobilenet_v2/mobilenet_v2-b0353104.pth` (torchvision's file) and `photos/imagenet_NN_LABEL.jpg` from the folder
`$MBQC_DATA` (default `~/.cache/mbqc-data`). The twenty photos calibrate and evaluate alike: enough to compare the
quantized network with the float one, too few to state an ImageNet accuracy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

DATA = Path(os.environ.get("MBQC_DATA", "~/.cache/mbqc-data")).expanduser()
WEIGHTS = DATA / "mobilenet_v2" / "mobilenet_v2-b0353104.pth"
PHOTOS = DATA / "photos"
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
BATCH = 4

BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, number of blocks, stride of the first: table 2 of arXiv 1801.04381."""


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU6, as every layer but the projections has them."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; a residual where input and output match."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [] if expansion == 1 else [conv_bn_relu6(inputs, hidden, 1)]
        layers += [
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """The whole network; parameter names are torchvision's."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        channels = 32
        features: list[nn.Module] = [conv_bn_relu6(3, channels, 3, stride=2)]
        for expansion, outputs, count, first_stride in BLOCKS:
            for index in range(count):
                features.append(InvertedResidual(channels, outputs, first_stride if index == 0 else 1, expansion))
                channels = outputs
        features.append(conv_bn_relu6(channels, 1280, 1))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(x))))


def model() -> nn.Module:
    """The float network with its published weights, in eval mode."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(
            f"torchvision's MobileNetV2 weights (IMAGENET1K_V1, {WEIGHTS.name}) are expected at {WEIGHTS}; "
            "set MBQC_DATA to the folder that holds mobilenet_v2/"
        )
    net = MobileNetV2()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return net.eval()


def example_inputs() -> tuple[Tensor]:
    """One image's worth of zeros."""
    return (torch.zeros(1, 3, 224, 224),)


def preprocess(path: Path) -> Tensor:
    """One photo as [3, 224, 224]: shorter side to 256, centre crop, ImageNet's mean and deviation."""
    with Image.open(path) as photo:
        image = photo.convert("RGB")
    ratio = 256 / min(image.size)
    size = [max(256, int(side * ratio)) for side in image.size]
    image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in image.size)
    image = image.crop((left, top, left + 224, top + 224))
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
    return (pixels - MEAN) / STD


def photos() -> list[Path]:
    """The photo files, `imagenet_NN_LABEL.jpg`, in order of their numbers."""
    found = sorted(PHOTOS.glob("imagenet_*_*.jpg"))
    if not found:
        raise FileNotFoundError(
            f"photos named imagenet_NN_LABEL.jpg (LABEL: ImageNet class 0 to 999) are expected in {PHOTOS}; "
            "set MBQC_DATA to the folder that holds photos/"
        )
    return found


def eval_data() -> Iterator[tuple[Tensor, Tensor]]:
    """The photos with the labels in their names, in batches."""
    files = photos()
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        labels = [int(path.stem.rsplit("_", 1)[1]) for path in batch]
        yield torch.stack([preprocess(path) for path in batch]), torch.tensor(labels)


def calibration_data() -> Iterator[Tensor]:
    """The photos without labels."""
    return (inputs for inputs, _ in eval_data())


def metric(output: Tensor, target: Tensor) -> float:
    """Top-1 accuracy in percent."""
    return 100.0 * (output.argmax(1) == target).sum().item() / len(target)
