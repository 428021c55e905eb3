"""Runs the command line in this process and keeps what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbqc.cli.main import run_command
from tests.samples import sample_compiled, sample_inputs

TINY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.mix = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.mix(self.conv(x)).mean((2, 3)))

def model():
    return Net().eval()

def example_inputs():
    return torch.zeros(1, 1, 5, 5)

def batches(count):
    random = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(8, 1, 5, 5, generator=random), torch.randint(0, 3, (8,), generator=random)

def calibration_data():
    return (x for x, _ in batches(2))

def train_data():
    return list(batches(2))

def eval_data():
    return batches(3)

def loss(output, target):
    return nn.functional.cross_entropy(output, target)
"""
"""A model file that gives everything but a metric."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, which is nothing but JSON."""
        return json.loads(self.out)

    def refused(self, code: int, *texts: str) -> None:
        """It failed with one message that holds `texts`, and without a traceback."""
        assert self.code == code, self
        assert len([line for line in self.err.splitlines() if line.startswith("error: ")]) == 1, self
        assert "Traceback" not in self.err
        for text in texts:
            assert text in self.err, self


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("run", path, ...)` in `tmp_path`, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("MBQC_DATA", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    capfd.readouterr()

    def call(*arguments: object) -> Result:
        code = run_command([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The sample Program as a file."""
    path = tmp_path / "sample.mbqc"
    sample_compiled().save(path)
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> list[object]:
    """`--input` options with inputs of the sample."""
    options: list[object] = []
    for name, tensor in zip(("image.npy", "ids.npy"), sample_inputs(), strict=True):
        np.save(tmp_path / name, tensor.numpy())
        options += ["--input", tmp_path / name]
    return options


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model file."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


def fits(text: str, columns: int = 80) -> bool:
    """No line is longer than the terminal."""
    return max(map(len, text.splitlines()), default=0) <= columns
