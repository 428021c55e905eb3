"""Train the float network that `model.py` loads: 8 epochs of Adam with a cosine rate, about 25 s on one core a seed.

python examples/fashion_mnist/train_float.py --seed 0
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from model import ResNet8, eval_data, loss, metric, train_data, weights_file
from safetensors.torch import save
from torch import Tensor, nn

from mbqc.files import write_atomically


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at the start")
    parser.add_argument("--out", type=Path, help="where to write the weights (default: where model.py looks)")
    return parser.parse_args()


def accuracy(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Percent of images that the network, put into eval mode, labels correctly."""
    net.eval()
    with torch.no_grad():
        outputs = torch.cat([net(images) for images, _ in batches])
    return metric(outputs, torch.cat([labels for _, labels in batches]))


def train(seed: int, epochs: int, rate: float) -> ResNet8:
    """A network trained from random weights; prints the loss and the accuracy on the test images of each epoch."""
    torch.manual_seed(seed)
    net = ResNet8().to(memory_format=torch.channels_last)
    batches, tests = train_data(), eval_data()
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for epoch in range(1, epochs + 1):
        start, total = time.perf_counter(), 0.0
        net.train()
        for images, labels in batches:
            value = loss(net(images), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        seconds, mean = time.perf_counter() - start, total / len(batches)
        print(f"epoch {epoch}  loss {mean:.4f}  test {accuracy(net, tests):.2f} %  {seconds:.1f} s", flush=True)
    return net


def main() -> None:
    """Train and write the weights."""
    options = arguments()
    out = options.out or weights_file(options.seed)
    net = train(options.seed, options.epochs, options.rate)
    write_atomically(out, save({name: value.contiguous() for name, value in net.state_dict().items()}))
    print(f"weights of seed {options.seed} in {out}")


if __name__ == "__main__":
    main()
