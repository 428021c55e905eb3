"""Train the float ResNet-20 that `model.py` loads: SGD with Nesterov momentum, one-cycle rate, shifts and mirroring.

    python examples/resnet20_cifar10/train.py --epochs 100

The network and the data are drawn from fixed seeds. One epoch takes about 80 s on one CPU core. With `--start` it goes
on from weights, for a fair comparison with a training of widths that started there:

    python examples/resnet20_cifar10/train.py --epochs 10 --start weights.safetensors --rate 0.05 --out long.safetensors
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from model import WEIGHTS, Batch, ResNet20, held_out_images, loss, metric, normalise, train_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to start from; default random ones")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where to write the weights")
    return parser.parse_args()


def accuracy(net: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Percent of images that the network, put into eval mode, labels correctly."""
    net.eval()
    with torch.no_grad():
        outputs = torch.cat([net(normalise(batch)) for batch in pixels.split(250)])
    return metric(outputs, labels)


def train_epoch(
    net: nn.Module,
    batches: DataLoader[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One pass over the batches, a schedule step after each; returns the mean loss."""
    net.train()
    total = 0.0
    for inputs, targets in batches:
        value = loss(net(inputs), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        total += value.item()
    return total / len(batches)


def main() -> None:
    """Train, print the progress, write the weights after every epoch."""
    options = arguments()
    torch.manual_seed(options.seed)
    net = ResNet20().to(memory_format=torch.channels_last)
    if options.start is not None:
        net.load_state_dict(load_file(options.start))
    batches, tests = train_data(), held_out_images()
    optimizer = torch.optim.SGD(net.parameters(), options.rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.epochs * len(batches))
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        mean_loss = train_epoch(net, batches, optimizer, schedule)
        seconds = time.perf_counter() - start
        percent = accuracy(net, *tests)
        print(f"epoch {epoch:3d}  loss {mean_loss:.4f}  test {percent:.2f} %  {seconds:.0f} s", flush=True)
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, options.out)


if __name__ == "__main__":
    main()
