"""ResNet-8 on Fashion-MNIST at 14x14 pixels: one core trains it at several widths within a minute.

    mbqc compile examples/fashion_mnist/model.py --passes 'quant,bncorrect,train'

Reads Fashion-MNIST's idx files and the weights that `train_float.py` wrote from `$MBQC_DATA/fashion-mnist` (default
`~/.cache/mbqc-data/fashion-mnist`). `$MBQC_FASHION_SEED` (default 0) chooses among weights of several seeds.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

DATA = Path(os.environ.get("MBQC_DATA", "~/.cache/mbqc-data")).expanduser() / "fashion-mnist"
TRAIN_IMAGES = 20_000
CALIBRATION_IMAGES = 512
BATCH = 128
MEAN, STD = 0.2858, 0.3303
"""Of the pooled training images."""

Batch = tuple[Tensor, Tensor]
"""Images float32 [n, 1, 14, 14] and labels int64 [n]."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet8(nn.Module):
    """Three basic blocks with 16, 32 and 64 channels: 77 754 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn(self.conv(x))))
        return self.fc(self.flatten(self.pool(x)))


class MirroredImages(Dataset[Batch]):
    """Labelled images, read a batch at once; each is mirrored or not, as torch's random numbers fall."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The samples of `indices` as one batch."""
        pick = torch.tensor(indices)
        images = self.images[pick]
        mirrored = torch.rand(len(pick), 1, 1, 1) < 0.5
        return torch.where(mirrored, images.flip(3), images), self.labels[pick]


def weights_file(seed: int) -> Path:
    """Where the float network of a seed is kept."""
    return DATA / f"resnet8-seed{seed}.safetensors"


def float_network(seed: int) -> ResNet8:
    """The trained float network of a seed, in eval mode.

    Raises:
        FileNotFoundError: it has not been trained.
    """
    file = weights_file(seed)
    if not file.is_file():
        script = Path(__file__).with_name("train_float.py")
        raise FileNotFoundError(f"no weights of seed {seed} at {file}: run 'python {script} --seed {seed}'")
    net = ResNet8()
    net.load_state_dict(load_file(file))
    return net.eval()


def model() -> nn.Module:
    """The float network of `$MBQC_FASHION_SEED`."""
    return float_network(int(os.environ.get("MBQC_FASHION_SEED", "0")))


def example_inputs() -> tuple[Tensor]:
    """One image's worth of zeros."""
    return (torch.zeros(1, 1, 14, 14),)


def train_images() -> Batch:
    """The first 20 000 training images and labels."""
    return _labelled("train", TRAIN_IMAGES)


def held_out_images() -> Batch:
    """The 10 000 test images and labels."""
    return _labelled("t10k", 10_000)


def _labelled(part: str, count: int) -> Batch:
    """Images, average-pooled to 14x14 and normalised over the training set, and labels."""
    pixels = torch.from_numpy(_idx(DATA / f"{part}-images-idx3-ubyte.gz")[:count].astype(np.float32))
    labels = torch.from_numpy(_idx(DATA / f"{part}-labels-idx1-ubyte.gz")[:count].astype(np.int64))
    pooled = nn.functional.avg_pool2d(pixels.unsqueeze(1) / 255, 2)
    return (pooled - MEAN) / STD, labels


def _idx(file: Path) -> np.ndarray:
    """The bytes of an idx file: a magic number whose last byte counts the dimensions, their sizes, the data."""
    if not file.is_file():
        raise FileNotFoundError(f"Fashion-MNIST is not complete: missing {file}")
    content = gzip.decompress(file.read_bytes())
    sizes = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)


def _whole(batch: Batch) -> Batch:
    return batch


def train_data() -> DataLoader[Batch]:
    """Training images, half of them mirrored, in a new order in every epoch."""
    return DataLoader(MirroredImages(*train_images()), BATCH, shuffle=True, collate_fn=_whole)


def calibration_data() -> list[Tensor]:
    """The first training images, as they are."""
    return list(train_images()[0][:CALIBRATION_IMAGES].split(BATCH))


def eval_data() -> list[Batch]:
    """The test images in batches of 500."""
    images, labels = held_out_images()
    return list(zip(images.split(500), labels.split(500), strict=True))


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(output, target)


def metric(output: Tensor, target: Tensor) -> float:
    """Accuracy in percent."""
    return 100.0 * (output.argmax(1) == target).sum().item() / len(target)
