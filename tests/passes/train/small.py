"""A problem that trains in a second: stripes of three directions under noise, and a small network for them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset

from mbqc.frontend.trace import trace
from mbqc.lookup import find_pass
from mbqc.numerics import ALL_BITS
from mbqc.passes.train.feeds import Fed
from mbqc.passes.train.loop import Stepper
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.passes.train.task import Task
from mbqc.passes.train.train import Train
from mbqc.pipeline import Context, Pipeline
from mbqc.pipeline.instruments import Verify
from mbqc.pipeline.training import TrainingResult
from mbqc.properties import ALL

CLASSES, SIZE, SAMPLES, BATCH = 3, 8, 96, 16
QUANTIZED = "normalize,quant,bncorrect"


def stripes(samples: int = SAMPLES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 8, 8] and labels [n]: horizontal, vertical or diagonal stripes, hidden in noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=draw)
    row, column = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None, :]
    patterns = torch.stack([(row + 0 * column) % 4 < 2, (0 * row + column) % 4 < 2, (row + column) % 4 < 2]).float()
    noise = torch.randn(samples, 1, SIZE, SIZE, generator=draw)
    return patterns[labels][:, None] + 0.7 * noise, labels


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """The same with an augmentation, which draws from torch's own generator."""

    def __init__(self) -> None:
        self.images, self.labels = stripes()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] + 0.1 * torch.randn_like(self.images[index]), self.labels[index]


def network() -> nn.Module:
    """Two convolutions and a linear layer; of five layers the middle ones are not pinned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 8), (8, 8), (8, 8)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)).eval()


def context(labelled: Any = None, folder: Path | None = None, resume: bool = False, **others: Any) -> Context:
    """The problem, with 48 more samples to judge by."""
    images, _ = stripes()
    return Context(
        (images[:1],),
        calibration=[images[:32]],
        labelled=stripes() if labelled is None else labelled,
        evaluation=[stripes(48, seed=1)],
        folder=folder,
        resume=resume,
        **others,
    )


@cache
def quantized(passes: str = QUANTIZED) -> fx.GraphModule:
    """The network's graph, ready to train; pipelines run on copies."""
    images, _ = stripes()
    found = run(passes, trace(network(), (images[:1],)), context())
    assert isinstance(found, fx.GraphModule)
    return found


def run(passes: str, graph: fx.GraphModule, surroundings: Context) -> Any:
    """A pipeline on a copy of `graph`, verified after each pass."""
    return Pipeline.parse(passes, find_pass).run(graph, surroundings, [Verify(ALL)])


def trained(
    options: str, surroundings: Context | None = None, passes: str = QUANTIZED
) -> tuple[fx.GraphModule, TrainingResult]:
    """The graph after `train{batch=16,...}`, and what the pass reports."""
    surroundings = context() if surroundings is None else surroundings
    graph = run(f"train{{batch={BATCH},{options}}}", quantized(passes), surroundings)
    assert surroundings.report.training is not None
    return graph, surroundings.report.training


def stepper(
    rounds: int = 10, passes: str = QUANTIZED, bits: tuple[int, ...] = (8, 4, 2), loss: Any = None, **options: Any
) -> tuple[fx.GraphModule, Stepper]:
    """A float64 copy of the graph in train mode, and what trains it round by round."""
    graph = copy.deepcopy(quantized(passes)).double().train()
    return graph, Stepper(Task(graph, Train(**options), bits, context(loss=loss), Ranks()), rounds)


def batch(index: int = 0) -> Fed:
    """One of the batches of the training data."""
    images, labels = stripes()
    rows = slice(index * BATCH, (index + 1) * BATCH)
    return Fed((images[rows],), labels[rows], None)


def shared(fed: Fed) -> dict[int, Fed]:
    """One batch for all widths."""
    return dict.fromkeys(ALL_BITS, fed)


def quiet(bits: int, fed: Fed, output: Any, loss: float) -> None:
    """Observes nothing."""


def weights(graph: fx.GraphModule) -> dict[str, Tensor]:
    """All numbers of a graph."""
    return {name: value.clone() for name, value in graph.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
