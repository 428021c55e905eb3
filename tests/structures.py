"""Small graphs around every joint of quantization and lowering: who reads what, in which order, in which layout.

Each is a model on images [2, 3, 8, 8]: its modules, and its forward function on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from tests.models import Example, seeded

SHAPE = (2, 3, 8, 8)
Forward = Callable[[Any, Tensor], Tensor | tuple[Tensor, ...]]


class Net(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, modules: dict[str, nn.Module], function: Forward) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, x)


def conv(cin: int, cout: int, kernel: int = 3, padding: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2 if padding is None else padding)


def pair() -> dict[str, nn.Module]:
    return {"a": conv(3, 4), "b": conv(4, 4)}


def three() -> dict[str, nn.Module]:
    return {"a": conv(3, 4), "b": conv(4, 4), "c": conv(4, 4)}


def fork() -> dict[str, nn.Module]:
    return {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 4)}


def joint() -> dict[str, nn.Module]:
    return {"a": conv(3, 4), "b": conv(3, 4), "c": conv(8, 4)}


def unpadded() -> dict[str, nn.Module]:
    return {"a": conv(3, 4), "b": conv(4, 4, padding=0), "c": conv(4, 4, padding=0)}


def with_norm(*names: str) -> Callable[[], dict[str, nn.Module]]:
    """Three convolutions and BatchNorms of 4 channels."""
    return lambda: {**three(), **{name: nn.BatchNorm2d(4) for name in names}}


def rows() -> dict[str, nn.Module]:
    """Linear layers on the last dimension."""
    return {"a": nn.Linear(8, 6), "b": nn.Linear(6, 4), "norm1": nn.BatchNorm1d(3), "norm2": nn.BatchNorm2d(3)}


def halves(y: Tensor) -> Tensor:
    """The sum of the first half of the samples and the second."""
    first, second = y.chunk(2)
    return first + second


STRUCTURES: dict[str, tuple[Callable[[], dict[str, nn.Module]], Forward]] = {
    # twice the samples
    "samples joined": (pair, lambda m, x: halves(m.b(torch.cat([y := m.a(x), y.flip(3)])).relu())),
    "samples joined, of codes": (
        three,
        lambda m, x: halves(m.c(torch.cat([F.max_pool2d(y := m.a(x), 2), F.max_pool2d(m.b(y), 2)], -4))),
    ),
    # residual sums
    "a sum of two layers": (fork, lambda m, x: m.c(F.relu(m.a(x) + m.b(x)))),
    "a sum of a layer and itself": (pair, lambda m, x: m.b((y := m.a(x)) + y)),
    "three in a sum": (three, lambda m, x: m.c(m.b(y := m.a(x)) + m.c(y) + y)),
    "a sum as output": (three, lambda m, x: m.b(y := m.a(x)) + y),
    "a sum read twice": (three, lambda m, x: m.c(z := m.b(y := m.a(x)) + y) + z),
    "a sum then a clamp": (three, lambda m, x: m.c(F.hardtanh(m.b(y := m.a(x)) + y, -0.3, 0.4))),
    "a sum with a pooled value": (three, lambda m, x: m.c(m.b(y := m.a(x)) + F.max_pool2d(y, 3, 1, 1))),
    "a sum of two averages": (pair, lambda m, x: m.b(F.avg_pool2d(y := m.a(x), 3, 1, 1) + F.avg_pool2d(y, 1, 1))),
    "a sum of table results": (three, lambda m, x: m.c(F.silu(m.b(y := F.silu(m.a(x))) + y))),
    "a sum with a constant": (pair, lambda m, x: m.b(m.a(x) + 1.5)),
    "a sum with whole numbers": (pair, lambda m, x: m.b((y := m.a(x)) + y.sort(1)[1])),
    "a sum that broadcasts": (
        lambda: {"a": conv(3, 4), "b": conv(3, 1), "c": conv(4, 4)},
        lambda m, x: m.c(m.a(x) + m.b(x)),
    ),
    "a weighted sum": (fork, lambda m, x: m.c(torch.add(m.a(x), m.b(x), alpha=2))),
    "a difference": (fork, lambda m, x: m.c(m.a(x) - m.b(x))),
    # concatenation
    "a layer beside itself": (
        lambda: {"a": conv(3, 4), "b": conv(8, 4)},
        lambda m, x: m.b(torch.cat([y := m.a(x), y], 1)),
    ),
    "the input beside a layer": (
        lambda: {"a": conv(3, 4), "b": conv(7, 4)},
        lambda m, x: m.b(torch.cat([x, m.a(x)], 1)),
    ),
    "one below the other": (fork, lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2))),
    "concatenation then a table": (joint, lambda m, x: m.c(F.silu(torch.cat([m.a(x), m.b(x)], 1)))),
    "concatenation then a clamp": (joint, lambda m, x: m.c(F.relu(torch.cat([m.a(x), m.b(x)], 1)))),
    "concatenation then BatchNorm": (
        lambda: {**joint(), "norm": nn.BatchNorm2d(8)},
        lambda m, x: m.c(F.relu(m.norm(torch.cat([m.a(x), m.b(x)], 1)))),
    ),
    "vectors side by side": (
        lambda: {"a": nn.Linear(8, 4), "b": nn.Linear(8, 4), "c": nn.Linear(8, 3)},
        lambda m, x: m.c(torch.cat([m.a(x.mean((1, 2))), m.b(x.amax((1, 2)))], 1)),
    ),
    # BatchNorm and activations
    "BatchNorm first": (lambda: {**pair(), "norm": nn.BatchNorm2d(3)}, lambda m, x: m.b(m.a(m.norm(x)))),
    "BatchNorm twice": (with_norm("n1", "n2"), lambda m, x: m.b(m.n2(m.n1(m.a(x))))),
    "BatchNorm behind a clamp": (with_norm("norm"), lambda m, x: m.b(m.norm(F.relu(m.a(x))))),
    "BatchNorm behind a sum": (with_norm("norm"), lambda m, x: m.c(m.norm(m.b(y := m.a(x)) + y))),
    "BatchNorm behind an average": (with_norm("norm"), lambda m, x: m.b(F.relu(m.norm(F.avg_pool2d(m.a(x), 2))))),
    "BatchNorm without affine part": (
        lambda: {**pair(), "norm": nn.BatchNorm2d(4, affine=False)},
        lambda m, x: m.b(m.norm(m.a(x))),
    ),
    "BatchNorm beside a float reader": (with_norm("norm"), lambda m, x: m.norm(y := m.a(x)) * y),
    "BatchNorm beside a float reader, then a layer": (with_norm("norm"), lambda m, x: m.b(m.norm(y := m.a(x))) * y),
    "one BatchNorm behind two layers": (with_norm("norm"), lambda m, x: m.c(m.norm(m.b(m.norm(m.a(x)))))),
    "one BatchNorm behind a layer and a sum": (
        with_norm("norm", "own"),
        lambda m, x: m.norm(m.own(m.b(F.relu(y := m.norm(m.a(x))))) + y),
    ),
    "one layer with two BatchNorms": (
        lambda: {"a": conv(3, 3), "n1": nn.BatchNorm2d(3), "n2": nn.BatchNorm2d(3)},
        lambda m, x: m.n2(m.a(F.relu(m.n1(m.a(x))))),
    ),
    "clamp of a clamp": (pair, lambda m, x: m.b(F.relu6(F.relu(m.a(x))))),
    "clamp away from zero": (pair, lambda m, x: m.b(F.hardtanh(m.a(x), 0.1, 0.5))),
    "clamp from below alone": (pair, lambda m, x: m.b(torch.clamp(m.a(x), min=0.1))),
    "clamp of an average": (pair, lambda m, x: m.b(F.relu(F.avg_pool2d(m.a(x), 2)))),
    "table of a table": (pair, lambda m, x: m.b(F.hardswish(F.silu(m.a(x))))),
    "table of the input": (pair, lambda m, x: m.b(m.a(F.silu(x)))),
    "prelu": (lambda: {**pair(), "prelu": nn.PReLU(4)}, lambda m, x: m.b(m.prelu(m.a(x)))),
    "squeeze and excite": (
        lambda: {**pair(), "gate": conv(4, 4, 1)},
        lambda m, x: m.b((y := F.relu(m.a(x))) * m.gate(y.mean((2, 3), keepdim=True)).sigmoid()),
    ),
    # pooling and padding
    "pooling of the input": (pair, lambda m, x: m.b(m.a(F.max_pool2d(x, 2)))),
    "average of the input": (pair, lambda m, x: m.b(m.a(F.avg_pool2d(x, 2)))),
    "average with padding": (pair, lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 1, 1))),
    "average that leaves padding out": (pair, lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 1, 1, count_include_pad=False))),
    "average with a rest": (pair, lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 3))),
    "average of an odd size": (pair, lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, ceil_mode=True))),
    "average as output": (pair, lambda m, x: F.avg_pool2d(m.a(x), 2)),
    "pooling of an odd size": (pair, lambda m, x: m.b(F.max_pool2d(m.a(x), 3, 2, 1, ceil_mode=True))),
    "dilated pooling": (pair, lambda m, x: m.b(F.max_pool2d(m.a(x), 2, 1, 1, dilation=2))),
    "padding beside pooling": (unpadded, lambda m, x: m.b(y := F.pad(m.a(x), (1, 1, 1, 1))) + F.max_pool2d(y, 3, 1)),
    "padding of padding": (unpadded, lambda m, x: m.b(F.pad(F.pad(m.a(x), (1, 0, 0, 1)), (0, 1, 1, 0)))),
    "padding with a value": (unpadded, lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=0.5))),
    "padding that crops": (unpadded, lambda m, x: m.b(F.pad(m.a(x), (-1, 1, 1, 1)))),
    "padding of a residual": (unpadded, lambda m, x: m.b(F.pad(y := m.a(x), (1, 1, 1, 1))) + y),
    "padding read by two layers": (unpadded, lambda m, x: (m.b(y := F.pad(m.a(x), (1, 1, 1, 1))), m.c(y))),
    "padding read by reflection": (
        lambda: {**unpadded(), "c": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")},
        lambda m, x: (m.b(y := F.pad(m.a(x), (1, 1, 1, 1))), m.c(y)),
    ),
    "padding before a linear layer": (
        lambda: {"a": conv(3, 4), "b": nn.Linear(10, 4)},
        lambda m, x: m.b(F.pad(m.a(x), (1, 1))),
    ),
    # layouts
    "a linear layer on images": (rows, lambda m, x: m.b(F.relu(m.a(x)))),
    "a linear layer on images, with BatchNorm": (rows, lambda m, x: m.b(F.relu(m.norm2(m.a(x))))),
    "a linear layer on rows, with BatchNorm": (rows, lambda m, x: m.b(m.norm1(m.a(x.mean(2))))),
    "a BatchNorm of rows in float": (rows, lambda m, x: m.norm1(m.a(x.mean(2))) * 2),
    "linear then convolution": (lambda: {"a": nn.Linear(8, 6), "b": conv(3, 4)}, lambda m, x: m.b(F.relu(m.a(x)))),
    "convolution, linear and their sum": (
        lambda: {"a": conv(3, 4), "b": nn.Linear(8, 8), "c": conv(4, 4)},
        lambda m, x: m.c(m.b(y := F.relu(m.a(x))) + y),
    ),
    "linear over the channels": (
        lambda: {"a": conv(3, 4), "b": nn.Linear(4, 4), "c": conv(4, 4)},
        lambda m, x: m.c(m.b(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    ),
    "rows as columns": (pair, lambda m, x: m.b(m.a(x).transpose(2, 3))),
    "an image as a sequence": (
        lambda: {"a": conv(3, 4), "b": nn.Conv1d(4, 4, 3, stride=2), "norm": nn.BatchNorm1d(4)},
        lambda m, x: F.relu(m.norm(m.b(m.a(x).flatten(2)))),
    ),
    "a residual on sequences": (
        lambda: {"a": nn.Conv1d(3, 4, 3, padding=1), "b": nn.Conv1d(4, 4, 3, padding=1), "c": nn.Linear(4, 3)},
        lambda m, x: m.c(F.adaptive_avg_pool1d(F.relu(m.b(y := F.relu(m.a(x.flatten(2)))) + y), 1).flatten(1)),
    ),
    "one channel more": (
        lambda: {"a": nn.Linear(8, 4), "b": conv(1, 4)},
        lambda m, x: m.b(m.a(x.mean(1)).unsqueeze(1)),
    ),
    "one channel less": (lambda: {"a": conv(3, 1), "b": nn.Linear(8, 4)}, lambda m, x: m.b(m.a(x).squeeze(1))),
    "channels into the batch": (
        lambda: {"a": conv(3, 4), "b": conv(1, 4)},
        lambda m, x: m.b(m.a(x).reshape(-1, 1, 8, 8)).reshape(x.shape[0], -1, 8, 8),
    ),
    "channels apart": (
        lambda: {"a": conv(3, 4), "b": conv(2, 4)},
        lambda m, x: m.b((parts := m.a(x).chunk(2, 1))[0]) + m.b(parts[1]),
    ),
    # outputs and shared layers
    "one output twice": (pair, lambda m, x: (y := m.b(m.a(x)), y)),
    "the input as output": (pair, lambda m, x: (x, m.b(m.a(x)))),
    "codes as output": (pair, lambda m, x: (y := F.relu(m.a(x)), m.b(y), F.max_pool2d(y, 2), y.flatten(1))),
    "one layer three times": (lambda: {"a": conv(3, 3)}, lambda m, x: m.a(m.a(m.a(x)))),
    "layers between float layers": (
        lambda: {**pair(), "up": nn.ConvTranspose2d(4, 4, 2, 2), "norm": nn.GroupNorm(2, 4)},
        lambda m, x: F.interpolate(m.b(m.norm(m.up(m.a(x)))), scale_factor=0.5),
    ),
}  # fmt: skip


def structure(name: str) -> Example:
    """A structure as a model with inputs."""
    modules, function = STRUCTURES[name]
    return seeded(lambda: Net(modules(), function), SHAPE)
