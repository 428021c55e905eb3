"""Model files: how they are named, and how often their data functions are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mbqc.errors import DataError, ModelError
from mbqc.userfile import UserModel, load_user_model

TEXT = """
import torch
calls = []

class Shuffled:
    def __init__(self):
        self.epoch = 0
    def __iter__(self):
        self.epoch += 1
        yield self.epoch

def model():
    return torch.nn.Linear(2, 3)

def other():
    return torch.nn.Linear(5, 7)

def example_inputs():
    return [torch.zeros(1, 2), torch.ones(1)]

def calibration_data():
    calls.append("calibration")
    yield from (1, 2)

def train_data():
    calls.append("train")
    return Shuffled()

def eval_data():
    yield 1
    raise ValueError("gone")

def loss(output, target):
    return output
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UserModel:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(TEXT)
    return load_user_model(str(tmp_path / "net.py"))


def test_functions(user: UserModel) -> None:
    assert isinstance(user.model(), torch.nn.Linear)
    inputs = user.example_inputs()
    assert isinstance(inputs, tuple)
    assert [tuple(x.shape) for x in inputs] == [(1, 2), (1,)]
    assert user.loss is not None
    assert user.loss(3, torch.zeros(1)) == 3
    assert user.metric(3, torch.zeros(1)) is None


def test_random_weights_come_out_the_same(user: UserModel) -> None:
    before = torch.random.get_rng_state()
    a, b = user.model(), user.model()
    assert torch.equal(a.weight, b.weight)  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_function(user: UserModel) -> None:
    other = load_user_model(f"{user.place}:other").model()
    assert isinstance(other, torch.nn.Linear)
    assert other.in_features == 5


def test_a_generator_is_made_anew(user: UserModel) -> None:
    data = user.data("calibration_data")
    assert data is not None
    assert [list(data), list(data), list(data)] == [[1, 2]] * 3
    assert user.module.calls == ["calibration"] * 3


def test_what_can_be_iterated_again_is_kept(user: UserModel) -> None:
    """It may hold the state of its shuffling."""
    data = user.data("train_data")
    assert data is not None
    assert [list(data), list(data), list(data)] == [[1], [2], [3]]
    assert user.module.calls == ["train"]


def test_error_in_the_middle(user: UserModel) -> None:
    data = iter(user.require_data("eval_data"))
    assert next(data) == 1
    line = TEXT.splitlines().index('    raise ValueError("gone")') + 1
    with pytest.raises(ModelError, match=rf"net\.py:{line}: eval_data\(\) raised ValueError: gone"):
        next(data)


def test_own_errors_pass(user: UserModel) -> None:
    error = DataError("mine")
    assert user.failure("model", error) is error


def test_missing_function(user: UserModel) -> None:
    del user.module.eval_data
    assert user.data("eval_data") is None
    with pytest.raises(ModelError, match=r"there is no function eval_data\(\)"):
        user.require_data("eval_data")
