"""What the examples promise: accuracy of the digits network without training, and a pass of one's own."""

from pathlib import Path

import pytest
import torch

import mbqc
from mbqc.lookup import find_pass, import_module
from mbqc.pipeline import Context
from mbqc.runtime import Compiled

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = import_module(str(EXAMPLES / "digits" / "model.py"))


def compiled(passes: str) -> Compiled:
    return mbqc.compile(DIGITS.model(), DIGITS.example_inputs(), passes, calibration=DIGITS.calibration_data())


@pytest.fixture(scope="module")
def accuracy() -> dict[str, dict[int, float]]:
    inputs, labels = DIGITS.images("test")
    models = {passes: compiled(passes) for passes in ("quant", "quant,bncorrect")}
    return {
        passes: {bits: DIGITS.metric(model(inputs, bits=bits), labels) for bits in range(1, 9)}
        for passes, model in models.items()
    }


@pytest.mark.parametrize(("bits", "loss"), [(8, 0.5), (6, 0.5), (5, 0.5), (4, 1.5)])
def test_digits_keep_their_accuracy_without_training(
    accuracy: dict[str, dict[int, float]], bits: int, loss: float
) -> None:
    inputs, labels = DIGITS.images("test")
    with torch.no_grad():
        exact = DIGITS.metric(DIGITS.model()(inputs), labels)
    assert accuracy["quant,bncorrect"][bits] >= exact - loss


def test_correction_gains_where_there_is_something_to_gain(accuracy: dict[str, dict[int, float]]) -> None:
    """From 3 bits up both are within two images of float; what is gained in logits, `test_bncorrect` states."""
    assert accuracy["quant,bncorrect"][2] > accuracy["quant"][2] + 5


def test_the_pass_of_ones_own_zeroes_the_share_it_is_asked_for() -> None:
    prune = find_pass(f"{EXAMPLES / 'prune_pass.py'}:Prune")(share=0.75)
    layer = torch.nn.Linear(16, 16)
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    prune.run(graph, Context((torch.zeros(1, 16),)))
    assert float((layer.weight == 0).float().mean()) == pytest.approx(0.75, abs=0.01)
