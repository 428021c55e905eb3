"""Train the float network that `model.py` loads: Adam, one-cycle rate, images shifted by up to one pixel.

    python examples/digits/train.py

Data order, shifts and initial weights come from fixed seeds; takes about ten seconds on one CPU core. Writes
`weights.safetensors`, and `digits.npz` (from scikit-learn) should it be missing.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from model import HERE, MEAN, STD, WEIGHTS, Batches, DigitsNet, images, loss, metric
from safetensors.torch import save_file
from torch import Tensor, nn

TRAIN_IMAGES = 1197
BLANK = -MEAN / STD
"""The normalised value of an empty pixel."""


def store_digits() -> None:
    """Write scikit-learn's digits in a fixed random order, split into training and test images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels, labels = digits.images.astype(np.uint8)[order], digits.target.astype(np.uint8)[order]
    np.savez_compressed(
        HERE / "digits.npz",
        train_images=pixels[:TRAIN_IMAGES],
        train_labels=labels[:TRAIN_IMAGES],
        test_images=pixels[TRAIN_IMAGES:],
        test_labels=labels[TRAIN_IMAGES:],
    )


def shift(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixels both ways; blank pixels come in."""
    padded = nn.functional.pad(inputs, (1, 1, 1, 1), value=BLANK)
    top, left = torch.randint(0, 3, (2, len(inputs), 1), generator=generator)
    rows, columns = top + torch.arange(8), left + torch.arange(8)
    image = torch.arange(len(inputs))[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(net: nn.Module, epochs: int, rate: float, seed: int) -> None:
    """Train in place on shifted training images, printing the mean loss of every tenth epoch."""
    batches = Batches(*images("train"), batch=64, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(batches))
    net.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for inputs, targets in batches:
            value = loss(net(shift(inputs, generator)), targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        if epoch % 10 == 0:
            print(f"epoch {epoch:3d}  loss {total / len(batches):.4f}", flush=True)


def main() -> None:
    """Train, print the held-out accuracy, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (HERE / "digits.npz").is_file():
        store_digits()
    torch.manual_seed(options.seed)
    net = DigitsNet()
    train(net, options.epochs, options.rate, options.seed)
    inputs, labels = images("test")
    with torch.no_grad():
        print(f"held-out accuracy {metric(net.eval()(inputs), labels):.2f} %")
    save_file(net.state_dict(), WEIGHTS)


if __name__ == "__main__":
    main()
