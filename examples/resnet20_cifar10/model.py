"""ResNet-20 on CIFAR-10, the network and data of the Double Rounding paper's first table.

    mbqc compile examples/resnet20_cifar10/model.py --passes quant,bncorrect,hasb

Reads CIFAR-10's binary release from `$MBQC_DATA/cifar10` (default `~/.cache/mbqc-data/cifar10`) and the weights that
`train.py` wrote from `$MBQC_RESNET20_WEIGHTS` (default `weights.safetensors` beside this file).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]

DATA = Path(os.environ.get("MBQC_DATA", "~/.cache/mbqc-data")).expanduser() / "cifar10"
WEIGHTS = Path(os.environ.get("MBQC_RESNET20_WEIGHTS", Path(__file__).with_name("weights.safetensors"))).expanduser()
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
STD = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
IMAGE_BYTES = 3 * 32 * 32
CALIBRATION_IMAGES = 512


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


class ResNet20(nn.Module):
    """Three stages of three basic blocks with 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, 1)
        self.stage2 = _stage(16, 32, 2)
        self.stage3 = _stage(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.flatten(self.pool(x)))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1), BasicBlock(outputs, outputs, 1)
    )


def model() -> nn.Module:
    """The trained float network in eval mode."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(
            f"no ResNet-20 weights at {WEIGHTS}: run 'python {Path(__file__).with_name('train.py')}', "
            "or point MBQC_RESNET20_WEIGHTS at the file it wrote"
        )
    net = ResNet20()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def example_inputs() -> tuple[Tensor]:
    """One image's worth of zeros."""
    return (torch.zeros(1, 3, 32, 32),)


def images(files: list[str], folder: Path = DATA) -> tuple[Tensor, Tensor]:
    """Raw images [n, 3, 32, 32] uint8 and labels [n] int64 of CIFAR-10's binary files: a label byte, then the image."""
    missing = [str(folder / name) for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"CIFAR-10's binary release is not complete: missing {', '.join(missing)}")
    records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in files]).reshape(-1, 1 + IMAGE_BYTES)
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return pixels, torch.from_numpy(records[:, 0].astype(np.int64))


def train_images(folder: Path = DATA) -> tuple[Tensor, Tensor]:
    """The 50 000 training images and labels."""
    return images([f"data_batch_{n}.bin" for n in range(1, 6)], folder)


def held_out_images(folder: Path = DATA) -> tuple[Tensor, Tensor]:
    """The 10 000 test images and labels."""
    return images(["test_batch.bin"], folder)


def normalise(pixels: Tensor) -> Tensor:
    """Bytes to the network's input: float, zero mean and unit deviation per colour over the training set."""
    return (pixels.float() / 255 - MEAN) / STD


def augment(pixels: Tensor) -> Tensor:
    """Shift each image by up to 4 pixels (zeros come in) and mirror half of them, the whole batch at once."""
    count = len(pixels)
    padded = nn.functional.pad(pixels, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, count, 1))
    rows, columns = top + torch.arange(32), left + torch.arange(32)
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image, colour = torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None]
    return padded[image, colour, rows[:, None, :, None], columns[:, None, None, :]]


def calibration_data() -> Iterator[Tensor]:
    """The first training images, without augmentation, in batches of 128."""
    pixels, _ = images(["data_batch_1.bin"])
    return (normalise(batch) for batch in pixels[:CALIBRATION_IMAGES].split(128))


class AugmentedImages(Dataset[Batch]):
    """Labelled images, read a batch at once; they are shifted and mirrored as torch's random numbers fall."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The samples of `indices` as one batch."""
        pick = torch.tensor(indices)
        return normalise(augment(self.pixels[pick])), self.labels[pick]


def train_data() -> DataLoader[Batch]:
    """Shifted and mirrored training images in batches of 128."""
    dataset = AugmentedImages(*train_images())
    return DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True, collate_fn=_as_it_is)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def eval_data() -> Iterator[tuple[Tensor, Tensor]]:
    """The test images in batches of 250."""
    pixels, labels = held_out_images()
    return ((normalise(x), y) for x, y in zip(pixels.split(250), labels.split(250), strict=True))


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(output, target)


def metric(output: Tensor, target: Tensor) -> float:
    """Accuracy in percent."""
    return 100.0 * (output.argmax(1) == target).sum().item() / len(target)
